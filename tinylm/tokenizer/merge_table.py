"""The merges as arrays, for the kernel that merges many words or very long ones.

NumPy and Numba are imported here alone, and when there is enough text to pay for it.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

Merged = tuple[list[int], list[int]]
"""Symbols after merging, and for each the symbol before merging at which it begins."""


class MergeTable:
    """The pairs of a model in the form of `tinylm.kernels.merge`."""

    def __init__(self, ranks: dict[int, int], merged: list[int]) -> None:
        import numpy as np

        from tinylm.kernels.merge import fill_table

        size = 1 << max(4, (2 * len(ranks)).bit_length())
        self._pairs: Any = np.full(size, -1, dtype=np.int64)
        self._ranks: Any = np.zeros(size, dtype=np.int32)
        self._merged: Any = np.array([*merged, 0], dtype=np.int32)
        known = np.full(len(merged), -1, dtype=np.int64)
        known[np.fromiter(ranks.values(), dtype=np.int64, count=len(ranks))] = np.fromiter(
            ranks.keys(), dtype=np.int64, count=len(ranks)
        )
        fill_table(known, self._pairs, self._ranks)

    def merge(self, words: list[list[int]]) -> list[Merged]:
        """Each word merged."""
        import numpy as np

        from tinylm.kernels.merge import merge_words

        lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        symbols = np.fromiter(chain.from_iterable(words), dtype=np.int32, count=int(starts[-1]))
        places = np.zeros_like(symbols)
        counts = np.zeros(len(words), dtype=np.int64)
        merge_words(symbols, starts, self._pairs, self._ranks, self._merged, places, counts)
        kept = zip(starts[:-1].tolist(), (starts[:-1] + counts).tolist(), strict=True)
        return [(symbols[start:end].tolist(), places[start:end].tolist()) for start, end in kept]
