"""Pre-tokenizers: how the normalized text is cut into the words that byte pair encoding sees."""

from __future__ import annotations

from typing import Protocol

from .aligned import Aligned, Span
from .byte_alphabet import to_alphabet
from .fields import Fields
from .patterns import GPT2, Pattern


class PreTokenizer(Protocol):
    """A way of cutting; `aligned` is the same for those who ask for offsets."""

    def words(self, text: str) -> list[str]:
        """The words of a text."""

    def aligned(self, piece: Aligned) -> list[Aligned]:
        """The words with the places of their characters."""


class ByteLevel:
    """Cuts as GPT-2 does and writes each byte as a character of the byte-level alphabet.

    The last pre-tokenizer leaves that writing to the model, which works on bytes: `spelled` is False.
    """

    def __init__(self, fields: Fields) -> None:
        self.prefix_space = fields.flag("add_prefix_space")
        self.pattern = Pattern(GPT2, fields.where) if fields.flag("use_regex", True) else None
        self.spelled = True

    def words(self, text: str) -> list[str]:
        """`Hello world` -> `Hello`, ` world`, in the alphabet if it is to be spelled."""
        if self.prefix_space and not text.startswith(" "):
            text = f" {text}"
        words = [text] if self.pattern is None else isolated(self.pattern, text)
        return [to_alphabet(word) for word in words] if self.spelled else words

    def aligned(self, piece: Aligned) -> list[Aligned]:
        """The same, with places."""
        if self.prefix_space and not piece.text.startswith(" "):
            piece = piece.prepended(" ")
        matches = [] if self.pattern is None else self.pattern.matches(piece.text)
        words = [piece.cut(*span) for span, _ in covered(matches, len(piece.text))]
        return [word.mapped(map(to_alphabet, word.text)) for word in words] if self.spelled else words


class Split:
    """Cuts at the matches of a pattern; the behaviour says where the matches themselves go."""

    BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")

    def __init__(self, pattern: Pattern, behavior: str, invert: bool = False) -> None:
        self.pattern = pattern
        self.behavior = behavior
        self.invert = invert

    def words(self, text: str) -> list[str]:
        """The words; a text that is all matches, as most are, takes the short way."""
        if self.behavior == "Isolated" or (self.behavior == "Removed" and self.invert):
            words = self.pattern.words(text)
            if words is not None:
                return words
        return [text[start:end] for start, end in self.spans(text)]

    def aligned(self, piece: Aligned) -> list[Aligned]:
        """The same, with places."""
        return [piece.cut(start, end) for start, end in self.spans(piece.text)]

    def spans(self, text: str) -> list[Span]:
        """Where the words are; none is empty."""
        parts = covered(self.pattern.matches(text), len(text))
        if self.invert:
            parts = [(span, not matched) for span, matched in parts]
        return [(start, end) for start, end in divided(parts, self.behavior) if start < end]


class Sequence:
    """Each pre-tokenizer cuts the words of the one before."""

    def __init__(self, parts: list[PreTokenizer]) -> None:
        self.parts = parts

    def words(self, text: str) -> list[str]:
        """The words."""
        words = [text]
        for part in self.parts:
            words = [inner for word in words for inner in part.words(word)]
        return words

    def aligned(self, piece: Aligned) -> list[Aligned]:
        """The same, with places."""
        pieces = [piece]
        for part in self.parts:
            pieces = [inner for piece in pieces for inner in part.aligned(piece)]
        return pieces


def isolated(pattern: Pattern, text: str) -> list[str]:
    """Matches and what lies between them, each a word of its own."""
    words = pattern.words(text)
    if words is not None:
        return words
    return [text[start:end] for (start, end), _ in covered(pattern.matches(text), len(text)) if start < end]


def covered(matches: list[Span], length: int) -> list[tuple[Span, bool]]:
    """All of a text of a length as spans, with whether each is a match."""
    parts = []
    done = 0
    for start, end in matches:
        if done < start:
            parts.append(((done, start), False))
        parts.append(((start, end), True))
        done = end
    if done < length:
        parts.append(((done, length), False))
    return parts


def divided(parts: list[tuple[Span, bool]], behavior: str) -> list[Span]:
    """The words that a behaviour makes of matches and gaps."""
    if behavior == "Removed":
        return [span for span, matched in parts if not matched]
    if behavior == "MergedWithNext":
        mirrored = [((-end, -start), matched) for (start, end), matched in reversed(parts)]
        return [(-end, -start) for start, end in reversed(divided(mirrored, "MergedWithPrevious"))]
    words: list[Span] = []
    previous = False
    for (start, end), matched in parts:
        joins = {
            "Isolated": False,
            "Contiguous": matched == previous,
            "MergedWithPrevious": matched and not previous,
        }[behavior]
        if joins and words:
            words[-1] = (words[-1][0], end)
        else:
            words.append((start, end))
        previous = matched
    return words


KINDS = ("ByteLevel", "Digits", "Metaspace", "Punctuation", "Sequence", "Split", "Whitespace")


def read(fields: Fields) -> PreTokenizer:
    """The pre-tokenizer of a tokenizer.json."""
    match fields.text("type"):
        case "ByteLevel":
            return ByteLevel(fields)
        case "Split":
            pattern = Pattern.read(fields)
            return Split(pattern, fields.choice("behavior", Split.BEHAVIORS), fields.flag("invert"))
        case "Sequence":
            return Sequence([read(part) for part in fields.parts("pretokenizers")])
    raise fields.unsupported("pre-tokenizer", KINDS)


def last_part(pre_tokenizer: PreTokenizer | None) -> PreTokenizer | None:
    """The pre-tokenizer whose words the model gets."""
    while isinstance(pre_tokenizer, Sequence):
        pre_tokenizer = pre_tokenizer.parts[-1] if pre_tokenizer.parts else None
    return pre_tokenizer
