"""How many workers to invite to a step, where other programs want the cores too.

A step of one token reads memory that one thread nearly exhausts, and cannot end before its slowest thread. So a worker
whose core is taken away in the middle can cost more than it helps. Where threads wait for one that does not run,
a few steps with one worker less are tried; whatever is tried stays only if the steps were faster.
"""

from __future__ import annotations

from collections import deque

CROWDED = 8
"""Naps of a step, of 70 microseconds or more each, that threads took waiting for one that was not running."""

TWICE = 2
"""So many crowded steps, of PATIENCE, before something is tried: one may be chance."""

TRIAL = 4
"""Steps of a trial, whose mean time is held against that of as many or twice as many before it."""

PATIENCE, MOST_PATIENCE = 32, 512
"""Steps before the next trial; twice as many each time that one was in vain."""


class Crowding:
    """Decides how many of `workers` threads beside the caller are invited to the next step."""

    def __init__(self, workers: int) -> None:
        self._workers = self.invited = workers
        self._seconds: deque[float] = deque(maxlen=2 * TRIAL)
        self._before: tuple[int, float] | None = None
        self._crowded = self._steps = 0
        self._patience, self._wait = PATIENCE, TRIAL

    def note(self, naps: int, seconds: float) -> None:
        """What the step before was like."""
        self._seconds.append(seconds)
        self._steps += 1
        if self._before is not None:
            self._judge(*self._before)
            return
        self._crowded += naps >= CROWDED
        if self._steps >= self._wait and self._crowded >= TWICE and self.invited:
            self._try(self.invited - 1)
        elif self._steps >= max(self._wait, PATIENCE) and self.invited < self._workers:
            self._try(self.invited + 1)
        elif self._steps % PATIENCE == 0:
            self._crowded = 0

    def _try(self, invited: int) -> None:
        self._before = self.invited, sum(self._seconds) / len(self._seconds)
        self.invited = invited
        self._seconds.clear()

    def _judge(self, invited: int, seconds: float) -> None:
        """After a trial: back to what was before, if it was no faster."""
        if len(self._seconds) < TRIAL:
            return
        if sum(self._seconds) / len(self._seconds) < seconds:
            self._patience = PATIENCE
        else:
            self.invited = invited
            self._seconds.clear()
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        self._wait, self._before = self._patience, None
        self._crowded = self._steps = 0
