"""Stop strings: the text is cut before the first of them, wherever the tokens' borders fall."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets text through piece by piece, never any part of a stop string.

    `push` and `finish` return what is certain to stay in the text. What could be the beginning of a
    stop string is held back until the next piece decides. The result does not depend on how the text
    is divided into pieces: the stop string that is complete first ends the text, and of several that
    are complete at the same character, the longest.

    >>> stop = StopStrings(["END"])
    >>> stop.push("one E"), stop.push("gg. EN"), stop.push("DING"), stop.stopped
    ('one ', 'Egg. ', '', True)
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = tuple(strings)
        self.stopped = False
        self._held = ""

    def push(self, piece: str) -> str:
        """The next piece of text -> the text that may be shown now."""
        if self.stopped:
            return ""
        if not self.strings:
            return piece
        text = self._held + piece
        ends = [(start + len(string), start) for string in self.strings if (start := text.find(string)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
        held = self._beginning(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back, once no more text can come."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """How many characters at the end of a text are the longest beginning of a stop string."""
        longest = max((len(string) for string in self.strings), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(string.startswith(text[len(text) - length :]) for string in self.strings):
                return length
        return 0
