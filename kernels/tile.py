"""The register tile: the innermost loop of products with many tokens, prefill attention included.

`(ROWS, K) @ (K, lanes) -> (ROWS, lanes)`: the accumulators stay in vector registers while K runs; each step
loads one row of the right side and broadcasts ROWS numbers of the left. Of the right side, LANES of whatever it is
lie side by side for each k (`lay`). The left side is read where it lies, by its strides.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tinylm.kernels.jit import intrinsic, plain, types
from tinylm.kernels.simd import FLOAT, INT64, pointer
from tinylm.kernels.streams import INTEL
from tinylm.kernels.target import target
from tinylm.kernels.vectors import at, load, loop, multiply_add, opaque, spread


def _geometry() -> tuple[int, int, int]:
    """(rows, lanes, floats in a register) such that the accumulators fill the registers of this CPU."""
    features = target()[2]
    if "+avx512f" in features:
        return 12, 32, 16  # 24 of 32 registers of 16
    if "+avx2" in features:
        return 6, 16, 8  # 12 of 16 registers of 8
    return 6, 16, 4  # NEON: 24 of 32 registers of 4


ROWS, LANES, WIDTH = _geometry()
NARROW = 2 * ROWS // 3
"""Rows of the tile that is taken instead, once or twice, where the last one would be a third full or two thirds."""

UNROLL = 8 if INTEL else 4
"""Steps of the innermost loop that are written out: 8 take 0.97 of the time of 4 on cores of Intel's; 16 took twice."""


def _make(rows: int, lanes: int, width: int) -> Any:
    """The product of a geometry, as an intrinsic."""
    vector = ir.VectorType(FLOAT, width)
    parts = range(lanes // width)

    def emit(builder: ir.IRBuilder, steps: int, first: Any, sums: Any, operands: Any) -> Any:
        """The sums (row by row, part by part) of k = first on, `steps` at a time; where it ended, and the sums."""
        left, row_stride, k_stride, right, end = operands

        def body(k: Any, held: list[Any]) -> list[Any]:
            for step in range(steps):
                here = builder.add(k, INT64(step))
                right_row = at(builder, right, (here, 4 * lanes))
                factors = [load(builder, at(builder, right_row, (4 * width, part)), vector) for part in parts]
                left_column = opaque(builder, at(builder, left, (here, k_stride)))
                for row in range(rows):
                    address = at(builder, left_column, (row_stride, row))
                    number = spread(builder, load(builder, address, FLOAT), vector)
                    for part in parts:
                        i = row * len(parts) + part
                        held[i] = multiply_add(builder, number, factors[part], held[i])
            return held

        return loop(builder, first, end, steps, sums, body)

    @intrinsic
    def tile(
        typingctx: Any,
        left: Any,
        row_stride: Any,
        k_stride: Any,
        right: Any,
        K: Any,
        before: Any,
        before_stride: Any,
        out: Any,
        out_stride: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            *operands, before, before_stride, out, out_stride = arguments
            zeros = [ir.Constant(vector, [0.0] * width)] * (rows * len(parts))
            k, sums = emit(builder, UNROLL, INT64(0), zeros, operands)
            _, sums = emit(builder, 1, k, sums, operands)
            for i, one in enumerate(sums):
                row, part = divmod(i, len(parts))
                here = at(builder, before, (before_stride, row), (4 * width, part))
                there = at(builder, out, (out_stride, row), (4 * width, part))
                total = builder.fadd(load(builder, here, vector), one)
                builder.store(total, pointer(builder, there, vector), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return tile


tile, narrow_tile = _make(ROWS, LANES, WIDTH), _make(NARROW, LANES, WIDTH)
"""`tile(left, row stride, k stride, right, K, before, stride, out, stride)`: out = before + the product; by address,
strides in bytes."""


@plain
def narrow_tiles(rows):
    """How many tiles, the last ones, are narrow where so many rows are taken by no more tiles than they need."""
    return min(-(-rows // ROWS), -rows % ROWS // (ROWS - NARROW))


@plain
def first_row(tile, wide):
    """The first row of a tile, where so many wide ones stand before narrow ones."""
    return NARROW * tile + (ROWS - NARROW) * min(tile, wide)
