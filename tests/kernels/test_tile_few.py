"""A row times a few tokens, for every number of tokens, width and storage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinylm.kernels.dot_bfloat16 import BOTH, dot_split, split
from tinylm.kernels.jit import njit
from tinylm.kernels.simd import scratch
from tinylm.kernels.tile import WIDTH
from tinylm.kernels.tile_few import dots_1, dots_4, dots_8


@njit
def run_1(weights, x, out):
    K = x.shape[1]
    dots_1(weights[0], weights.ctypes.data, K, x.ctypes.data, 0, 1, out.ctypes.data, 0)


@njit
def run_split(weights, x, out):
    K = x.shape[1]
    halves = scratch(4 * K)
    split(x.ctypes.data, K, halves)
    dot_split(weights.ctypes.data, K, halves, out.ctypes.data)


@njit
def run_4(weights, x, out):
    count, K = x.shape
    dots_4(weights[0], weights.ctypes.data, K, x.ctypes.data, 4 * K, count, out.ctypes.data, out.strides[0])


@njit
def run_8(weights, x, out):
    count, K = x.shape
    dots_8(weights[0], weights.ctypes.data, K, x.ctypes.data, 4 * K, count, out.ctypes.data, out.strides[0])


RUNS = [("1", run_1, 1), ("4", run_4, 4), ("8", run_8, 8)]
CASES = [(dtype, run, most) for dtype in ("float32", "bfloat16") for _, run, most in RUNS]
NAMES = [f"{dtype} {name}" for dtype in ("float32", "bfloat16") for name, _, _ in RUNS]
WIDTHS = {
    1,
    2,
    3,
    WIDTH - 1,
    WIDTH,
    WIDTH + 1,
    2 * WIDTH,
    BOTH + 1,
    BOTH + WIDTH,
    4 * BOTH + 3,
    172,
    576,
    1000,
}


@pytest.mark.parametrize(
    ("dtype", "run", "most"), [*CASES, ("bfloat16", run_split, 1)], ids=[*NAMES, "bfloat16 split"]
)
@pytest.mark.parametrize("K", sorted(WIDTHS))
def test_a_row_times_a_few_tokens(run: Any, most: int, K: int, dtype: str) -> None:
    for count in range(1, most + 1):
        random = np.random.default_rng(K + count)
        numbers = random.standard_normal(K, np.float32)
        bits = (numbers.view(np.uint32) >> 16).astype(np.uint16)
        if dtype == "bfloat16":
            numbers = (bits.astype(np.uint32) << 16).view(np.float32)
        x = random.standard_normal((count, K), np.float32)
        out = np.full((count + 2, 3), 77, np.float32)
        run(bits if dtype == "bfloat16" else numbers, x, out[1:, 1:])
        room = 1e-6 * (np.abs(x) @ np.abs(numbers)) + 1e-30
        assert (np.abs(out[1:-1, 1] - x.astype(np.float64) @ numbers.astype(np.float64)) <= room).all()
        out[1:-1, 1] = 77
        assert (out == 77).all()
