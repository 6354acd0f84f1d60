"""The register tile that weighs int8 values: bytes of a few queries times blocks of 16 columns of a head.

Over all positions of a block in one sum of int32: weights have one scale for all of them, values none of their own.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tinylm.kernels.dot import COLUMNS, DOT, ROWS
from tinylm.kernels.jit import intrinsic, types
from tinylm.kernels.simd import FLOAT, INT64
from tinylm.kernels.tile_attention import BLOCK
from tinylm.kernels.tile_integers import Products
from tinylm.kernels.vectors import at, load, multiply_add, spread

TOKENS = (8, 4, 1) if DOT.lanes == 16 else (4, 2, 1)
"""Queries that tiles take at a time."""

BLOCKS = (2 if DOT.lanes == 16 else 1, 1, 1)
"""Blocks of 16 rows that each of these tiles takes."""

UNROLL = 4

ROUND = UNROLL * COLUMNS
"""Positions a round."""


def make_weigh(tokens: int, blocks: int) -> Any:
    """`weigh(rounds, values, weights, stride, shrink, scale, sums, sum_stride)`: by addresses, strides in bytes.

    sums = sums * shrink + weights @ values * scale, in place. Values (blocks, BLOCK / 4, 16, 4) int8; weights
    (tokens, BLOCK), bytes from 0 to DOT.most, of which the first rounds * ROUND count; shrink and scale (tokens,)
    float32; sums (tokens, 16 * blocks).
    """

    @intrinsic
    def weigh(
        typingctx: Any, rounds: Any, values: Any, weights: Any, stride: Any, shrink: Any, scale: Any, sums: Any,
        sum_stride: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            rounds, values, weights, stride, shrink, scale, sums, sum_stride = arguments
            places = [values, INT64(ROWS * BLOCK), weights, stride, sums, sum_stride]
            products = Products(builder, (tokens, blocks), places, positive=True)

            def some(number: ir.Value, totals: dict[Any, ir.Value]) -> dict[Any, ir.Value]:
                first = builder.mul(number, INT64(UNROLL))
                for step in range(UNROLL):
                    products.step(builder.add(first, INT64(step)), totals, step % products.chains)
                return totals

            totals = products.loop(rounds, products.zeros(), some)
            for t, register in products.keys:
                factors = [
                    spread(builder, load(builder, at(builder, one, (4, t)), FLOAT), products.floats)
                    for one in (shrink, scale)
                ]
                place = products.place(t, register)
                before = builder.fmul(builder.load(place, align=4), factors[0])
                total = products.total((t, register), totals)
                builder.store(multiply_add(builder, total, factors[1], before), place, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return weigh
