"""How fast the team reads memory: the limit of decoding, which reads every weight once a token."""

from __future__ import annotations

import time

import numpy as np

from tinylm.kernels.jit import njit, operation
from tinylm.kernels.operands import int64_1d
from tinylm.kernels.streams import AHEAD, ask_ahead
from tinylm.kernels.team import Team
from tinylm.kernels.walk import single

BLOCK = 2**15
"""int64 in a unit of work: 256 KiB."""

PART = 2**9
"""int64 that are asked for together, where the processor likes that: a page."""

SIZE = 2**28
"""Bytes that are read in one pass: far more than a laptop's caches hold."""


def block_sums_reference(words):
    """`(n * BLOCK,) -> (n,)` int64: the sum of each block, modulo 2^64."""
    return words.reshape(-1, BLOCK).sum(axis=1)


@njit
def block_sums(words, sums, begin, end):
    """Blocks `begin` to `end` of `block_sums_reference` into `sums` (n,)."""
    for block in range(begin, end):
        total = np.int64(0)
        for first in range(block * BLOCK, (block + 1) * BLOCK, PART):
            part = words[first : first + PART]
            ask_ahead(part.ctypes.data + AHEAD, 8 * PART)
            for i in range(PART):  # over the array itself it would be a word at a time, slower than memory
                total += part[i]
        sums[block] = total


@operation
def block_sums_operation(operands, begin, end):
    """words (2), sums (2)."""
    block_sums(int64_1d(operands, 0), int64_1d(operands, 2), begin, end)


class Bandwidth:
    """A buffer to read and the team that reads it.

    >>> 1e9 < Bandwidth(Team(1), size=2**24).measure() < 1e13
    True
    """

    def __init__(self, team: Team, size: int = SIZE) -> None:
        self._team = team
        self._words = np.ones(max(1, size // (8 * BLOCK)) * BLOCK, np.int64)
        self._sums = np.zeros(len(self._words) // BLOCK, np.int64)
        operands = [self._words.ctypes.data, len(self._words), self._sums.ctypes.data, len(self._sums)]
        self._table = single(block_sums_operation.address, len(self._sums), 1, operands)
        self._team.run(self._table)

    def measure(self, passes: int = 3) -> float:
        """Bytes a second, the median of some passes."""
        rates = []
        for _ in range(passes):
            started = time.perf_counter()
            self._team.run(self._table)
            rates.append(self._words.nbytes / (time.perf_counter() - started))
        return float(np.median(rates))
