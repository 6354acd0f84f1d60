"""Post-processors: special tokens around the ids, and spaces trimmed off the offsets."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from tinylm.errors import TokenizerError

from .aligned import Span
from .byte_alphabet import ALPHABET
from .fields import Fields, show

KINDS = ("ByteLevel", "Sequence", "TemplateProcessing")
_SPACE = ALPHABET[ord(" ")]


@dataclass
class Encoding:
    """Ids with their tokens and, for each, the span of the original text's characters that it stands for."""

    ids: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    offsets: list[Span] = field(default_factory=list)


@dataclass(frozen=True)
class Special:
    """Tokens that a template writes where the text is not."""

    ids: tuple[int, ...]
    tokens: tuple[str, ...]


Template = list[Special | None]
"""What stands in which order; None is the text."""


class Trim:
    """ByteLevel with `trim_offsets`: white space at the ends of a token is not part of its span."""

    def __init__(self, fields: Fields) -> None:
        self.prefix_space = fields.flag("add_prefix_space")

    def apply(self, encoding: Encoding) -> None:
        """Trim in place."""
        for place, (token, (start, end)) in enumerate(zip(encoding.tokens, encoding.offsets, strict=True)):
            leading = leading_spaces(token)
            trailing = leading_spaces(token[::-1])
            if leading == 1 and self.prefix_space and (place == 0 or start == 0):
                leading = 0
            if leading:
                start = min(start + leading, end)
            if trailing and end >= trailing:
                end = max(end - trailing, start)
            encoding.offsets[place] = (start, end)


def leading_spaces(token: str) -> int:
    """How many characters at the beginning are white space, in the byte-level alphabet or out of it."""
    return next((n for n, c in enumerate(token) if c != _SPACE and not c.isspace()), len(token))


class PostProcessor:
    """What is done to the ids of a text."""

    def __init__(self, fields: Fields | None, vocabulary: Collection[int]) -> None:
        self._trims: list[Trim] = []
        self._template: Template | None = None
        if fields is not None:
            self._read(fields, vocabulary)
        template: Template = self._template or [None]
        text = template.index(None) if None in template else len(template)
        self._plain = template.count(None) == 1
        self._before = [id for part in template[:text] if part is not None for id in part.ids]
        self._after = [id for part in template[text:] if part is not None for id in part.ids]

    def ids(self, ids: list[int], add_special_tokens: bool) -> list[int]:
        """The ids with the special ones around."""
        if self._plain:
            return [*self._before, *ids, *self._after] if add_special_tokens else ids
        return self._filled(Encoding(ids, [""] * len(ids), [(0, 0)] * len(ids)), add_special_tokens).ids

    def apply(self, encoding: Encoding, add_special_tokens: bool) -> Encoding:
        """The encoding with its offsets trimmed and the special tokens around."""
        for trim in self._trims:
            trim.apply(encoding)
        return self._filled(encoding, add_special_tokens)

    def _filled(self, encoding: Encoding, add_special_tokens: bool) -> Encoding:
        """The template with an encoding in the places of the text."""
        if self._template is None:
            return encoding
        whole = Encoding()
        for part in self._template:
            if part is None:
                whole.ids += encoding.ids
                whole.tokens += encoding.tokens
                whole.offsets += encoding.offsets
            elif add_special_tokens:
                whole.ids += part.ids
                whole.tokens += part.tokens
                whole.offsets += [(0, 0)] * len(part.ids)
        return whole

    def _read(self, fields: Fields, vocabulary: Collection[int]) -> None:
        match fields.text("type"):
            case "ByteLevel":
                if fields.flag("trim_offsets"):
                    self._trims.append(Trim(fields))
            case "TemplateProcessing":
                if self._template is not None:
                    raise TokenizerError(
                        f"{fields.where}: there is a template already, and only one is supported"
                    )
                self._template = read_template(fields, vocabulary)
            case "Sequence":
                for part in fields.parts("processors"):
                    self._read(part, vocabulary)
            case _:
                raise fields.unsupported("post-processor", KINDS)


def read_template(fields: Fields, vocabulary: Collection[int]) -> Template:
    """The template of a single text."""
    specials = fields.inner("special_tokens")
    template: Template = []
    for part in fields.parts("single"):
        if "Sequence" in part.values:
            if part.inner("Sequence").choice("id", ("A", "B")) == "B":
                raise TokenizerError(
                    f"{part.where} asks for a second text; the template of a single one has none"
                )
            template.append(None)
            continue
        name = part.inner("SpecialToken").text("id")
        if name not in specials.values:
            raise TokenizerError(f"{part.where} names {show(name)}, which {specials.where} does not hold")
        special = specials.inner(name)
        ids = special.entries("ids")
        tokens = special.entries("tokens")
        for id in ids:
            if type(id) is not int or id not in vocabulary:
                raise TokenizerError(f"{special.where}.ids holds {show(id)}, which is the id of no token")
        if len(ids) != len(tokens) or not all(type(token) is str for token in tokens):
            raise TokenizerError(f"{special.where} must hold as many tokens, all strings, as ids")
        template.append(Special(tuple(ids), tuple(tokens)))  # type: ignore[arg-type]
    return template
