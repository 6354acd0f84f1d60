"""One step of a model: T tokens, each with its sequence and its position, as the executors take it."""

from __future__ import annotations

import operator
from collections.abc import Sequence as ListOf
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from tinylm.cache import KeyValueCache
from tinylm.kernels.attention import END, SEQUENCE, TILE_PARTS, TILE_TASK, plan
from tinylm.kernels.tile_attention import BLOCK

Integers = NDArray[np.int64]


@dataclass
class Step:
    """A ragged batch.

    ids, positions, rows (T,): each token's id, position, and which of `caches` is its sequence's; the tokens
    of a sequence stand together and in order. chosen (L,): the tokens whose logits are asked for. lengths: the
    positions of each sequence, those of the step included. tasks and tiles: the work of attention, as
    `kernels.attention.plan` cuts it.
    """

    ids: Integers
    positions: Integers
    rows: Integers
    chosen: Integers
    caches: list[KeyValueCache]
    counts: list[int]
    lengths: list[int]
    tasks: Integers
    tiles: Integers
    _rows: list[list[int]] = field(default_factory=list)
    _cache_rows: Integers = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    _growing: list[tuple[int, int]] = field(default_factory=list)
    """The tasks that end with their sequence, and which that is."""

    def cache_rows(self) -> Integers:
        """The addresses of the caches' layers, (caches, layers): the same array until one of them has moved."""
        rows = [cache.row() for cache in self.caches]
        if len(rows) != len(self._rows) or not all(map(operator.is_, rows, self._rows)):
            self._rows, self._cache_rows = rows, np.array(rows, np.int64)
        return self._cache_rows

    def follow(self, ids: list[int]) -> bool:
        """Become the step after this one, in place: one token more of each of its sequences, which had one.

        False, and nothing is done, where a sequence comes to a new block, and attention may be cut anew.
        """
        if any(length % BLOCK == 0 for length in self.lengths):
            return False
        if not self._growing:
            last = (self.tiles[:, TILE_TASK] + self.tiles[:, TILE_PARTS] - 1).tolist()
            self._growing = [(task, int(self.tasks[task, SEQUENCE])) for task in last]
        # one number at a time: between two steps little is in the caches, NumPy's arithmetic least of all
        for place, length in enumerate(self.lengths):
            self.ids[place] = ids[place]
            self.positions[place] = length
            self.lengths[place] = length + 1
        for task, sequence in self._growing:
            self.tasks[task, END] = self.lengths[sequence]
        return True


def make_step(
    parts: ListOf[tuple[KeyValueCache, int, ListOf[int] | Integers]],
    group: int,
    logits: str | Integers = "last",
) -> Step:
    """A step of some sequences: for each its cache, the positions used so far, and its new ids.

    `group` is H / Hkv; `logits` is "last" (of each sequence), "all", "none", or the indices of tokens.
    """
    counts = [len(ids) for _, _, ids in parts]
    ends = list(accumulate(counts))
    starts = [end - count for end, count in zip(ends, counts, strict=True)]
    lengths = [used + count for (_, used, _), count in zip(parts, counts, strict=True)]
    tasks, tiles = plan(starts, counts, lengths, group)
    if isinstance(logits, str):
        wanted = {"last": [end - 1 for end in ends], "all": range(ends[-1]), "none": ()}[logits]
        chosen = np.array(wanted, np.int64)
    else:
        chosen = np.ascontiguousarray(logits, np.int64)
    positions = [
        np.arange(length - count, length, dtype=np.int64)
        for length, count in zip(lengths, counts, strict=True)
    ]
    return Step(
        ids=np.concatenate([np.asarray(ids, np.int64) for _, _, ids in parts]),
        positions=np.concatenate(positions),
        rows=np.repeat(np.arange(len(parts), dtype=np.int64), counts),
        chosen=chosen,
        caches=[cache for cache, _, _ in parts],
        counts=counts,
        lengths=lengths,
        tasks=tasks,
        tiles=tiles,
    )
