"""The register tile reads its left side by any strides, over any K, from four-byte aligned memory."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tinylm.kernels import compiler
from tinylm.kernels.attention import attention_float32_operation
from tinylm.kernels.jit import Operation, njit
from tinylm.kernels.matmul import matmul_bfloat16_operation, matmul_operation
from tinylm.kernels.target import target
from tinylm.kernels.tile import LANES, NARROW, ROWS, UNROLL, WIDTH, first_row, narrow_tile, narrow_tiles, tile


@njit
def run(left, row_stride, k_stride, right, K, before, before_stride, out, out_stride):
    tile(left.ctypes.data, row_stride, k_stride, right.ctypes.data, K,
         before.ctypes.data, before_stride, out.ctypes.data, out_stride)  # fmt: skip


@njit
def run_narrow(left, row_stride, k_stride, right, K, before, before_stride, out, out_stride):
    narrow_tile(left.ctypes.data, row_stride, k_stride, right.ctypes.data, K,
                before.ctypes.data, before_stride, out.ctypes.data, out_stride)  # fmt: skip


@pytest.mark.parametrize("K", [0, 1, UNROLL - 1, UNROLL, UNROLL + 1, 4 * UNROLL + 3, 172])
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("begun", ["elsewhere", "in place", "one for all rows"])
@pytest.mark.parametrize("rows", [ROWS, NARROW])
def test_the_tile_adds_a_matrix_product(K: int, transposed: bool, begun: str, rows: int) -> None:
    random = np.random.default_rng(K)
    left = random.standard_normal((rows, K), np.float32)
    right = random.standard_normal((K, LANES), np.float32)
    before = random.standard_normal((1 if begun == "one for all rows" else rows, LANES), np.float32)
    stored = np.ascontiguousarray(left.T if transposed else left)
    strides = (4, 4 * rows) if transposed else (4 * K, 4)
    border = np.full((rows + 2, LANES + 5), 77, np.float32)
    out = border[1:-1, 2:-3]
    sums, stride = before, 0 if len(before) == 1 else 4 * LANES
    if begun == "in place":
        out[:] = before
        sums, stride = out, border.strides[0]
    multiply = run if rows == ROWS else run_narrow
    multiply(stored, *strides, right, K, sums, stride, out, border.strides[0])
    product = before + left.astype(np.float64) @ right.astype(np.float64)
    room = 1e-6 * (np.abs(before) + np.abs(left) @ np.abs(right))
    assert (np.abs(out - product) <= room).all()
    out[:] = 77
    assert (border == 77).all()


def test_rows_are_shared_out_to_wide_tiles_and_narrow_ones() -> None:
    for rows in range(1, 20 * ROWS):
        tiles = -(-rows // ROWS)
        wide = tiles - narrow_tiles(rows)
        sizes = [ROWS] * wide + [NARROW] * (tiles - wide)
        assert [first_row(i, wide) for i in range(tiles + 1)] == np.cumsum([0, *sizes]).tolist()
        assert sum(sizes) - sizes[-1] < rows <= sum(sizes)
        assert wide == 0 or sum(sizes) - rows < ROWS - NARROW


def test_the_geometry_fits_the_vectors() -> None:
    assert LANES % WIDTH == 0
    assert ROWS % 2 == 0
    assert ROWS - NARROW == ROWS / 3


@pytest.mark.skipif("+fma," not in f"{target()[2]},", reason="this processor has other instructions")
@pytest.mark.parametrize(
    "kernel",
    [matmul_operation, matmul_bfloat16_operation, attention_float32_operation],
    ids=lambda one: one.name,
)
def test_no_sum_leaves_its_register(kernel: Operation) -> None:
    """LLVM may load what comes many steps later, and has to put it aside then: a prompt took 1.25 of the time."""
    module = compiler.strip(compiler.operation_module(kernel.function), kernel.name)
    loops = re.split(r"^\.?\w+:", compiler._machine().emit_assembly(module), flags=re.MULTILINE)
    sizes = [len(re.findall(r"^\s+vfmadd", loop, flags=re.MULTILINE)) for loop in loops]
    for rows in (ROWS, NARROW):
        found = [
            loop for size, loop in zip(sizes, loops, strict=True) if size == UNROLL * rows * LANES // WIDTH
        ]
        assert found
        for loop in found:
            assert not re.search(r"^\s+vmov[au]ps\s+%.*\(%", loop, flags=re.MULTILINE)
