"""The tokenizer: text to ids and back, as tokenizer.json says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, overload

from tinylm.errors import TokenizerError

from . import decoders, normalizers, pre_tokenizers
from .added_tokens import AddedToken, Cutter
from .aligned import Aligned
from .bpe import BytePairEncoding, Ids
from .byte_alphabet import to_alphabet
from .fields import Fields, show
from .folder import read_beside, read_text, special_token, tokenizer_file
from .post_processors import Encoding, PostProcessor
from .vocabulary import Vocabulary

Messages = Sequence[Mapping[str, Any]]
"""A conversation: each message a dict with `role` and `content`."""

HALF_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape in JSON that may be half of a surrogate pair."""
LONGEST_KEPT = 128
"""Characters of the longest word whose ids are remembered."""
MOST_KEPT = 1 << 16
"""Words after which the memory begins anew."""


class Tokenizer:
    """Text to ids and back.

    `vocab_size` is the highest id plus one, added tokens included; there may be gaps below it. Calls from
    several threads at once are safe.

    >>> tokenizer = Tokenizer.from_file("tokenizer.json")
    >>> tokenizer.decode(tokenizer.encode("Under this"))
    'Under this'
    """

    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    chat_template: str | dict[str, str] | None = None

    def __init__(self, document: object) -> None:
        fields = Fields(document, "tokenizer.json")
        version = fields.text("version", "1.0")
        if version != "1.0":
            raise TokenizerError(f"tokenizer.json.version is {show(version)}; only '1.0' is known")
        self.config: dict[str, Any] = {}
        self._model = BytePairEncoding(fields.inner("model"))
        self._normalizer = self._part(fields, "normalizer", normalizers.read)
        self._pre_tokenizer = self._part(fields, "pre_tokenizer", pre_tokenizers.read)
        self._vocabulary = Vocabulary(fields, self._model, self._normalized)
        self.vocab_size = self._vocabulary.size
        self.special_ids = self._vocabulary.special_ids
        self._as_bytes = pre_tokenizers.leave_bytes_to_model(self._pre_tokenizer)
        self._asks_for_places = pre_tokenizers.asks_for_places(
            self._pre_tokenizer, normalizes=self._normalizer is not None
        )
        self._decoder = decoders.read(self._optional(fields, "decoder"))
        self._post_processor = PostProcessor(
            self._optional(fields, "post_processor"), self._vocabulary.tokens.keys()
        )
        self._words: dict[str, Ids] = {}
        self._parts: dict[str, Ids] = {}
        self._lengths: dict[str, list[tuple[int, int]]] = {}

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer.json."""
        return cls.from_json(read_text(Path(path)))

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer.json of a model's folder and what stands beside it.

        That is tokenizer_config.json (kept as `config`), special_tokens_map.json and chat_template.jinja,
        each of which may be missing.
        """
        tokenizer = cls.from_file(tokenizer_file(Path(folder)))
        beside = read_beside(Path(folder))
        tokenizer.config = beside.config
        tokenizer.chat_template = beside.chat_template
        tokenizer.bos_token = beside.special_tokens.get("bos_token")
        tokenizer.eos_token = beside.special_tokens.get("eos_token")
        tokenizer.pad_token = beside.special_tokens.get("pad_token")
        return tokenizer

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Read the text of a tokenizer.json."""
        try:
            document = json.loads(text)
            if HALF_ESCAPED.search(text):
                json.dumps(document, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ord(error.object[error.start])
            raise TokenizerError(f"tokenizer.json holds U+{half:04X}, half of a surrogate pair") from None
        except (ValueError, RecursionError) as error:
            raise TokenizerError(f"tokenizer.json is not JSON: {error}") from None
        try:
            return cls(document)
        except RecursionError:
            raise TokenizerError("tokenizer.json has too many parts within parts") from None

    @staticmethod
    def _optional(fields: Fields, key: str) -> Fields | None:
        return None if fields.values.get(key) is None else fields.inner(key)

    def _part(self, fields: Fields, key: str, read: Any) -> Any:
        found = self._optional(fields, key)
        return None if found is None else read(found)

    def _normalized(self, text: str) -> str:
        return text if self._normalizer is None else self._normalizer.apply(text)

    @property
    def bos_token_id(self) -> int | None:
        """The id of the token that begins a text."""
        return None if self.bos_token is None else self.token_to_id(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text."""
        return None if self.eos_token is None else self.token_to_id(self.eos_token)

    @property
    def pad_token_id(self) -> int | None:
        """The id of the token that fills up a batch."""
        return None if self.pad_token is None else self.token_to_id(self.pad_token)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, None if there is no such token."""
        return self._vocabulary.ids.get(token)

    def id_to_token(self, id: int) -> str | None:
        """The token of an id as it is spelled in tokenizer.json, None if there is no such id."""
        return self._vocabulary.tokens.get(id)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text."""
        check_text(text)
        if self._asks_for_places:
            return self.encode_with_offsets(text, add_special_tokens).ids
        ids: list[int] = []
        for place, part in enumerate(self._cut(self._vocabulary.in_raw, text)):
            if isinstance(part, str):
                ids += self._encode_normalized(self._normalized(part), at_start=place == 0)
            else:
                ids.append(part.id)
        return self._post_processor.ids(ids, add_special_tokens)

    def _cut(self, cutter: Cutter, text: str) -> list[str | AddedToken]:
        """Text and tokens in their order; the first is text, which may be empty, unless a token is."""
        if cutter.plain:
            parts = cutter.split(text)
            return [cutter.tokens[part] if place % 2 else part for place, part in enumerate(parts)]
        return [text[span[0] : span[1]] if token is None else token for token, span in cutter.cut(text)]

    def _encode_normalized(self, text: str, at_start: bool) -> Iterable[int]:
        """The ids of a normalized text between tokens that were cut out before."""
        cutter = self._vocabulary.in_normalized
        parts = cutter.split(text) if cutter.plain else []
        if len(parts) == 1:
            return self._encode_words(self._cut_words(text, at_start))
        if not parts:
            ids: list[int] = []
            for place, part in enumerate(self._cut(cutter, text)):
                if isinstance(part, str):
                    ids += self._encode_words(self._cut_words(part, at_start and place == 0))
                else:
                    ids.append(part.id)
            return ids
        if at_start:
            return chain(self._encode_words(self._cut_words(parts[0], True)), self._encode_parts(parts[1:]))
        return self._encode_parts(parts)

    def _encode_parts(self, parts: list[str]) -> Iterable[int]:
        """The ids of added tokens and the texts between them, which are short where there are many."""
        known = self._parts
        if len(known) > MOST_KEPT:
            known = self._parts = {}
        if not known:
            # A text between two of these tokens never is one of them, so that one memory serves both.
            known.update(
                (spelling, (token.id,)) for spelling, token in self._vocabulary.in_normalized.tokens.items()
            )
        new = {part: self._cut_words(part, False) for part in set(parts).difference(known)}
        self._encode_words([word for words in new.values() for word in words])
        return look_up(parts, known, {part: tuple(self._encode_words(words)) for part, words in new.items()})

    def _cut_words(self, text: str, at_start: bool) -> list[str]:
        if not text:
            return []
        return [text] if self._pre_tokenizer is None else self._pre_tokenizer.words(text, at_start)

    def _encode_words(self, words: list[str]) -> Iterable[int]:
        known = self._words
        if len(known) > MOST_KEPT:
            known = self._words = {}
        new = set(words).difference(known)
        return look_up(words, known, self._model.encode(new, self._as_bytes) if new else {})

    def encode_with_offsets(self, text: str, add_special_tokens: bool = True) -> Encoding:
        """The ids of a text with their tokens and their places in the text, in characters."""
        check_text(text)
        encoding = Encoding()
        raw = Aligned.whole(text)
        for token, span in self._vocabulary.in_raw.cut(text):
            if token is not None:
                self._add_token(encoding, token, raw.cut(*span))
                continue
            piece = raw.cut(*span)
            if self._normalizer is not None:
                piece = self._normalizer.aligned(piece)
            for inner, place in self._vocabulary.in_normalized.cut(piece.text):
                if inner is not None:
                    self._add_token(encoding, inner, piece.cut(*place))
                    continue
                part = piece.cut(*place)
                words = [part] if self._pre_tokenizer is None else self._pre_tokenizer.aligned(part)
                for word in words:
                    self._add_word(encoding, word)
        return self._post_processor.apply(encoding, add_special_tokens)

    @staticmethod
    def _add_token(encoding: Encoding, token: AddedToken, piece: Aligned) -> None:
        encoding.ids.append(token.id)
        encoding.tokens.append(piece.text)
        encoding.offsets.append((piece.spans[0][0], piece.spans[-1][1]))

    def _add_word(self, encoding: Encoding, word: Aligned) -> None:
        if self._as_bytes:
            word = word.mapped(map(to_alphabet, word.text))
        known = self._lengths
        if len(known) > MOST_KEPT:
            known = self._lengths = {}
        pieces = known.get(word.text)
        if pieces is None:
            pieces = self._model.encode_with_lengths(word.text)
            if len(word.text) <= LONGEST_KEPT:
                known[word.text] = pieces
        spans = word.by_byte()
        start = 0
        for id, length in pieces:
            end = start + length
            encoding.ids.append(id)
            encoding.tokens.append(self._vocabulary.tokens[id])
            encoding.offsets.append((spans[start][0], spans[end - 1][1]))
            start = end

    @overload
    def apply_chat_template(
        self, messages: Messages, *, tokenize: Literal[True] = ..., **options: Any
    ) -> list[int]: ...

    @overload
    def apply_chat_template(self, messages: Messages, *, tokenize: Literal[False], **options: Any) -> str: ...

    def apply_chat_template(
        self,
        messages: Messages,
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tools: Messages | None = None,
        documents: Messages | None = None,
        chat_template: str | None = None,
        **variables: Any,
    ) -> list[int] | str:
        """A conversation as the model reads it: ids, or the text with `tokenize=False`.

        By the template of the model's folder; `chat_template` is the name of another of its templates, or
        the text of one. The rest as in `tinylm.chat_template.render`, which see. Raises ChatTemplateError,
        also for a model without a template. Needs the extra `chat`.
        """
        from tinylm.chat_template import render

        template, name = self.chat_template, None
        if chat_template is not None:
            if isinstance(template, dict) and chat_template in template:
                name = chat_template
            else:
                template = chat_template
        text = render(
            template,
            messages,
            add_generation_prompt,
            continue_final_message,
            tools=tools,
            documents=documents,
            template_name=name,
            **{**self._named_tokens(), **variables},
        )
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def _named_tokens(self) -> dict[str, str]:
        """The special tokens that have a name, as templates call them."""
        named: dict[str, str | None] = {}
        for name in ("unk_token", "sep_token", "cls_token", "mask_token"):
            named[name] = special_token(self.config.get(name), f"tokenizer_config.json: {name}")
        named |= {"bos_token": self.bos_token, "eos_token": self.eos_token, "pad_token": self.pad_token}
        return {name: token for name, token in named.items() if token is not None}

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ids."""
        stage = self._decoder()
        tokens = self._vocabulary.written_tokens(ids, skip_special_tokens)
        return "".join([*stage.feed(tokens), *stage.finish()])

    def stream(self, skip_special_tokens: bool = True) -> TextStream:
        """A decoder that takes ids one by one."""
        return TextStream(self, skip_special_tokens)


class TextStream:
    """Ids to text, one by one: whole characters only, and all pieces joined are what `decode` gives."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._stage = tokenizer._decoder()

    def push(self, id: int) -> str:
        """The text that this id makes certain; often empty."""
        tokens = self._tokenizer._vocabulary.written_tokens((id,), self._skip_special_tokens)
        return "".join(self._stage.feed(tokens))

    def finish(self) -> str:
        """The text that was held back."""
        return "".join(self._stage.finish())


def look_up(words: list[str], known: dict[str, Ids], new: dict[str, Ids]) -> Iterable[int]:
    """The ids of words, of which the new ones are remembered unless they are long."""
    longest = max(map(len, new), default=0)
    if longest <= LONGEST_KEPT:
        known.update(new)
        return chain.from_iterable(map(known.__getitem__, words))
    known.update((word, ids) for word, ids in new.items() if len(word) <= LONGEST_KEPT)
    return chain.from_iterable(new[word] if word in new else known[word] for word in words)


def check_text(text: str) -> None:
    """Refuse what is no text: other types, and halves of surrogate pairs, which no UTF-8 can hold."""
    if not isinstance(text, str):
        raise TokenizerError(
            f"the text to encode is {show(text)}, of type {type(text).__name__}; it must be a string"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"character {error.start} of the text is U+{ord(text[error.start]):04X}, half of a surrogate pair, "
            "which is no character: replace it, for example by U+FFFD"
        ) from None
