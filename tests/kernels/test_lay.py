"""Rows laid side by side are the transposed matrix, of every kind of number, and nothing beside it is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinylm.kernels.jit import njit
from tinylm.kernels.lay import lay_side_by_side, make_lay
from tinylm.kernels.narrow_floats import BFLOAT16, FLOAT16, FLOAT32, widen_reference
from tinylm.kernels.tile import LANES, WIDTH

lay_few = make_lay(WIDTH)


@njit
def run(like, x, K, out, out_stride):
    return lay_side_by_side(like, x.ctypes.data, x.itemsize * x.shape[1], K, out.ctypes.data, out_stride)


@njit
def run_few(like, x, K, out, out_stride):
    return lay_few(like, x.ctypes.data, x.itemsize * x.shape[1], K, out.ctypes.data, out_stride)


@pytest.mark.parametrize("K", [0, WIDTH - 1, WIDTH, 3 * WIDTH + 1])
@pytest.mark.parametrize("like", [FLOAT32, BFLOAT16, FLOAT16])
@pytest.mark.parametrize("rows", [LANES, WIDTH])
def test_rows_are_laid_side_by_side(K: int, like: Any, rows: int) -> None:
    x = np.random.default_rng(2).standard_normal((rows, K + 3), np.float32)
    stored = x if like.dtype == np.float32 else x.view(np.uint32).astype(like.dtype)
    if like.dtype == np.int16:
        stored = x.astype(np.float16).view(np.int16)
    border = np.full((K + 2, rows + 3), 77, np.float32)
    done = (run if rows == LANES else run_few)(like, stored, K, border[1:, 1:], border.strides[0])
    assert done == K // WIDTH * WIDTH
    np.testing.assert_array_equal(border[1 : 1 + done, 1:-2], widen_reference(like, stored)[:, :done].T)
    border[1 : 1 + done, 1:-2] = 77
    assert (border == 77).all()
