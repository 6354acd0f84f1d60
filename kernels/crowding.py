"""Whether other programs want the cores too.

A step of one token cannot end before its slowest thread, and a core is taken away for as long as a whole step lasts. So
where threads wait for one that does not run, the next steps are those whose pieces whoever waits does again (`walk`).
These need more memory, and what is done twice is done in vain where the other was only slow; so not always.
"""

from __future__ import annotations

CROWDED = 8
"""Naps of a step, of 70 microseconds or more each, that threads took waiting for one that was not running."""

TWICE = 2
"""So many crowded steps, of PATIENCE, before pieces are done again: one may be chance."""

CALM = 24
"""Pieces that are done again in PATIENCE steps of quiet threads, at most: 3 to 14 were measured, beside a busy
process 50."""

PATIENCE = 32
"""Steps after which is counted anew."""


class Crowding:
    """Decides whether the next step of one token is `helping`."""

    def __init__(self) -> None:
        self.helping = False
        self._steps = self._count = 0

    def note(self, naps: int, helps: int) -> None:
        """What the step before was like: how often a thread slept, and how often one did a piece again."""
        self._steps += 1
        self._count += helps if self.helping else naps >= CROWDED
        if not self.helping and self._count >= TWICE:
            self._become(True)
        elif self._steps == PATIENCE:
            self._become(self.helping and self._count > CALM)

    def _become(self, helping: bool) -> None:
        self.helping = helping
        self._steps = self._count = 0
