"""The running softmax over lanes, block after block, against the plain one over all positions."""

from __future__ import annotations

import numpy as np
import pytest

from tinylm.kernels.jit import njit
from tinylm.kernels.softmax import LOWEST, softmax_block, softmax_block_reference, softmax_row
from tinylm.kernels.tile import LANES
from tinylm.kernels.tile_attention import BLOCK

FEW = 3


@njit
def rows_of_few(scores, visible, highest, total, shrink):
    for i in range(visible.shape[0]):
        softmax_row(
            scores.ctypes.data + 4 * BLOCK * i,
            visible[i],
            highest.ctypes.data + 4 * i,
            total.ctypes.data + 4 * i,
            shrink.ctypes.data + 4 * i,
        )


class Lanes:
    """The state of a block after block softmax, as attention keeps it."""

    def __init__(self, lanes: int, last: np.ndarray) -> None:
        self.lanes, self.last = lanes, last.astype(np.int32)
        self.highest = np.full(lanes, LOWEST, np.float32)
        self.total, self.shrink = np.zeros(lanes, np.float32), np.full(lanes, 77, np.float32)

    def add(self, scores: np.ndarray, begin: int) -> np.ndarray:
        """The weights of a block (rows, lanes)."""
        if self.lanes == FEW:
            room = np.full((FEW + 1, BLOCK), 77, np.float32)
            room[:FEW, : len(scores)] = scores.T
            visible = np.minimum(self.last + 1 - begin, len(scores)).astype(np.int64)
            rows_of_few(room[:FEW], visible, self.highest, self.total, self.shrink)
            assert (room[FEW] == 77).all()
            return room[:FEW, : len(scores)].T
        border = np.full(scores.size + 2, 77, np.float32)
        border[1:-1] = scores.reshape(-1)
        softmax_block(border[1:-1], begin, len(scores), self.last, self.highest, self.total, self.shrink)
        assert border[0] == border[-1] == 77
        return border[1:-1].reshape(scores.shape)


def random_scores(rows: int, lanes: int) -> np.ndarray:
    return (np.random.default_rng(rows).standard_normal((rows, lanes)) * 4).astype(np.float32)


@pytest.mark.parametrize("lanes", [FEW, LANES])
@pytest.mark.parametrize("rows", [1, 7, 12, 13, 96])
@pytest.mark.parametrize("seen", ["parts", "all", "all but one"])
def test_a_block_is_as_its_reference(lanes: int, rows: int, seen: str) -> None:
    random = np.random.default_rng(rows)
    last = random.integers(50, 50 + rows, lanes) if seen == "parts" else np.full(lanes, 49 + rows)
    last[lanes // 2] -= seen == "all but one"
    state = Lanes(lanes, last)
    state.highest[:] = random.standard_normal(lanes) * 3
    state.total[:] = random.uniform(1, 9, lanes)
    highest, total = state.highest.copy(), state.total.copy()
    scores = random_scores(rows, lanes)
    weights = state.add(scores, 50)
    expected = softmax_block_reference(scores.astype(np.float64), 50, last, highest, total)
    for found, one in zip((weights, state.highest, state.total, state.shrink), expected, strict=True):
        np.testing.assert_allclose(found, one, rtol=3e-6, atol=1e-30 if one is expected[0] else 0)
    assert (weights[50 + np.arange(rows)[:, None] > last] < 1e-30).all()


@pytest.mark.parametrize("lanes", [FEW, LANES])
def test_blocks_together_are_one_softmax(lanes: int) -> None:
    last = np.linspace(0, 99, lanes).astype(np.int64)
    scores = random_scores(100, lanes)
    state = Lanes(lanes, last)
    parts: list[np.ndarray] = []
    for begin in range(0, 100, 12):
        weights = state.add(scores[begin : begin + 12], begin)
        parts = [part * state.shrink for part in parts] + [weights]
    pattern = np.concatenate(parts) / state.total
    hidden = np.arange(100)[:, None] > last
    exact = np.exp(np.where(hidden, -np.inf, scores.astype(np.float64)))
    np.testing.assert_allclose(pattern, exact / exact.sum(axis=0), rtol=2e-5, atol=1e-30)


def test_the_first_block_forgets_that_there_was_nothing() -> None:
    state = Lanes(FEW, np.zeros(FEW))
    weights = state.add(np.full((1, FEW), -50, np.float32), 0)
    np.testing.assert_array_equal(weights, 1)
    np.testing.assert_array_equal(state.total, 1)
    assert (state.shrink < 1e-30).all()


def test_far_below_the_highest_is_next_to_nothing() -> None:
    state = Lanes(LANES, np.full(LANES, 9))
    scores = np.zeros((2, LANES), np.float32)
    scores[1, :8] = [-20, -80, -86, -88, -100, -1000, -1e10, -3e38]
    weights = state.add(scores, 0)
    np.testing.assert_allclose(weights[1], np.exp(scores[1].astype(np.float64)), rtol=2e-5, atol=2e-38)


@pytest.mark.parametrize("lanes", [FEW, LANES])
def test_not_a_number_stays_in_its_lane(lanes: int) -> None:
    state = Lanes(lanes, np.full(lanes, 99))
    scores = random_scores(13, lanes)
    scores[6, 2] = np.nan
    state.add(scores, 0)
    assert np.isnan(state.total).tolist() == [lane == 2 for lane in range(lanes)]
    state.add(random_scores(5, lanes), 13)
    assert np.isnan(state.total).tolist() == [lane == 2 for lane in range(lanes)]
