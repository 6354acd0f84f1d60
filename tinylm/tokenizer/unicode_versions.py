"""Which code points the `tokenizers` library does not know yet, so that ids are the same with any Python.

A letter that came with a newer Unicode is a letter to a new `regex` module and not to the library, and the
models were trained with the latter.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from itertools import accumulate

from .unicode_ranges import LEFT_ALONE, UNASSIGNED

STAND_IN = "\u0378"
"""A code point that no version of Unicode assigns."""

_MOVED = {"\u0295": "\u0250"}
"""Letters that changed between lower case and none after Unicode 16.0; each with one that did not."""


@cache
def _edges(ranges: str) -> list[int]:
    """Where ranges begin and end in turn; a code point is inside if an odd number of edges is not above it."""
    return [*accumulate(int(number, 16) for number in ranges.replace("+", " ").split())]


def _inside(character: str, ranges: str) -> bool:
    return bisect_right(_edges(ranges), ord(character)) % 2 == 1


def as_unicode_16(text: str, known: str = "") -> str:
    """The text with what Unicode 16.0 does not assign, and is not in `known`, as a code point that nobody knows.

    A pattern that is matched against it sees what the library sees. Its length is that of the text.
    """
    if text.isascii():
        return text
    changes = {}
    for character in set(text).difference(known):
        if character > "\x7f":
            if character in _MOVED:
                changes[ord(character)] = _MOVED[character]
            elif _inside(character, UNASSIGNED):
                changes[ord(character)] = STAND_IN
    return text.translate(changes) if changes else text


def unknown_to_forms(text: str) -> set[str]:
    """The characters of a text that the library's normalization forms leave alone."""
    characters = {character for character in set(text) if character > "\x7f"}
    return {
        character
        for character in characters
        if _inside(character, UNASSIGNED) or _inside(character, LEFT_ALONE)
    }
