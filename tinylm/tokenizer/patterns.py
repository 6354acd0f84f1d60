"""Patterns of tokenizer.json: plain strings, and regular expressions of the Oniguruma kind."""

from __future__ import annotations

from typing import Any

import regex

from tinylm.errors import TokenizerError

from .aligned import Span
from .fields import Fields, show

LONGEST_SEARCH = 30.0
"""Seconds after which a regular expression that does not come to an end is given up."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How GPT-2 cuts text into words: https://github.com/openai/gpt-2/blob/master/src/encoder.py"""


class Pattern:
    """A compiled pattern."""

    def __init__(self, source: str, where: str) -> None:
        self.source = source
        self.where = where
        try:
            self._compiled: Any = regex.compile(source, regex.V1 | regex.MULTILINE)
        except (regex.error, RecursionError, OverflowError) as error:
            raise TokenizerError(f"{where}: the regular expression {show(source)} is not understood: {error}") from None
        # Where a capturing group stands, `findall` gives the group and not the match.
        self._plain = self._compiled.groups == 0

    @classmethod
    def read(cls, fields: Fields) -> Pattern:
        """The pattern of a part, `{"String": text}` or `{"Regex": expression}`."""
        pattern = fields.inner("pattern")
        if "Regex" in pattern.values:
            return cls(pattern.text("Regex"), f"{pattern.where}.Regex")
        if "String" in pattern.values:
            return cls(regex.escape(pattern.text("String"), literal_spaces=True), f"{pattern.where}.String")
        found = ", ".join(pattern.values) or "nothing"
        raise TokenizerError(f"{pattern.where} holds {found}; it must hold String or Regex")

    def words(self, text: str) -> list[str] | None:
        """The matches in order if together they are the whole text, else None."""
        if not self._plain:
            return None
        try:
            words: list[str] = self._compiled.findall(text, timeout=LONGEST_SEARCH)
        except TimeoutError:
            raise self._endless(text) from None
        return words if sum(map(len, words)) == len(text) else None

    def matches(self, text: str) -> list[Span]:
        """Where the pattern matches, leftmost first; an empty match never touches the one before it."""
        found: list[Span] = []
        end = -1
        try:
            for match in self._compiled.finditer(text, timeout=LONGEST_SEARCH):
                span: Span = match.span()
                if span != (end, end):
                    found.append(span)
                end = span[1]
        except TimeoutError:
            raise self._endless(text) from None
        return found

    def _endless(self, text: str) -> TokenizerError:
        return TokenizerError(
            f"{self.where}: the regular expression {show(self.source)} did not come to an end "
            f"in {LONGEST_SEARCH:.0f} seconds on {len(text)} characters"
        )
