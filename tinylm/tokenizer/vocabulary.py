"""All tokens of a tokenizer: those of the model and the added ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tinylm.errors import TokenizerError

from .added_tokens import AddedToken, Cutter
from .bpe import BytePairEncoding
from .fields import Fields, show


class Vocabulary:
    """Ids and tokens, and how added tokens are cut out of a text.

    `tokens` and `ids` are as the file spells them. `written` is what a token stands for in a decoded text:
    an added token with `normalized` stands there in its normalized form, in which it is looked for.
    """

    def __init__(self, fields: Fields, model: BytePairEncoding, normalize: Callable[[str], str]) -> None:
        added = read_added(fields, model)
        self.ids = model.vocab | {token.content: token.id for token in added}
        self.tokens = model.tokens | {token.id: token.content for token in added}
        self.size = max(self.tokens, default=-1) + 1
        self.special_ids = frozenset(token.id for token in added if token.special)
        spelled = {token: normalize(token.content) if token.normalized else token.content for token in added}
        empty = next((token for token in added if not spelled[token]), None)
        if empty is not None:
            raise TokenizerError(
                f"the added token {show(empty.content)} is nothing once it is normalized, so it cannot be found"
            )
        self.written = self.tokens | {token.id: spelling for token, spelling in spelled.items()}
        # Of two that are spelled alike the first counts, special ones before others.
        added.sort(key=lambda token: not token.special)
        self.in_raw = Cutter((spelled[token], token) for token in added if not token.normalized)
        self.in_normalized = Cutter((spelled[token], token) for token in added if token.normalized)

    def written_tokens(self, ids: Iterable[int], skip_special_tokens: bool) -> list[str]:
        """What the tokens of ids stand for, without the special ones if they are to be skipped."""
        written, special = self.written, self.special_ids
        try:
            if skip_special_tokens:
                return [written[id] for id in ids if id not in special]
            return [written[id] for id in ids]
        except KeyError as error:
            id = show(error.args[0])
            raise TokenizerError(
                f"there is no token with the id {id}; the highest is {self.size - 1}"
            ) from None
        except TypeError:
            raise TokenizerError(f"ids must be integers, but are {show(ids)}") from None


def read_added(fields: Fields, model: BytePairEncoding) -> list[AddedToken]:
    """The added tokens of a tokenizer.json; their ids must follow those of the model without a gap."""
    added: dict[str, AddedToken] = {}
    taken = dict(model.tokens)
    following = len(taken)
    for place, value in enumerate(fields.entries("added_tokens", [])):
        where = f"{fields.where}.added_tokens[{place}]"
        token = AddedToken.read(Fields(value, where))
        if not token.content or added.get(token.content) == token:
            continue
        name = f"{where}, {show(token.content)},"
        if token.content in added:
            raise TokenizerError(f"{name} has been there before with other properties")
        expected = model.vocab.get(token.content, following)
        if token.content not in model.vocab:
            if expected in taken:
                raise TokenizerError(f"{name} would get the id {expected}, which {show(taken[expected])} has")
            following += 1
        if token.id != expected:
            owner = f", which {show(taken[token.id])} has" if token.id in taken else ""
            raise TokenizerError(
                f"{name} has the id {token.id}{owner}; by the vocabulary it must be {expected}"
            )
        taken[token.id] = token.content
        added[token.content] = token
    return list(added.values())
