"""The softmax of attention over int8 values: from the scores of a query to bytes, without a stop in memory.

What meets a value is its weight times its scale; that product is what a byte from 0 to DOT.most is rounded from. So
its maximum over a block, and not that of the weights, is the largest byte: the first token often draws most of the
weight to a value of next to nothing. All in powers of two: a product is 2^(score + log2 of the scale - maximum).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir

from tinylm.kernels.dot import DOT
from tinylm.kernels.exponential import SMALLEST
from tinylm.kernels.jit import cgutils, intrinsic, types
from tinylm.kernels.simd import FLOAT, INT8, INT32, INT64, pointer
from tinylm.kernels.softmax import LOWEST, Vectors
from tinylm.kernels.tile import WIDTH
from tinylm.kernels.tile_attention import BLOCK
from tinylm.kernels.vectors import at, load, loop, multiply_add, spread

UNROLL = 6
"""Registers at a time: so many exponentials are under way together."""

COEFFICIENTS = [math.log(2) ** n / math.factorial(n) for n in range(5)]
"""exp2 on [-0.5, 0.5], to 5e-5: a hundredth of a byte's step."""


def weights_reference(scores, logarithms, visible):
    """Scores and log2 of the values' scales (BLOCK,), of which the first `visible` count.

    Returns the maximum of their sum; the bytes 2^(sum - maximum) * DOT.most, rounded; and the sum of the weights,
    DOT.most * 2^(score - maximum).
    """
    seen = np.arange(len(scores)) < visible
    sums = np.where(seen, scores + logarithms, -np.inf)
    top = sums.max()
    products = np.exp2(sums - top) * DOT.most
    return top, np.rint(products).astype(np.uint8), (products[seen] / np.exp2(logarithms[seen])).sum()


class _Row(Vectors):
    """Writes loops over the numbers of a row, of which the first `visible` count."""

    def __init__(self, builder: ir.IRBuilder, visible: ir.Value) -> None:
        super().__init__(builder, WIDTH)
        self._limit = spread(builder, builder.trunc(visible, INT32), self.integers)

    def seen(self, index: ir.Value) -> ir.Value:
        """Which numbers of the register count whose first is `index`."""
        counted = ir.Constant(self.integers, list(range(WIDTH)))
        place = self.builder.add(
            counted, spread(self.builder, self.builder.trunc(index, INT32), self.integers)
        )
        return self.builder.icmp_signed("<", place, self._limit)

    def over(self, first: ir.Value, body: Any) -> list[ir.Value]:
        """`state = body(index, state)` for every register of the row, UNROLL states side by side."""

        def some(index: ir.Value, states: list[ir.Value]) -> list[ir.Value]:
            places = [self.builder.add(index, INT64(WIDTH * part)) for part in range(UNROLL)]
            return [body(place, state) for place, state in zip(places, states, strict=True)]

        return loop(self.builder, INT64(0), INT64(BLOCK), WIDTH * UNROLL, [first] * UNROLL, some)[1]

    def call(self, name: str, returned: ir.Type, *arguments: ir.Value) -> ir.Value:
        """An LLVM intrinsic."""
        kind = ir.FunctionType(returned, [one.type for one in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def sum_at(self, scores: ir.Value, logarithms: ir.Value, index: ir.Value) -> ir.Value:
        """The sums of a register."""
        parts = [
            load(self.builder, at(self.builder, one, (index, 4)), self.floats) for one in (scores, logarithms)
        ]
        return self.builder.fadd(*parts)

    def nearest(self, x: ir.Value) -> ir.Value:
        """The nearest whole numbers, ties to even."""
        return self.call(f"llvm.rint.v{WIDTH}f32", self.floats, x)

    def exp2(self, x: ir.Value) -> ir.Value:
        """2^x for x up to 100; below -126 it stays at 1e-38."""
        builder = self.builder
        y = self.larger(x, self.number(SMALLEST))
        whole = self.nearest(y)
        f = builder.fsub(y, whole)
        power = self.number(COEFFICIENTS[-1])
        for coefficient in reversed(COEFFICIENTS[:-1]):
            power = multiply_add(builder, power, f, self.number(coefficient))
        exponent = builder.shl(builder.fptosi(whole, self.integers), self.integer(23))
        bits = builder.add(builder.bitcast(power, self.integers), exponent)
        return builder.bitcast(bits, self.floats)

    def fold(self, values: list[ir.Value], join: Any) -> ir.Value:
        """All numbers of these registers joined to one."""
        while len(values) > 1:
            rest = values[len(values) // 2 * 2 :]
            values = [join(*pair) for pair in zip(values[::2], values[1::2], strict=False)] + rest
        (value,), lanes = values, WIDTH
        while lanes > 1:
            lanes //= 2
            other = ir.Constant(self.integers, [lane ^ lanes for lane in range(WIDTH)])
            value = join(value, self.builder.shuffle_vector(value, value, other))
        return self.builder.extract_element(value, INT32(0))


@intrinsic
def top_score(typingctx: Any, scores: Any, logarithms: Any, visible: Any) -> Any:
    """The maximum of `weights_reference`, the arrays by address; a NaN is passed over."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row = _Row(builder, arguments[2])

        def compare(index: Any, most: Any) -> Any:
            score = row.sum_at(arguments[0], arguments[1], index)
            return row.larger(most, builder.select(row.seen(index), score, row.number(LOWEST)))

        return row.fold(row.over(row.number(LOWEST), compare), row.larger)

    return types.float32(*[types.int64] * 3), generate


@intrinsic
def weights(
    typingctx: Any, scores: Any, logarithms: Any, inverses: Any, visible: Any, top: Any, numbers: Any
) -> Any:
    """The sum of `weights_reference`; its bytes are written to `numbers`. By addresses but for `visible` and `top`.

    `inverses`: 2^-logarithm.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, logarithms, inverses, visible, top, numbers = arguments
        row = _Row(builder, visible)
        most = ir.Constant(FLOAT, float(np.float32(np.log2(DOT.most))))
        zero = spread(builder, builder.fsub(top, most), row.floats)
        bytes_ = ir.VectorType(INT8, WIDTH)

        def weigh(index: Any, total: Any) -> Any:
            product = row.exp2(builder.fsub(row.sum_at(scores, logarithms, index), zero))
            product = builder.select(row.seen(index), product, row.number(0))
            whole = builder.fptosi(row.nearest(product), row.integers)
            place = pointer(builder, builder.add(numbers, index), bytes_)
            builder.store(builder.trunc(whole, bytes_), place, align=1)
            inverse = load(builder, at(builder, inverses, (index, 4)), row.floats)
            inverse = builder.select(row.seen(index), inverse, row.number(0))
            return multiply_add(builder, product, inverse, total)

        return row.fold(row.over(row.number(0), weigh), builder.fadd)

    return types.float32(*[types.int64] * 4, types.float32, types.int64), generate
