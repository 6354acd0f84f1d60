"""The tile of `tile_attention_int8` by the matrix unit AMX: 16 queries, 16 columns of a head, a block of positions."""

from __future__ import annotations

from typing import Any

from tinylm.kernels.dot import COLUMNS, ROWS
from tinylm.kernels.hadamard import GROUP
from tinylm.kernels.jit import intrinsic, njit, types
from tinylm.kernels.simd import FLOAT, INT8, INT64, pointer
from tinylm.kernels.tile_amx import (
    FLOATS,
    FREE,
    INTEGERS,
    LEFT,
    RIGHT,
    SUMS,
    TOKENS,
    call_amx,
    give_shape,
)
from tinylm.kernels.tile_attention import BLOCK
from tinylm.kernels.vectors import at, load, multiply_add, spread

REST_LEFT, REST_RIGHT = FREE, FREE + 1
"""Tiles of the positions of a block that are left after whole groups of 64, weights and values."""

WHOLE, REST = BLOCK // GROUP, BLOCK % GROUP


@njit
def shape_rest(shapes):
    """Write the shapes of these tiles into a configuration at an address."""
    give_shape(shapes, REST_LEFT, TOKENS, REST)
    give_shape(shapes, REST_RIGHT, REST // COLUMNS, COLUMNS * ROWS)


@intrinsic
def weigh_amx(
    typingctx: Any, values: Any, weights: Any, shrink: Any, scale: Any, sums: Any, sum_stride: Any, room: Any
) -> Any:
    """As a tile of `tile_attention_int8.make_weigh`, of 16 queries and one block of columns, whose weights (16, BLOCK)
    all count; `room`: ROOM bytes, by address.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, weights, shrink, scale, sums, sum_stride, room = arguments
        call_amx(builder, "tilezero", SUMS)
        tiles = [(LEFT, RIGHT)] * WHOLE + [(REST_LEFT, REST_RIGHT)] * bool(REST)
        for number, (left, right) in enumerate(tiles):
            first = pointer(builder, at(builder, weights, (GROUP, number)), INT8)
            call_amx(builder, "tileloadd64", left, first, INT64(BLOCK))
            first = pointer(builder, at(builder, values, (GROUP * ROWS, number)), INT8)
            call_amx(builder, "tileloadd64", right, first, INT64(COLUMNS * ROWS))
            call_amx(builder, "tdpbusd", SUMS, left, right)
        call_amx(builder, "tilestored64", SUMS, pointer(builder, room, INT8), INT64(4 * ROWS))
        for query in range(TOKENS):
            factors = [
                spread(builder, load(builder, at(builder, one, (4, query)), FLOAT), FLOATS)
                for one in (shrink, scale)
            ]
            place = at(builder, sums, (sum_stride, query))
            before = builder.fmul(load(builder, place, FLOATS), factors[0])
            total = builder.sitofp(load(builder, at(builder, room, (4 * ROWS, query)), INTEGERS, 64), FLOATS)
            new = multiply_add(builder, total, factors[1], before)
            builder.store(new, pointer(builder, place, FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate
