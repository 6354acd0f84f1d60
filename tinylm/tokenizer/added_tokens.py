"""Added tokens: strings that are cut out of the text before anything else sees it.

The rules are those of the `tokenizers` library. Tokens with `normalized: false` are looked for in the raw
text, then the others, themselves normalized, in the normalized rest; each time the leftmost match wins and
of those the longest. `single_word` refuses a match that touches a letter or digit, `lstrip` and `rstrip`
take in the white space beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import regex

from .aligned import Span
from .fields import Fields

DEEPEST = 30
"""How many groups of a pattern may stand in each other: Python's compiler of patterns is recursive."""

_WORD_CHARACTER = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")
_SPACES_BEFORE = regex.compile(r"(?r)\s*")
_SPACES_AFTER = regex.compile(r"\s*")


@dataclass(frozen=True)
class AddedToken:
    """A token beside the model's vocabulary."""

    id: int
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool

    @classmethod
    def read(cls, fields: Fields) -> AddedToken:
        """An entry of `added_tokens`; flags that are missing are false."""
        special = fields.flag("special", False)
        return cls(
            id=fields.count("id"),
            content=fields.text("content"),
            single_word=fields.flag("single_word", False),
            lstrip=fields.flag("lstrip", False),
            rstrip=fields.flag("rstrip", False),
            normalized=fields.flag("normalized", not special),
            special=special,
        )


class Cutter:
    """Finds some added tokens in a text; each stands there as its `spelling`."""

    def __init__(self, spellings: Iterable[tuple[str, AddedToken]]) -> None:
        self.tokens: dict[str, AddedToken] = {}
        for spelling, token in spellings:
            if spelling:
                self.tokens.setdefault(spelling, token)
        pattern = f"({longest_of(list(self.tokens))})" if self.tokens else None
        self._pattern = None if pattern is None else re.compile(pattern)
        self.plain = not any(t.single_word or t.lstrip or t.rstrip for t in self.tokens.values())
        """Whether a match needs no look at what stands beside it, so that `split` is right."""

    def split(self, text: str) -> list[str]:
        """Text and tokens in turn, text first and last, where `plain`."""
        return [text] if self._pattern is None else self._pattern.split(text)

    def cut(self, text: str) -> list[tuple[AddedToken | None, Span]]:
        """The whole text as spans, each an added token or None."""
        parts: list[tuple[AddedToken | None, Span]] = []
        done = spaces = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            token = self.tokens[match[0]]
            start, end = match.span()
            if token.single_word and (
                (start and _WORD_CHARACTER.match(text[start - 1])) or _WORD_CHARACTER.match(text, end)
            ):
                continue
            if token.lstrip:
                start = _SPACES_BEFORE.match(text, done, start).start() if done < start else done
            if token.rstrip:
                # In a long run of spaces that are tokens, each would look at all the rest again.
                spaces = end = spaces if end < spaces else _SPACES_AFTER.match(text, end).end()
            if done < start:
                parts.append((None, (done, start)))
            # As in the library, the space that `rstrip` takes may be a token again, unless `lstrip` leaves
            # nothing of it.
            if start < end:
                parts.append((token, (start, end)))
            done = end
        if done < len(text):
            parts.append((None, (done, len(text))))
        return parts


def longest_of(strings: list[str], depth: int = 0) -> str:
    """A pattern that matches the longest of some distinct strings; each alternative begins with a character.

    Such alternatives let the `re` module skip quickly to where a match can begin.
    """
    if depth > DEEPEST:
        return "|".join(re.escape(string) for string in sorted(strings, key=len, reverse=True))
    groups = groupby(sorted(strings), key=lambda string: string[0])
    return "|".join(_of_one_beginning(list(group), depth) for _, group in groups)


def _of_one_beginning(strings: list[str], depth: int) -> str:
    """The pattern of strings that begin with the same character."""
    first = strings[0][0]
    runs = [string for string in strings if string.count(first) == len(string)]
    if len(runs) > 2:
        # Runs of one character, hundreds long, would be hundreds of groups. A run that goes on with
        # something else is longer than any run that can match there: it is tried first.
        others = [string for string in strings if string.count(first) != len(string)]
        return "|".join(
            ([_of_one_beginning(others, depth)] if others else []) + _of_runs(first, map(len, runs))
        )
    # All lie between the first and the last in order, so these two share no more than all do.
    length = next(
        (n for n, (a, b) in enumerate(zip(min(strings), max(strings), strict=False)) if a != b), None
    )
    beginning = min(strings)[:length]
    rest = [string[len(beginning) :] for string in strings if string != beginning]
    if not rest:
        return re.escape(beginning)
    return f"{re.escape(beginning)}(?:{longest_of(rest, depth + 1)}){'?' if len(rest) < len(strings) else ''}"


def _of_runs(character: str, lengths: Iterable[int]) -> list[str]:
    """The patterns of runs of these lengths, the longest first."""
    ordered = sorted(lengths)
    escaped = re.escape(character)
    ranges: list[list[int]] = []
    for length in ordered:
        if ranges and ranges[-1][-1] == length - 1:
            ranges[-1][-1] = length
        else:
            ranges.append([length, length])
    return [f"{escaped}{escaped}{{{low - 1},{high - 1}}}" for low, high in reversed(ranges)]
