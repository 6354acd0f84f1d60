"""Which tokens a draw may choose: top_k, top_p, min_p, typical_p, without sorting the vocabulary.

A depth is how far below the largest a logit lies, over the temperature: 0 for the likeliest token, inf
for a banned one. A weight is the exponential of a negative depth, a probability but for the sum. The
definitions are those of transformers; its full sort of 131,072 entries costs more than a small model's
step. Each definition stands as `..._reference` beside what computes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Places = NDArray[np.int64]

SORTED = 4096  # so few are sorted outright

# Long arrays are worked through in such pieces where types change: they stay in the cache, and need
# no fresh memory from the system, which costs more than the work.
BLOCK = 8192


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, size, BLOCK))


def top_k_places_reference(logits: Floats, k: int) -> Places:
    """What `top_k_places` gives, by a full sort."""
    kth = np.sort(logits)[max(0, logits.size - k)]
    return np.flatnonzero(logits >= kth)


def top_k_places(logits: Floats, k: int) -> Places:
    """The places (ascending) of the k largest of some logits (V,), and of all that tie with the last.

    The maxima of many columns hold k logits, so the k-th largest of them is a bound which few
    logits pass; only those are partitioned.
    """
    V = logits.size
    if k >= V:
        return np.arange(V, dtype=np.int64)
    rows = min(64, V // (2 * k))
    if rows < 2:
        return np.flatnonzero(logits >= _kth_largest(logits, k))
    columns = V // rows
    bound = _kth_largest(logits[: rows * columns].reshape(rows, columns).max(axis=0), k)
    places = np.flatnonzero(logits >= bound)
    few = logits[places]
    best: Places = places[few >= _kth_largest(few, k)]
    return best


def _kth_largest(values: Floats, k: int) -> Any:
    return np.partition(values, values.size - k)[values.size - k]


def top_p_places_reference(depths: Floats, weights: Floats, probability: float) -> Places:
    """What `top_p_places` gives, by a full sort."""
    order = np.argsort(-depths, kind="stable")[::-1]
    sums = np.cumsum(weights[order], dtype=np.float64)
    better = np.concatenate([[0.0], sums[:-1]])
    keep = better < probability * sums[-1]
    keep[0] = True
    return np.sort(order[keep])


def top_p_places(depths: Floats, weights: Floats, probability: float) -> Places:
    """The places (ascending) of the fewest best tokens that together reach a probability; at least one.

    A token stays while those better than it have less than that. Of equal depths the later place is
    the better one, as in a stable ascending sort of the logits.
    """
    target = probability * float(weights.sum(dtype=np.float64))
    if depths.size > SORTED:
        best = top_k_places(weights, SORTED // 4)
        if weights[best].sum(dtype=np.float64) >= target:
            return best[_top_p_places(depths[best], weights[best], target)]
    return _top_p_places(depths, weights, target)


def _top_p_places(depths: Floats, weights: Floats, target: float) -> Places:
    last, before = _crossing(depths, weights, target)
    keep = depths < last
    ties = np.flatnonzero(depths == last)
    weight = float(weights[ties[0]])
    needed = max(1, math.ceil((target - before) / weight)) if weight else 1
    keep[ties[-needed:]] = True
    return np.flatnonzero(keep)


def min_p_places(depths: Floats, fraction: float) -> Places:
    """The places (ascending) of the tokens that are at least this fraction as likely as the likeliest."""
    return np.flatnonzero(depths <= -math.log(fraction))


def typical_p_places_reference(depths: Floats, weights: Floats, probability: float) -> Places:
    """What `typical_p_places` gives, by the definition and a full sort."""
    probabilities = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    surprises = depths + np.log(weights.sum(dtype=np.float64))
    entropy = float((probabilities[probabilities > 0] * surprises[probabilities > 0]).sum())
    distances = np.abs(surprises - entropy)
    order = np.argsort(distances, kind="stable")
    reached = int(np.searchsorted(np.cumsum(probabilities[order]), probability))
    return np.flatnonzero(distances <= distances[order[min(reached, order.size - 1)]])


def typical_p_places(depths: Floats, weights: Floats, probability: float) -> Places:
    """The places (ascending) of the most typical tokens that together reach a probability.

    Typical is what is as surprising as expected: |-log p - H| is small. The logarithm of the sum
    stands in both, so that is the distance of a depth from the expected depth.
    """
    total, expected = 0.0, 0.0
    for block in _blocks(depths.size):
        masses = weights[block].astype(np.float64)
        total += float(masses.sum())
        expected += float((masses * np.minimum(depths[block], np.finfo(depths.dtype).max)).sum())
    distances = depths - depths.dtype.type(expected / total)
    np.abs(distances, out=distances)
    last, _ = _crossing(distances, weights, probability * total)
    return np.flatnonzero(distances <= last)


def _crossing(keys: Floats, weights: Floats, target: float) -> tuple[Any, float]:
    """The key at which the sum of weights, in ascending order of keys, reaches a target; the sum before it.

    Where rounding keeps the whole sum below the target, the largest key that weighs something. Keys
    are 0 or more. Many of them, float32, are told apart by their bits, whose order is that of the
    numbers: a histogram of the first 11, then inside its bin one of the next 11, then one of the
    last 9.
    """
    if keys.size <= SORTED:
        order = np.argsort(keys, kind="stable")
        sums = np.cumsum(weights[order], dtype=np.float64)
        last = keys[order[_reached(sums, target)]]
        first = int(np.searchsorted(keys[order], last))
        return last, float(sums[first - 1]) if first else 0.0
    bits = keys.view(np.int32)
    before = 0.0
    for shift, width in ((20, 11), (9, 11), (0, 9)):
        sums = before + np.cumsum(_histogram(bits, weights, shift, width))
        place = _reached(sums, target)
        before = float(sums[place - 1]) if place else before
        inside = np.flatnonzero(((bits >> shift) & ((1 << width) - 1)) == place)
        bits, weights = bits[inside], weights[inside]
    return bits[:1].view(np.float32)[0], before


def _reached(sums: NDArray[np.float64], target: float) -> int:
    # Rounding may carry a target beyond the end, where entries may weigh nothing.
    return int(np.searchsorted(sums, min(target, float(sums[-1]))))


def _histogram(bits: NDArray[np.int32], weights: Floats, shift: int, width: int) -> NDArray[np.float64]:
    """The sums of weights by `width` bits of their keys, (2**width,)."""
    masses = np.zeros(1 << width)
    for block in _blocks(bits.size):
        # NumPy counts fast only what has these very types.
        bins = ((bits[block] >> shift) & ((1 << width) - 1)).astype(np.intp)
        masses += np.bincount(bins, weights[block].astype(np.float64), masses.size)
    return masses


def draw_place(weights: Floats, uniform: float) -> int:
    """The place at which the running sum of weights passes a uniform number in [0, 1) times the whole.

    Sums are float64. A long list is summed in blocks, and only one block number by number.
    """
    if weights.size <= SORTED:
        sums = np.cumsum(weights, dtype=np.float64)
        return _passed(sums, uniform * float(sums[-1]))
    whole = weights.size // 512 * 512
    blocks = weights[:whole].reshape(-1, 512).sum(axis=1, dtype=np.float64)
    ends = np.cumsum(np.append(blocks, weights[whole:].sum(dtype=np.float64)))
    target = uniform * float(ends[-1])
    block = _passed(ends, target)
    before = float(ends[block - 1]) if block else 0.0
    sums = np.cumsum(weights[512 * block : 512 * (block + 1)], dtype=np.float64)
    return 512 * block + _passed(sums, target - before)


def _passed(sums: NDArray[np.float64], target: float) -> int:
    # Rounding may carry a target to the very end, where weights of 0 must not be drawn.
    return min(int(np.searchsorted(sums, target, side="right")), _reached(sums, math.inf))
