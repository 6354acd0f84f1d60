"""The register tile: the innermost loop of every matrix product, prefill attention included.

`(ROWS, K) @ (K, lanes) -> (ROWS, lanes)`: the accumulators stay in vector registers while K runs; each step
loads one row of the right side and broadcasts ROWS numbers of the left. The right side is *packed*: lanes
(tokens) lie side by side for each k. The left side is read where it lies, by its strides, so a weight
matrix is multiplied straight from its memory map.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tinylm.kernels.jit import intrinsic, types
from tinylm.kernels.simd import FLOAT, INT64, load_float32, pointer
from tinylm.kernels.target import target
from tinylm.kernels.vectors import at, load, loop, multiply_add, spread


def _geometry() -> tuple[int, int, int]:
    """(rows, lanes, floats in a register) such that the accumulators fill the registers of this CPU."""
    features = target()[2]
    if "+avx512f" in features:
        return 12, 32, 16  # 24 of 32 registers of 16
    if "+avx2" in features:
        return 6, 16, 8  # 12 of 16 registers of 8
    return 6, 16, 4  # NEON: 24 of 32 registers of 4


ROWS, LANES, WIDTH = _geometry()
NARROW_ROWS = 12
NARROW_LANES = 8
"""The tile for few tokens: a decode step of several sequences, the group of query heads in attention."""

UNROLL = 4


def _make(rows: int, lanes: int, width: int) -> Any:
    """The tile of a geometry, as an intrinsic."""
    vector = ir.VectorType(FLOAT, width)
    parts = range(lanes // width)

    def emit(
        builder: ir.IRBuilder, steps: int, number_type: Any, first: Any, sums: Any, operands: Any
    ) -> Any:
        """The sums (row by row, part by part) of k = first on, `steps` at a time; where it ended, and the sums."""
        left, row_stride, k_stride, right, end = operands

        def body(k: Any, held: list[Any]) -> list[Any]:
            for step in range(steps):
                here = builder.add(k, INT64(step))
                right_row = at(builder, right, (here, 4 * lanes))
                factors = [load(builder, at(builder, right_row, (4 * width, part)), vector) for part in parts]
                left_column = at(builder, left, (here, k_stride))
                for row in range(rows):
                    address = at(builder, left_column, (row_stride, row))
                    number = spread(builder, load_float32(builder, address, number_type), vector)
                    for part in parts:
                        i = row * len(parts) + part
                        held[i] = multiply_add(builder, number, factors[part], held[i])
            return held

        return loop(builder, first, end, steps, sums, body)

    @intrinsic
    def tile(
        typingctx: Any, like: Any, left: Any, row_stride: Any, k_stride: Any, right: Any, K: Any, out: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, left, row_stride, k_stride, right, K, out = arguments
            operands = (left, row_stride, k_stride, right, K)
            zeros = [ir.Constant(vector, [0.0] * width)] * (rows * len(parts))
            k, sums = emit(builder, UNROLL, like.dtype, INT64(0), zeros, operands)
            _, sums = emit(builder, 1, like.dtype, k, sums, operands)
            for i, one in enumerate(sums):
                builder.store(one, pointer(builder, at(builder, out, (4 * width, i)), vector), align=4)
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 6), generate

    return tile


tile = _make(ROWS, LANES, WIDTH)
"""`tile(like, left, row stride, k stride, right, K, out)`: addresses, strides in bytes, numbers as in `like`."""

narrow_tile = _make(NARROW_ROWS, NARROW_LANES, min(WIDTH, NARROW_LANES))
