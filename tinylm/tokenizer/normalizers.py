"""Normalizers: what is done to the text before it is cut into words."""

from __future__ import annotations

from typing import Protocol

from . import unicode_forms
from .aligned import Aligned
from .fields import Fields
from .patterns import Pattern

_LATER_CAPITALS = {0xA7CB: 0x264, 0xA7DC: 0x19B}
_LATER_CAPITALS |= {capital: capital + 1 for capital in (0x1C89, 0xA7CC, 0xA7CE, 0xA7D2, 0xA7D4, 0xA7DA)}
_LATER_CAPITALS |= {capital: capital + 0x20 for capital in range(0x10D50, 0x10D66)}
_LATER_CAPITALS |= {capital: capital + 0x1B for capital in range(0x16EA0, 0x16EB9)}
"""Capitals of Unicode 16 and 17, which older Pythons do not know, and their small letters."""


class Normalizer(Protocol):
    """A change of the text; `aligned` is the same change for those who ask for offsets."""

    def apply(self, text: str) -> str:
        """The normalized text."""

    def aligned(self, piece: Aligned) -> Aligned:
        """The normalized text with the places of its characters."""


class Lowercase:
    """Small letters, each character for itself: a final sigma is like any other."""

    def apply(self, text: str) -> str:
        """`Abc` -> `abc`."""
        if text.isascii():
            return text.lower()
        return text.replace("Σ", "σ").translate(_LATER_CAPITALS).lower()

    def aligned(self, piece: Aligned) -> Aligned:
        """The same, with places."""
        return piece.mapped(map(self.apply, piece.text))


class Prepend:
    """Puts a string in front of a text that is not empty."""

    def __init__(self, fields: Fields) -> None:
        self.content = fields.text("prepend")

    def apply(self, text: str) -> str:
        """`Hello` -> `▁Hello`."""
        return self.content + text if text else text

    def aligned(self, piece: Aligned) -> Aligned:
        """The same, with places."""
        return piece.prepended(self.content)


class Replace:
    """Replaces each match of a pattern by a string, literally."""

    def __init__(self, fields: Fields) -> None:
        self.pattern = Pattern.read(fields)
        self.content = fields.text("content")

    def apply(self, text: str) -> str:
        """`a b` -> `a▁b`."""
        return self.pattern.replace(text, self.content)

    def aligned(self, piece: Aligned) -> Aligned:
        """The same, with places."""
        return piece.replaced(self.pattern.matches(piece.text), self.content)


class Strip:
    """Takes white space off the ends."""

    def __init__(self, fields: Fields) -> None:
        self.left = fields.flag("strip_left")
        self.right = fields.flag("strip_right")

    def apply(self, text: str) -> str:
        """`  Hello ` -> `Hello`."""
        return self.aligned(Aligned.whole(text)).text

    def aligned(self, piece: Aligned) -> Aligned:
        """The same, with places."""
        text = piece.text
        end = len(text.rstrip(WHITE_SPACE)) if self.right else len(text)
        start = len(text) - len(text.lstrip(WHITE_SPACE)) if self.left else 0
        return Aligned(text[start:end], piece.spans[start:end], piece.origin)


WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
"""What Unicode calls white space; Python's `strip` takes four control characters more."""


class UnicodeForm:
    """One of the four normalization forms of Unicode."""

    def __init__(self, form: unicode_forms.Form) -> None:
        self.form: unicode_forms.Form = form

    def apply(self, text: str) -> str:
        """`e` and an accent -> `é` under NFC."""
        return unicode_forms.normalize(self.form, text)

    def aligned(self, piece: Aligned) -> Aligned:
        """The same, with places."""
        return unicode_forms.aligned(self.form, piece)


class Sequence:
    """Normalizers one after the other."""

    def __init__(self, parts: list[Normalizer]) -> None:
        self.parts = parts

    def apply(self, text: str) -> str:
        """All of them."""
        for part in self.parts:
            text = part.apply(text)
        return text

    def aligned(self, piece: Aligned) -> Aligned:
        """The same, with places."""
        for part in self.parts:
            piece = part.aligned(piece)
        return piece


KINDS = ("Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "Sequence", "Strip")


def read(fields: Fields) -> Normalizer:
    """The normalizer of a tokenizer.json."""
    match fields.text("type"):
        case "Lowercase":
            return Lowercase()
        case "NFC" | "NFD" | "NFKC" | "NFKD" as form:
            return UnicodeForm(form)
        case "Prepend":
            return Prepend(fields)
        case "Replace":
            return Replace(fields)
        case "Strip":
            return Strip(fields)
        case "Sequence":
            return Sequence([read(part) for part in fields.parts("normalizers")])
    raise fields.unsupported("normalizer", KINDS)
