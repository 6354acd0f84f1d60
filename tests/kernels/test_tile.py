"""The register tile reads its left side by any strides, over any K, from four-byte aligned memory."""

from __future__ import annotations

import numpy as np
import pytest

from tinylm.kernels.jit import njit
from tinylm.kernels.tile import (
    LANES,
    NARROW,
    ROWS,
    UNROLL,
    WIDTH,
    lay_side_by_side,
    narrow_tile,
    tile,
    turn,
)


@njit
def run(left, row_stride, k_stride, right, K, before, out):
    tile(left.ctypes.data, row_stride, k_stride, right.ctypes.data, K, before.ctypes.data, out.ctypes.data)


@njit
def run_narrow(left, row_stride, k_stride, right, K, before, out):
    narrow_tile(
        left.ctypes.data, row_stride, k_stride, right.ctypes.data, K, before.ctypes.data, out.ctypes.data
    )


@njit
def run_turn(sums, out, stride):
    turn(sums.ctypes.data, out.ctypes.data, stride)


@pytest.mark.parametrize("K", [0, 1, UNROLL - 1, UNROLL, UNROLL + 1, 4 * UNROLL + 3, 172])
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("in_place", [False, True], ids=["elsewhere", "in place"])
@pytest.mark.parametrize("rows", [ROWS, NARROW])
def test_the_tile_adds_a_matrix_product(K: int, transposed: bool, in_place: bool, rows: int) -> None:
    random = np.random.default_rng(K)
    left = random.standard_normal((rows, K), np.float32)
    right = random.standard_normal((K, LANES), np.float32)
    before = random.standard_normal((rows, LANES), np.float32)
    stored = np.ascontiguousarray(left.T if transposed else left)
    strides = (4, 4 * rows) if transposed else (4 * K, 4)
    out = np.full(rows * LANES + 2, 77, np.float32)
    out[1:-1] = before.ravel()
    multiply = run if rows == ROWS else run_narrow
    multiply(stored, *strides, right, K, out[1:-1] if in_place else before, out[1:-1])
    product = before + left.astype(np.float64) @ right.astype(np.float64)
    room = 1e-6 * (np.abs(before) + np.abs(left) @ np.abs(right))
    assert (np.abs(out[1:-1].reshape(rows, LANES) - product) <= room).all()
    assert out[0] == out[-1] == 77


def test_sums_are_written_transposed_and_nothing_beside_them() -> None:
    sums = np.random.default_rng(1).standard_normal((ROWS, LANES), np.float32)
    out = np.full((LANES + 2, ROWS + 3), 77, np.float32)
    run_turn(sums, out[1:, 1:], 4 * (ROWS + 3))
    np.testing.assert_array_equal(out[1:-1, 1:-2], sums.T)
    out[1:-1, 1:-2] = 77
    assert (out == 77).all()


@njit
def run_lay(x, K, out):
    return lay_side_by_side(x.ctypes.data, 4 * x.shape[1], K, out.ctypes.data, 4 * LANES)


@pytest.mark.parametrize("K", [0, WIDTH - 1, WIDTH, 3 * WIDTH + 1])
def test_tokens_are_laid_side_by_side(K: int) -> None:
    x = np.random.default_rng(2).standard_normal((LANES, K + 3), np.float32)
    out = np.full((K + 2, LANES), 77, np.float32)
    done = run_lay(x, K, out[1:])
    assert done == K // WIDTH * WIDTH
    np.testing.assert_array_equal(out[1 : 1 + done], x[:, :done].T)
    assert (out[0] == 77).all()
    assert (out[1 + done :] == 77).all()


def test_the_geometry_fits_the_vectors() -> None:
    assert LANES % WIDTH == 0
    assert ROWS % 2 == 0
    assert ROWS - NARROW == ROWS / 3
