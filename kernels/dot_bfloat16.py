"""A row of bfloat16 weights times one token: two weights of each word, by a shift and by a mask.

A register full of bfloat16 is two of float32, those at even places and those at odd ones. The token is `split` so once
for many rows. To widen each half of a register apart takes more of a core than reading it at the memory's speed leaves.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from llvmlite import ir

from tinylm.kernels.jit import intrinsic, njit, types
from tinylm.kernels.narrow_floats import load_wide
from tinylm.kernels.operands import float32_1d_at
from tinylm.kernels.simd import CACHE_LINE, FLOAT, INT32, INT64, pointer
from tinylm.kernels.streams import emit_ahead
from tinylm.kernels.tile import WIDTH
from tinylm.kernels.tile_few import SUMS, totals
from tinylm.kernels.vectors import at, load, loop, multiply_add, shuffle

BOTH = 2 * WIDTH
"""Weights of a register."""

FLOATS, WORDS, ONE = ir.VectorType(FLOAT, WIDTH), ir.VectorType(INT32, WIDTH), ir.VectorType(FLOAT, 1)


@intrinsic
def _split_registers(typingctx: Any, x: Any, K: Any, out: Any) -> Any:
    """Of each BOTH numbers at an address those at even places, then those at odd ones, to another.

    Returns how many numbers are done.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, K, out = arguments

        def some(k: Any, state: list[Any]) -> list[Any]:
            here = [load(builder, at(builder, x, (4, k), (4 * WIDTH, half)), FLOATS) for half in (0, 1)]
            for half in (0, 1):
                numbers = shuffle(builder, here[0], here[1], list(range(half, BOTH, 2)))
                place = at(builder, out, (4, k), (4 * WIDTH, half))
                builder.store(numbers, pointer(builder, place, FLOATS), align=4)
            return state

        return loop(builder, INT64(0), K, BOTH, [], some)[0]

    return types.int64(types.int64, types.int64, types.int64), generate


@njit
def split(x, K, out):
    """K float32 at an address, as `dot_split` takes them, to another: whole registers split, the rest as it is."""
    source, target = float32_1d_at(x, K), float32_1d_at(out, K)
    for k in range(_split_registers(x, np.int64(K), out), K):
        target[k] = source[k]


@intrinsic
def dot_split(typingctx: Any, weights: Any, K: Any, x: Any, out: Any) -> Any:
    """A row (K,) of bfloat16 weights times a token that was `split`, to a float32; all by address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        weights, K, x, out = arguments
        shift, mask = (ir.Constant(WORDS, [one] * WIDTH) for one in (16, -0x10000))

        def registers(count: int) -> Any:
            def body(k: Any, sums: list[Any]) -> list[Any]:
                for number in range(count):
                    here = builder.add(k, INT64(BOTH * number))
                    place = at(builder, weights, (2, here))
                    if 2 * BOTH * number % CACHE_LINE == 0:
                        emit_ahead(builder, place)
                    words = load(builder, place, WORDS, 2)
                    halves = builder.shl(words, shift), builder.and_(words, mask)
                    for half, found in enumerate(halves):
                        factor = load(builder, at(builder, x, (4, here), (4 * WIDTH, half)), FLOATS)
                        i = (2 * number + half) % len(sums)
                        sums[i] = multiply_add(builder, builder.bitcast(found, FLOATS), factor, sums[i])
                return sums

            return body

        def rest(width: int) -> Any:
            def body(k: Any, sums: list[Any]) -> list[Any]:
                found = load_wide(builder, at(builder, weights, (2, k)), types.uint16, width)
                factor = load(builder, at(builder, x, (4, k)), found.type)
                return [multiply_add(builder, found, factor, sums[0])]

            return body

        zeros = [ir.Constant(FLOATS, [0.0] * WIDTH)] * SUMS
        k, sums = loop(builder, INT64(0), K, SUMS * WIDTH, zeros, registers(SUMS // 2))
        k, sums = loop(builder, k, K, BOTH, [reduce(builder.fadd, sums[i::2]) for i in (0, 1)], registers(1))
        k, sums = loop(builder, k, K, WIDTH, [reduce(builder.fadd, sums)], rest(WIDTH))
        ends = [builder.bitcast(total, ONE) for total in totals(builder, sums)]
        _, (end,) = loop(builder, k, K, 1, ends, rest(1))
        builder.store(end, pointer(builder, out, ONE), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate
