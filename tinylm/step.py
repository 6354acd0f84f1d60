"""One step of a model: T tokens, each with its sequence and its position, as the executors take it."""

from __future__ import annotations

from collections.abc import Sequence as ListOf
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from tinylm.cache import KeyValueCache
from tinylm.kernels.attention import plan

Integers = NDArray[np.int64]


@dataclass
class Step:
    """A ragged batch.

    ids, positions, rows (T,): each token's id, position, and which of `caches` is its sequence's; the tokens
    of a sequence stand together and in order. chosen (L,): the tokens whose logits are asked for. tasks and
    tiles: the work of attention, as `kernels.attention.plan` cuts it.
    """

    ids: Integers
    positions: Integers
    rows: Integers
    chosen: Integers
    caches: list[KeyValueCache]
    counts: list[int]
    tasks: Integers
    tiles: Integers


def make_step(
    parts: ListOf[tuple[KeyValueCache, int, Integers]], group: int, logits: str | Integers = "last"
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
    one = len(parts) == 1
    return Step(
        ids=parts[0][2] if one else np.concatenate([ids for _, _, ids in parts]),
        positions=positions[0] if one else np.concatenate(positions),
        rows=np.repeat(np.arange(len(parts), dtype=np.int64), counts),
        chosen=chosen,
        caches=[cache for cache, _, _ in parts],
        counts=counts,
        tasks=tasks,
        tiles=tiles,
    )
