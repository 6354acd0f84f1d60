"""Normalizers: what is done to the text before it is cut into words."""

from __future__ import annotations

import unicodedata
from typing import Literal, Protocol

from .aligned import Aligned
from .fields import Fields
from .patterns import Pattern

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]


class Normalizer(Protocol):
    """A change of the text; `aligned` is the same change for those who ask for offsets."""

    def apply(self, text: str) -> str:
        """The normalized text."""

    def aligned(self, piece: Aligned) -> Aligned:
        """The normalized text with the places of its characters."""


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
        return Aligned(text, [(0, 0)] * len(text)).replaced(self.pattern.matches(text), self.content).text

    def aligned(self, piece: Aligned) -> Aligned:
        """The same, with places."""
        return piece.replaced(self.pattern.matches(piece.text), self.content)


class UnicodeForm:
    """One of the four normalization forms of Unicode (UAX #15)."""

    def __init__(self, form: Form) -> None:
        self.form: Form = form

    def apply(self, text: str) -> str:
        """`e` and an accent -> `é` under NFC."""
        return unicodedata.normalize(self.form, text)

    def aligned(self, piece: Aligned) -> Aligned:
        """The same, with places."""
        return piece


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
        case "NFC" | "NFD" | "NFKC" | "NFKD" as form:
            return UnicodeForm(form)
        case "Prepend":
            return Prepend(fields)
        case "Replace":
            return Replace(fields)
        case "Sequence":
            return Sequence([read(part) for part in fields.parts("normalizers")])
    raise fields.unsupported("normalizer", KINDS)
