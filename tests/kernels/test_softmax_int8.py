"""The softmax of int8 attention against its reference in double precision."""

from __future__ import annotations

import numpy as np
import pytest

from tinylm.kernels.dot import DOT
from tinylm.kernels.jit import njit
from tinylm.kernels.softmax_int8 import top_score, weights, weights_reference
from tinylm.kernels.tile_attention import BLOCK


@njit
def run(sums, inverses, visible, numbers):
    top = top_score(sums.ctypes.data, visible)
    total = weights(sums.ctypes.data, inverses.ctypes.data, visible, top, numbers.ctypes.data)
    return top, total


def soften(scores: np.ndarray, logarithms: np.ndarray, visible: int) -> tuple[float, np.ndarray, float]:
    """What the kernel gives; its bytes lie between guards."""
    room = np.full(BLOCK + 128, 77, np.uint8)
    with np.errstate(all="ignore"):
        inverses = np.exp2(-logarithms)
        sums = scores + logarithms
    top, total = run(sums, inverses, visible, room[64:-64])
    assert (room[:64] == 77).all()
    assert (room[-64:] == 77).all()
    return float(top), room[64:-64], float(total)


@pytest.mark.parametrize("visible", [1, 2, 37, 64, 95, 96])
@pytest.mark.parametrize("spread", [0.1, 3, 40])
def test_weights_times_scales_are_rounded(visible: int, spread: float) -> None:
    random = np.random.default_rng(visible)
    scores = random.normal(0, spread, BLOCK).astype(np.float32)
    logarithms = random.normal(-8, min(spread, 10), BLOCK).astype(np.float32)
    scores[visible:], logarithms[visible:] = np.nan, -np.inf  # anything may stand behind the last position
    top, numbers, total = soften(scores, logarithms, visible)
    exact_top, exact, exact_total = weights_reference(
        (scores + logarithms).astype(np.float64), logarithms.astype(np.float64), visible
    )
    assert top == pytest.approx(exact_top, rel=1e-6)
    assert total == pytest.approx(exact_total, rel=2e-4)
    assert np.abs(numbers.astype(int) - exact).max() <= 1
    assert (numbers != exact).mean() < 0.05
    assert numbers.max() == DOT.most
    assert not numbers[visible:].any()


def test_much_weight_on_a_value_of_nothing_leaves_the_others_their_bits() -> None:
    scores, logarithms = np.zeros(BLOCK, np.float32), np.full(BLOCK, -7, np.float32)
    scores[0], logarithms[0] = 12, -60
    _, numbers, total = soften(scores, logarithms, BLOCK)
    assert numbers[0] == 0
    assert (numbers[1:] == DOT.most).all()
    assert total == pytest.approx(DOT.most * 2**7 * (2**12 + 95), rel=1e-4)


def test_nothing_seen_and_no_number() -> None:
    scores, logarithms = np.zeros((2, BLOCK), np.float32)
    top, numbers, total = soften(scores, logarithms, 0)
    assert top < -1e29
    assert total == 0
    assert not numbers.any()
    scores[5] = np.nan
    assert np.isnan(soften(scores, logarithms, 50)[2])
    assert np.isfinite(soften(scores, logarithms, 5)[2])
    logarithms[5] = np.nan
    scores[5] = 0
    assert np.isnan(soften(scores, logarithms, 50)[2])
