"""The four normalization forms of Unicode (UAX #15), as the `tokenizers` library computes them.

It knows an older Unicode than Python does: characters that it leaves alone stand apart, and what is between
them is normalized for itself. That is exact, because a character without a decomposition and with combining
class 0 never mixes with its neighbours.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Literal

import regex

from .aligned import Aligned, Span
from .unicode_versions import unknown_to_forms

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]

Change = tuple[str, int]
"""A character of the normalized text and what it uses up of the text before: 0 takes one character, 1 none
(it belongs to the one before), -n one and n more."""

_BESIDE_ASCII = regex.compile(r"[\x00-\x7f]?[^\x00-\x7f]+")


def normalize(form: Form, text: str) -> str:
    """The text in a form."""
    if text.isascii():
        return text
    normalized = unicodedata.normalize(form, text)
    if normalized == text:
        return text
    alone = unknown_to_forms(text)
    if not alone:
        return normalized
    parts = regex.split(f"([{regex.escape(''.join(alone))}])", text)
    return "".join(part if part in alone else unicodedata.normalize(form, part) for part in parts)


def aligned(form: Form, piece: Aligned) -> Aligned:
    """A piece in a form, with the places of its characters."""
    if normalize(form, piece.text) == piece.text:
        return piece
    alone = unknown_to_forms(piece.text)
    text = ""
    spans: list[Span] = []
    done = 0
    # ASCII characters change only with what follows them.
    for match in _BESIDE_ASCII.finditer(piece.text):
        start, end = match.span()
        text += piece.text[done:start]
        spans += piece.spans[done:start]
        place = start
        changes = decomposed(form, match[0], alone)
        for character, change in recomposed(changes, alone) if form in {"NFC", "NFKC"} else changes:
            text += character
            spans.append(piece.spans[place - 1 if change > 0 else place])
            place += 0 if change > 0 else 1 - change
        done = end
    return Aligned(text + piece.text[done:], spans + piece.spans[done:], piece.origin)


def decomposed(form: Form, text: str, alone: set[str]) -> list[Change]:
    """The decomposition of a text: marks in the order of their combining classes, changes at their places."""
    apart: Form = "NFD" if form in {"NFC", "NFD"} else "NFKD"
    done: list[Change] = []
    marks: list[tuple[int, str, int]] = []
    for character in text:
        parts = character if character in alone else unicodedata.normalize(apart, character)
        for place, part in enumerate(parts):
            combining = 0 if part in alone else unicodedata.combining(part)
            if not combining:
                done += in_order(marks)
                marks = []
            marks.append((combining, part, 1 if place else 0))
    return done + in_order(marks)


def in_order(marks: list[tuple[int, str, int]]) -> list[Change]:
    """A starter and the marks after it, by combining class."""
    return [(character, change) for _, character, change in sorted(marks, key=lambda mark: mark[0])]


def recomposed(changes: list[Change], alone: set[str]) -> Iterator[Change]:
    """The canonical composition of a decomposition; a composite takes what its parts took."""
    starter: Change | None = None
    waiting: list[Change] = []
    last = -1  # combining class of the last mark that waits
    for character, change in changes:
        combining = 0 if character in alone else unicodedata.combining(character)
        if starter is None:
            if combining:
                yield character, change
            else:
                starter = character, change
            continue
        composite = None
        if combining > last and not (character in alone or starter[0] in alone):
            composite = composite_of(starter[0], character)
        if composite is not None:
            starter = composite, starter[1] + change - 1
        elif combining:
            waiting.append((character, change))
            last = combining
        else:
            yield starter
            yield from waiting
            starter, waiting, last = (character, change), [], -1
    if starter is not None:
        yield starter
    yield from waiting


def composite_of(first: str, second: str) -> str | None:
    """The character that two characters compose to, if there is one."""
    composite = unicodedata.normalize("NFC", first + second)
    if len(composite) != 1:
        return None
    parts = unicodedata.decomposition(composite)
    if not parts:  # a Hangul syllable
        return composite
    return composite if parts == f"{ord(first):04X} {ord(second):04X}" else None
