"""Prompt lookup: guesses of the next tokens, copied from where the last ones stood before.

A text that quotes itself, or its prompt, goes on as it went on there. A step that reads the weights once can
judge several guessed tokens, so each right one is nearly free (Saxena 2023,
https://github.com/apoorvumang/prompt-lookup-decoding). Guesses decide how fast a text is written, not what
stands in it.
"""

from __future__ import annotations

from collections.abc import Iterable

MATCHED = 3
"""Tokens that must have stood together before. Two also match by chance: more guesses, fewer of them right."""

FIRST_GUESS = 3
"""Tokens of the first guess, and of those after a wrong one."""

LONGEST_PAUSE = 31
"""Steps without a guess, at most, after guesses that were wrong: text that repeats nothing costs 3 % more."""


class PromptLookup:
    """Guesses tokens of one text, and learns from each judgement how many are worth guessing.

    A guess is as long as twice what was right of the one before, and one more, from FIRST_GUESS to `longest`
    tokens. While guesses are wrong from their first token on, the pauses between them double.

    >>> lookup = PromptLookup([7, 1, 2, 3, 4, 5, 6, 1, 2, 3], longest=10)
    >>> lookup.guess(most=10)
    [4, 5, 6]
    """

    def __init__(self, ids: Iterable[int], longest: int) -> None:
        self._ids: list[int] = []
        # For each n-gram, the place of the token after its last occurrence.
        self._followers: dict[tuple[int, ...], int] = {}
        self._longest = longest
        self._length = min(longest, FIRST_GUESS)
        self._pause = self._failures = 0
        for token in ids:
            self.accept(token)

    def accept(self, token: int) -> None:
        """Take notice that this token follows."""
        place = len(self._ids)
        if place >= MATCHED:
            self._followers[tuple(self._ids[-MATCHED:])] = place
        self._ids.append(token)

    def guess(self, most: int) -> list[int]:
        """The tokens that may come next, at most `most`; none where nothing is known or guessing does not pay."""
        if self._pause:
            self._pause -= 1
            return []
        place = self._followers.get(tuple(self._ids[-MATCHED:]))
        length = min(most, self._length)
        if place is None or length < 1:
            return []
        copied = self._ids[place : place + length]
        # What reaches the end of the text repeats itself.
        return (copied * -(-length // len(copied)))[:length]

    def judge(self, guessed: int, right: int) -> None:
        """Learn how many of the tokens guessed last were right."""
        self._failures = 0 if right else self._failures + 1
        self._pause = min(LONGEST_PAUSE, 2**self._failures - 1)
        length = max(FIRST_GUESS, 2 * right + 1, self._length if right == guessed else 0)
        self._length = min(self._longest, length)
