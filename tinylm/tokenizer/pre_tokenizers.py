"""Pre-tokenizers: how the normalized text is cut into the words that byte pair encoding sees."""

from __future__ import annotations

from typing import Protocol

from tinylm.errors import TokenizerError

from .aligned import Aligned, Span
from .byte_alphabet import to_alphabet
from .fields import Fields
from .patterns import GPT2, Pattern

LATER_NUMBERS = "".join(map(chr, [*range(0x11DE0, 0x11DEA), *range(0x16FF4, 0x16FF7)]))
NUMERIC = rf"[\p{{N}}{LATER_NUMBERS}]"
"""What Digits calls a digit: the numbers of Unicode 17."""

PUNCTUATION = (
    r"[[!-/:-@\[-`{-~\x{166D}\x{111C9}\p{P}]&&[^"
    r"\x{61D}\x{9FD}\x{A76}\x{C77}\x{C84}\x{1B4E}-\x{1B4F}\x{1B7D}-\x{1B7F}\x{2E43}-\x{2E4F}"
    r"\x{2E52}-\x{2E5D}\x{10D6E}\x{10EAD}\x{10F55}-\x{10F59}\x{10F86}-\x{10F89}"
    r"\x{113D4}-\x{113D5}\x{113D7}-\x{113D8}\x{1144B}-\x{1144F}\x{1145A}-\x{1145B}\x{1145D}"
    r"\x{11660}-\x{1166C}\x{116B9}\x{1183B}\x{11944}-\x{11946}\x{119E2}\x{11A3F}-\x{11A46}"
    r"\x{11A9A}-\x{11A9C}\x{11A9E}-\x{11AA2}\x{11B00}-\x{11B09}\x{11BE1}\x{11C41}-\x{11C45}"
    r"\x{11C70}-\x{11C71}\x{11EF7}-\x{11EF8}\x{11F43}-\x{11F4F}\x{11FFF}\x{12FF1}-\x{12FF2}"
    r"\x{16D6D}-\x{16D6F}\x{16E97}-\x{16E9A}\x{16FE2}\x{1E5FF}\x{1E95E}-\x{1E95F}"
    r"]]"
)
"""What Punctuation cuts at: the punctuation of ASCII and of Unicode 8.0."""

WORD_OR_SIGNS = "[{0}]+|[^{0}\\s]+".format(r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}")
"""What Whitespace calls a word."""


class PreTokenizer(Protocol):
    """A way of cutting; `aligned` is the same for those who ask for offsets."""

    def words(self, text: str, at_start: bool = False) -> list[str]:
        """The words of a text; `at_start` if the original text begins with it."""

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

    def words(self, text: str, at_start: bool = False) -> list[str]:
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

    def words(self, text: str, at_start: bool = False) -> list[str]:
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


class Metaspace:
    """Writes spaces as a visible character, puts one in front of the text, and cuts before each."""

    def __init__(self, fields: Fields) -> None:
        self.space, self.scheme, self.splits = read_scheme(fields)
        self._split = Split(Pattern.of_text(self.space, fields.where), "MergedWithNext")

    def words(self, text: str, at_start: bool = False) -> list[str]:
        """`Hello world` -> `▁Hello`, `▁world`."""
        text = text.replace(" ", self.space)
        if (self.scheme == "always" or (self.scheme == "first" and at_start)) and not text.startswith(
            self.space
        ):
            text = self.space + text
        return self._split.words(text) if self.splits else [text]

    def aligned(self, piece: Aligned) -> list[Aligned]:
        """The same, with places."""
        piece = piece.mapped(piece.text.replace(" ", self.space))
        prepends = self.scheme == "always" or (self.scheme == "first" and piece.origin == 0)
        if prepends and not piece.text.startswith(self.space):
            piece = piece.prepended(self.space)
        return self._split.aligned(piece) if self.splits else [piece]


def read_scheme(fields: Fields) -> tuple[str, str, bool]:
    """A Metaspace's character, when it is put in front (always, first, never), and whether it cuts."""
    prefixes = fields.flag("add_prefix_space", True)
    scheme = fields.choice("prepend_scheme", ("always", "first", "never"), "always" if prefixes else "never")
    if not prefixes and scheme != "never":
        raise TokenizerError(f"{fields.where}.prepend_scheme is {scheme!r}, but add_prefix_space is false")
    return fields.character("replacement"), scheme, fields.flag("split", True)


class Sequence:
    """Each pre-tokenizer cuts the words of the one before."""

    def __init__(self, parts: list[PreTokenizer]) -> None:
        self.parts = parts

    def words(self, text: str, at_start: bool = False) -> list[str]:
        """The words."""
        words = [text]
        for part in self.parts:
            words = [inner for word in words for inner in part.words(word, at_start)]
            at_start = False
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
        case "Digits":
            behavior = "Isolated" if fields.flag("individual_digits") else "Contiguous"
            return Split(Pattern(NUMERIC, fields.where, known=LATER_NUMBERS), behavior)
        case "Metaspace":
            return Metaspace(fields)
        case "Punctuation":
            behavior = fields.choice("behavior", Split.BEHAVIORS, "Isolated")
            return Split(Pattern(PUNCTUATION, fields.where), behavior)
        case "Whitespace":
            return Split(Pattern(WORD_OR_SIGNS, fields.where), "Removed", invert=True)
        case "Split":
            pattern = Pattern.read(fields)
            return Split(pattern, fields.choice("behavior", Split.BEHAVIORS), fields.flag("invert"))
        case "Sequence":
            return Sequence([read(part) for part in fields.parts("pretokenizers")])
    raise fields.unsupported("pre-tokenizer", KINDS)


def flat(pre_tokenizer: PreTokenizer | None) -> list[PreTokenizer]:
    """The pre-tokenizers of a sequence and of the sequences in it."""
    if isinstance(pre_tokenizer, Sequence):
        return [inner for part in pre_tokenizer.parts for inner in flat(part)]
    return [] if pre_tokenizer is None else [pre_tokenizer]


def leave_bytes_to_model(pre_tokenizer: PreTokenizer | None) -> bool:
    """Whether the model is to take its words as bytes: where the last pre-tokenizer would spell them."""
    last = flat(pre_tokenizer)[-1:]
    for part in last:
        if isinstance(part, ByteLevel):
            part.spelled = False
            return True
    return False


def asks_for_places(pre_tokenizer: PreTokenizer | None, normalizes: bool) -> bool:
    """Whether only `aligned` knows what begins the original text, which matters to a Metaspace."""
    parts = flat(pre_tokenizer)
    firsts = [isinstance(part, Metaspace) and part.scheme == "first" for part in parts]
    return any(firsts if normalizes else firsts[1:])
