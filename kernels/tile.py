"""The register tile: the innermost loop of products with many tokens, prefill attention included.

`(ROWS, K) @ (K, lanes) -> (ROWS, lanes)`: the accumulators stay in vector registers while K runs; each step
loads one row of the right side and broadcasts ROWS numbers of the left. The right side is *packed*: lanes
(tokens) lie side by side for each k. The left side is read where it lies, by its strides, so a weight
matrix is multiplied straight from its memory map.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tinylm.kernels.jit import intrinsic, types
from tinylm.kernels.simd import FLOAT, INT64, pointer
from tinylm.kernels.streams import INTEL
from tinylm.kernels.target import target
from tinylm.kernels.vectors import at, load, loop, multiply_add, shuffle, spread, transposed


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
                left_column = at(builder, left, (here, k_stride))
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
        typingctx: Any, left: Any, row_stride: Any, k_stride: Any, right: Any, K: Any, before: Any, out: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            *operands, before, out = arguments
            zeros = [ir.Constant(vector, [0.0] * width)] * (rows * len(parts))
            k, sums = emit(builder, UNROLL, INT64(0), zeros, operands)
            _, sums = emit(builder, 1, k, sums, operands)
            for i, one in enumerate(sums):
                total = builder.fadd(load(builder, at(builder, before, (4 * width, i)), vector), one)
                builder.store(total, pointer(builder, at(builder, out, (4 * width, i)), vector), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return tile


def make_turn(rows: int, lanes: int, width: int) -> Any:
    """Writes what the tile of a geometry made, transposed, as an intrinsic."""
    vector = ir.VectorType(FLOAT, width)
    fours = range(0, width, 4)

    def mix(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, order: tuple[int, ...]) -> ir.Value:
        """Of every four lanes those of `order`: 0 to 3 stand for x's, 4 to 7 for y's."""
        return shuffle(builder, x, y, [first + i % 4 + width * (i // 4) for first in fours for i in order])

    def columns(builder: ir.IRBuilder, held: list[Any]) -> list[tuple[Any, int]]:
        """Vectors of two or four rows -> for each lane the vector, and the place there, where its rows stand."""
        lower, upper = [], []
        for x, y in zip(held[::2], held[1::2], strict=True):
            lower.append(mix(builder, x, y, (0, 4, 1, 5)))
            upper.append(mix(builder, x, y, (2, 6, 3, 7)))
        if len(held) == 2:
            return [((lower, upper)[lane % 4 // 2][0], lane // 4 * 4 + lane % 2 * 2) for lane in range(width)]
        turned = []
        for x, y in (lower, upper):
            turned += [mix(builder, x, y, (0, 1, 4, 5)), mix(builder, x, y, (2, 3, 6, 7))]
        return [(turned[lane % 4], lane // 4 * 4) for lane in range(width)]

    @intrinsic
    def turn(typingctx: Any, sums: Any, out: Any, stride: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            sums, out, stride = arguments
            for part in range(lanes // width):
                for first in range(0, rows, 4):
                    some = range(first, min(first + 4, rows))
                    places = [at(builder, sums, (4 * lanes, row), (4 * width, part)) for row in some]
                    held = [load(builder, place, vector) for place in places]
                    for lane, (found, begin) in enumerate(columns(builder, held)):
                        found = shuffle(builder, found, found, [begin + i % 4 for i in range(len(some))])
                        place = at(builder, out, (stride, part * width + lane), (4, first))
                        builder.store(found, pointer(builder, place, found.type), align=4)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate

    return turn


def make_lay(lanes: int) -> Any:
    """The transposition of so many rows, whole registers, as an intrinsic."""
    vector = ir.VectorType(FLOAT, WIDTH)

    @intrinsic
    def lay(typingctx: Any, x: Any, stride: Any, K: Any, out: Any, out_stride: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, stride, K, out, out_stride = arguments

            def columns(k: Any, state: list[Any]) -> list[Any]:
                for part in range(0, lanes, WIDTH):
                    places = [at(builder, x, (stride, part + i), (4, k)) for i in range(WIDTH)]
                    rows = [load(builder, place, vector) for place in places]
                    for i, column in enumerate(transposed(builder, rows)):
                        place = at(builder, out, (out_stride, k), (out_stride, i), (4, part))
                        builder.store(column, pointer(builder, place, vector), align=4)
                return state

            done, _ = loop(builder, INT64(0), K, WIDTH, [], columns)
            return done

        return types.int64(*[types.int64] * 5), generate

    return lay


tile, narrow_tile = _make(ROWS, LANES, WIDTH), _make(NARROW, LANES, WIDTH)
"""`tile(left, row stride, k stride, right, K, before, out)`: out = before + the product; by address, strides in
bytes."""

turn = make_turn(ROWS, LANES, WIDTH)
"""`turn(sums, out, stride)`: sums (ROWS, LANES) as LANES rows of ROWS numbers, at a stride in bytes."""

lay_side_by_side = make_lay(LANES)
"""`lay_side_by_side(x, stride, K, out, stride)`: LANES rows of x as (K, LANES), by addresses, at strides in bytes;
returns the first column left to do. Done are whole registers of columns.
"""
