"""Patterns of tokenizer.json: plain strings and regular expressions."""

from __future__ import annotations

from typing import Any

import regex

from tinylm.errors import TokenizerError

from .aligned import Span
from .expressions import Translation
from .fields import Fields, show
from .unicode_versions import as_unicode_16

LONGEST_SEARCH = 20.0
"""Seconds after which an expression that may run away is given up."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How GPT-2 cuts text into words: https://github.com/openai/gpt-2/blob/master/src/encoder.py"""


class Pattern:
    """A compiled pattern; it sees Unicode 16.0 and the characters of `known`."""

    def __init__(self, source: str, where: str, known: str = "") -> None:
        self.source = source
        self.where = where
        self.known = known
        try:
            translation = Translation(source)
            self._compiled: Any = regex.compile(translation.text, regex.V1 | regex.MULTILINE)
        except (ValueError, RecursionError, OverflowError, regex.error) as error:
            raise TokenizerError(
                f"{where}: the regular expression {show(source)} is not understood: {error}"
            ) from None
        # Looking at the clock makes the search three times slower.
        self._limits = {"timeout": LONGEST_SEARCH} if translation.may_run_away else {}
        # Where a capturing group stands, `findall` gives the group and not the match.
        self._plain = self._compiled.groups == 0
        self.literal = ""
        """The text itself, where the pattern is no expression."""

    @classmethod
    def read(cls, fields: Fields) -> Pattern:
        """The pattern of a part, `{"String": text}` or `{"Regex": expression}`."""
        pattern = fields.inner("pattern")
        if "Regex" in pattern.values:
            return cls(pattern.text("Regex"), f"{pattern.where}.Regex")
        if "String" in pattern.values:
            return cls.of_text(pattern.text("String"), f"{pattern.where}.String")
        found = ", ".join(pattern.values) or "nothing"
        raise TokenizerError(f"{pattern.where} holds {found}; it must hold String or Regex")

    @classmethod
    def of_text(cls, text: str, where: str) -> Pattern:
        """The pattern that matches just this text."""
        pattern = cls("".join(f"\\x{{{ord(character):x}}}" for character in text), where, known=text)
        pattern.literal = text
        return pattern

    def words(self, text: str) -> list[str] | None:
        """The matches in order if together they are the whole text, else None."""
        seen = as_unicode_16(text, self.known)
        if not self._plain or seen is not text:
            return None
        try:
            words: list[str] = self._compiled.findall(text, **self._limits)
        except TimeoutError:
            raise self._endless(text) from None
        return words if sum(map(len, words)) == len(text) else None

    def matches(self, text: str) -> list[Span]:
        """Where the pattern matches, leftmost first; an empty match never touches the one before it."""
        found: list[Span] = []
        if not text:
            return found
        end = -1
        try:
            for match in self._compiled.finditer(as_unicode_16(text, self.known), **self._limits):
                span: Span = match.span()
                if span != (end, end):
                    found.append(span)
                end = span[1]
        except TimeoutError:
            raise self._endless(text) from None
        return found

    def replace(self, text: str, content: str) -> str:
        """The text with each match replaced by a content, literally."""
        if self.literal:
            return text.replace(self.literal, content)
        parts = []
        done = 0
        for start, end in self.matches(text):
            parts += [text[done:start], content]
            done = end
        return "".join([*parts, text[done:]])

    def _endless(self, text: str) -> TokenizerError:
        return TokenizerError(
            f"{self.where}: the regular expression {show(self.source)} did not come to an end "
            f"in {LONGEST_SEARCH:.0f} seconds on {len(text)} characters"
        )
