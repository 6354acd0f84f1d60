"""The register tile reads its left side by any strides, over any K, from four-byte aligned memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinylm.kernels.jit import njit
from tinylm.kernels.tile import (
    LANES,
    NARROW_LANES,
    NARROW_ROWS,
    ROWS,
    UNROLL,
    WIDTH,
    narrow_tile,
    tile,
)


@njit
def run_wide(left, row_stride, k_stride, right, K, out):
    tile(left, left.ctypes.data, row_stride, k_stride, right.ctypes.data, K, out.ctypes.data)


@njit
def run_narrow(left, row_stride, k_stride, right, K, out):
    narrow_tile(left, left.ctypes.data, row_stride, k_stride, right.ctypes.data, K, out.ctypes.data)


TILES = [(run_wide, ROWS, LANES), (run_narrow, NARROW_ROWS, NARROW_LANES)]


@pytest.mark.parametrize(("run", "rows", "lanes"), TILES, ids=["wide", "narrow"])
@pytest.mark.parametrize("K", [0, 1, UNROLL - 1, UNROLL, UNROLL + 1, 4 * UNROLL + 3, 172])
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_the_tile_is_a_matrix_product(run: Any, rows: int, lanes: int, K: int, transposed: bool) -> None:
    random = np.random.default_rng(K)
    left = random.standard_normal((rows, K), np.float32)
    right = random.standard_normal((K, lanes), np.float32)
    stored = np.ascontiguousarray(left.T if transposed else left)
    strides = (4, 4 * rows) if transposed else (4 * K, 4)
    out = np.full(rows * lanes + 2, 77, np.float32)
    run(stored, *strides, right, K, out[1:-1])
    product = left.astype(np.float64) @ right.astype(np.float64)
    room = 1e-6 * (np.abs(left) @ np.abs(right)) + 1e-30
    assert (np.abs(out[1:-1].reshape(rows, lanes) - product) <= room).all()
    assert out[0] == out[-1] == 77


@pytest.mark.parametrize(("run", "rows", "lanes"), TILES, ids=["wide", "narrow"])
def test_bfloat16_rows_are_widened(run: Any, rows: int, lanes: int) -> None:
    random = np.random.default_rng(5)
    bits = (random.standard_normal((rows, 21), np.float32).view(np.uint32) >> 16).astype(np.uint16)
    left = (bits.astype(np.uint32) << 16).view(np.float32)
    right = random.standard_normal((21, lanes), np.float32)
    out = np.empty(rows * lanes, np.float32)
    run(bits, 42, 2, right, 21, out)
    np.testing.assert_allclose(out.reshape(rows, lanes), left @ right, atol=2e-5)


def test_the_geometry_fits_the_vectors() -> None:
    assert LANES % WIDTH == 0
    assert NARROW_LANES % min(WIDTH, NARROW_LANES) == 0
