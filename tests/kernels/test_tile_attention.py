"""The tiles of few queries: scores and weighted sums row by row, from rows that a head does not fill."""

from __future__ import annotations

import numpy as np
import pytest

from tinylm.kernels.jit import njit
from tinylm.kernels.tile_attention import CHUNK, QUERIES, score_rows, weigh_rows


@njit
def run_scores(queries, keys, stride, rows, size, scores):
    ahead = keys.ctypes.data
    score_rows(queries.ctypes.data, keys.ctypes.data, stride, rows, size, scores.ctypes.data, ahead)


@njit
def run_weights(weights, values, stride, rows, size, shrink, sums):
    addresses = shrink.ctypes.data, sums.ctypes.data
    weigh_rows(weights.ctypes.data, values.ctypes.data, stride, rows, size, *addresses)


SHAPES = [(1, 8), (7, 8), (12, 20), (13, CHUNK), (96, 64), (96, CHUNK + 2), (33, 128)]
"""(rows, Dh)."""


def stored(rows: int, Dh: int) -> tuple[np.ndarray, int, np.ndarray]:
    """Rows in a cache with other rows behind them, the padded width, and the rows themselves."""
    size = -(-Dh // CHUNK) * CHUNK
    cache = np.random.default_rng(rows).standard_normal((rows + 64, Dh), np.float32)
    return cache, size, cache[:rows].astype(np.float64)


@pytest.mark.parametrize(("rows", "Dh"), SHAPES)
def test_scores(rows: int, Dh: int) -> None:
    keys, size, own = stored(rows, Dh)
    queries = np.zeros((QUERIES, size), np.float32)
    queries[:, :Dh] = np.random.default_rng(1).standard_normal((QUERIES, Dh))
    scores = np.full((rows + 8, QUERIES), 77, np.float32)
    run_scores(queries, keys, 4 * Dh, rows, size, scores)
    room = 1e-6 * (np.abs(own) @ np.abs(queries[:, :Dh]).T)
    assert (np.abs(scores[:rows] - own @ queries[:, :Dh].T) <= room).all()


@pytest.mark.parametrize(("rows", "Dh"), SHAPES)
def test_weighted_sums_add_to_what_shrinks(rows: int, Dh: int) -> None:
    values, size, own = stored(rows, Dh)
    random = np.random.default_rng(2)
    weights = random.uniform(0, 1, (rows, QUERIES)).astype(np.float32)
    shrink = random.uniform(0, 1, QUERIES).astype(np.float32)
    room = np.full((QUERIES + 1, size), 77, np.float32)
    sums = room[:QUERIES]
    sums[:] = random.standard_normal((QUERIES, size))
    before = sums.copy()
    run_weights(weights, values, 4 * Dh, rows, size, shrink, sums)
    expected = before[:, :Dh] * shrink[:, None] + weights.T @ own
    np.testing.assert_allclose(sums[:, :Dh], expected, atol=2e-6 * np.abs(expected).max())
    assert (room[QUERIES] == 77).all()
