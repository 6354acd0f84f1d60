"""The tiles of few queries: scores and weighted sums, of each number of queries and each kind of number."""

from __future__ import annotations

import numpy as np
import pytest

from tinylm.kernels.attention import _score, _weigh
from tinylm.kernels.narrow_floats import BFLOAT16, FLOAT16, FLOAT32, narrow_reference, widen_reference
from tinylm.kernels.tile_attention import BLOCK, MOST, STEP, STRIP

KINDS = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}


@pytest.mark.parametrize("like", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("queries", range(1, MOST + 1))
@pytest.mark.parametrize("K", [1, 8, 20, 64, 128])
def test_scores(K: int, queries: int, like: np.generic) -> None:
    random = np.random.default_rng(K)
    keys = narrow_reference(like, random.standard_normal((K, STRIP), np.float32))
    room = np.full((queries + 2, K), np.nan, np.float32)
    left = room[:queries]
    left[:] = random.standard_normal((queries, K))
    out = np.full((queries + 1, BLOCK), 77, np.float32)
    _score(like, queries, left.ctypes.data, 4 * K, keys.ctypes.data, K, out.ctypes.data)
    exact = widen_reference(like, keys).astype(np.float64)
    bound = 1e-6 * (np.abs(left) @ np.abs(exact))
    assert (np.abs(out[:queries, :STRIP] - left @ exact) <= bound).all()
    assert (out[:queries, STRIP:] == 77).all()
    assert (out[queries] == 77).all()


@pytest.mark.parametrize("like", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("queries", range(1, MOST + 1))
@pytest.mark.parametrize(("rows", "size"), [(1, STEP), (7, 3 * STEP), (96, 64), (33, 128), (50, 80)])
def test_weighted_sums_add_to_what_shrinks(rows: int, size: int, queries: int, like: np.generic) -> None:
    random = np.random.default_rng(rows)
    values = narrow_reference(like, random.standard_normal((rows, size), np.float32))
    weights = np.full((queries, BLOCK), np.nan, np.float32)
    weights[:, :rows] = random.uniform(0, 1, (queries, rows))
    shrink = random.uniform(0, 1, queries).astype(np.float32)
    room = np.full((queries + 1, size), 77, np.float32)
    sums = room[:queries]
    sums[:] = random.standard_normal((queries, size))
    before = sums.copy()
    addresses = shrink.ctypes.data, sums.ctypes.data
    _weigh(like, queries, weights.ctypes.data, values.ctypes.data, rows, size, *addresses)
    exact = widen_reference(like, values).astype(np.float64)
    expected = before * shrink[:, None] + weights[:, :rows] @ exact
    np.testing.assert_allclose(sums, expected, atol=2e-6 * np.abs(expected).max())
    assert (room[queries] == 77).all()
