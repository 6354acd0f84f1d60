"""The tiles of AMX for bfloat16: tokens as planes of bfloat16, and 32 rows of weights times 32 tokens.

A float32 is the sum of three bfloat16, so tokens are packed as three planes, and each meets the weights. (With two,
2^-17 of each number is lost: 1e-5 of the logits of a small model.) Weights are left tiles as they lie. Tokens are the
right side, 16 in a tile: plane by plane, pairs of columns of all of them, (K / 2, 16, 2) bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from tinylm.kernels.jit import intrinsic, types
from tinylm.kernels.simd import FLOAT, INT8, INT32, INT64, pointer
from tinylm.kernels.tile_amx import TOKENS, call_amx
from tinylm.kernels.vectors import at, load, loop, shuffle, transposed

COLUMNS = 32
"""Columns that the unit takes at a time."""

ROWS = 2 * TOKENS
"""Rows of weights, and tokens, that meet at a time: four tiles of sums."""

PLANES = 3

STEP_BYTES = TOKENS * COLUMNS * 2
"""Bytes of a plane of a tile of tokens, for COLUMNS of them."""

ROW_BYTES = 64
"""Of a row of a tile."""

FLOATS, INTEGERS = ir.VectorType(FLOAT, TOKENS), ir.VectorType(INT32, TOKENS)


def planes_reference(x):
    """`(T, K) -> (3, T, K)` float32: the bfloat16 nearest to x, the one nearest to what is left, and what then is."""

    def nearest(numbers):
        bits = numbers.view(np.uint32)
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        return ((bits + (np.uint32(0x7FFF) + odd)) & np.uint32(0xFFFF0000)).view(np.float32)

    planes, rest = [], x
    for _ in range(PLANES):
        planes.append(nearest(rest))
        rest = rest - planes[-1]
    return np.stack(planes)


def _nearest(builder: ir.IRBuilder, numbers: ir.Value) -> ir.Value:
    """The bits of the nearest bfloat16 in the upper halves, zeros in the lower."""

    def same(number: int) -> ir.Constant:
        return ir.Constant(INTEGERS, [number] * TOKENS)

    bits = builder.bitcast(numbers, INTEGERS)
    odd = builder.and_(builder.lshr(bits, same(16)), same(1))
    return builder.and_(builder.add(bits, builder.add(odd, same(0x7FFF))), same(-0x10000))


def _pairs(builder: ir.IRBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    """Upper halves of 32 numbers, two to an int32, the earlier below."""
    even, odd = (shuffle(builder, first, second, list(range(part, 2 * TOKENS, 2))) for part in (0, 1))
    return builder.or_(odd, builder.lshr(even, ir.Constant(INTEGERS, [16] * TOKENS)))


@intrinsic
def lay_planes(typingctx: Any, x: Any, stride: Any, K: Any, out: Any, plane: Any) -> Any:
    """16 tokens at a stride, to a packed tile whose planes are so many bytes apart; all by address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, stride, K, out, plane = arguments

        def step(k: Any, state: list[Any]) -> list[Any]:
            words: list[list[Any]] = [[] for _ in range(PLANES)]
            for token in range(TOKENS):
                rest = [
                    load(builder, at(builder, x, (stride, token), (4, k), (ROW_BYTES, part)), FLOATS)
                    for part in (0, 1)
                ]
                for rows in words:
                    bits = [_nearest(builder, half) for half in rest]
                    rows.append(_pairs(builder, *bits))
                    rest = [
                        builder.fsub(half, builder.bitcast(one, FLOATS))
                        for half, one in zip(rest, bits, strict=True)
                    ]
            for place, rows in enumerate(words):
                here = at(builder, out, (k, STEP_BYTES // COLUMNS), (plane, place))
                for i, row in enumerate(transposed(builder, rows)):
                    to = pointer(builder, at(builder, here, (ROW_BYTES, i)), INTEGERS)
                    builder.store(row, to, align=4)
            return state

        loop(builder, INT64(0), K, COLUMNS, [], step)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@intrinsic
def tile(
    typingctx: Any, left: Any, row_bytes: Any, steps: Any, right: Any, tile_bytes: Any, plane: Any, out: Any
) -> Any:
    """32 rows of weights times two tiles of tokens, over so many steps of columns, to (32, 32) float32, by address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, row_bytes, steps, right, tile_bytes, plane, out = arguments
        for sums in range(4):
            call_amx(builder, "tilezero", sums)

        def step(number: Any, state: list[Any]) -> list[Any]:
            for half in (0, 1):
                rows = at(builder, left, (ROW_BYTES, number), (row_bytes, TOKENS * half))
                call_amx(builder, "tileloadd64", 4 + half, pointer(builder, rows, INT8), row_bytes)
            for part in range(PLANES):
                for half in (0, 1):
                    tokens = at(builder, right, (STEP_BYTES, number), (plane, part), (tile_bytes, half))
                    call_amx(
                        builder, "tileloadd64", 6 + half, pointer(builder, tokens, INT8), INT64(ROW_BYTES)
                    )
                for sums in range(4):
                    call_amx(builder, "tdpbf16ps", sums, 4 + sums // 2, 6 + sums % 2)
            return state

        loop(builder, INT64(0), steps, 1, [], step)
        for sums in range(4):
            place = at(builder, out, (2 * ROW_BYTES * TOKENS, sums // 2), (ROW_BYTES, sums % 2))
            call_amx(builder, "tilestored64", sums, pointer(builder, place, INT8), INT64(2 * ROW_BYTES))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate


@intrinsic
def add_tile(typingctx: Any, found: Any, out: Any) -> Any:
    """Add what a `tile` made to another; both are addresses at cache lines."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found, out = arguments
        for i in range(2 * ROWS):
            place = at(builder, out, (ROW_BYTES, i))
            more = load(builder, at(builder, found, (ROW_BYTES, i)), FLOATS, 64)
            total = builder.fadd(load(builder, place, FLOATS, 64), more)
            builder.store(total, pointer(builder, place, FLOATS), align=64)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate
