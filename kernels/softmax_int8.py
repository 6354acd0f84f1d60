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
from tinylm.kernels.exponential import SMALLEST, Vectors
from tinylm.kernels.jit import cgutils, intrinsic, njit, types
from tinylm.kernels.simd import FLOAT, INT8, INT32, INT64, pointer
from tinylm.kernels.softmax import LOWEST
from tinylm.kernels.tile import WIDTH
from tinylm.kernels.tile_attention import BLOCK
from tinylm.kernels.vectors import at, load, loop, multiply_add, shuffle, spread

UNROLL = 6
"""Registers at a time: so many exponentials are under way together."""

COEFFICIENTS = [math.log(2) ** n / math.factorial(n) for n in range(5)]
"""exp2 on [-0.5, 0.5], to 5e-5: a hundredth of a byte's step."""


MAGIC = 1.5 * 2.0**23
"""Added to a float32 of less than 2^22: what is left of it is a whole number, which stands in the low bits. Taken off
again it would vanish: fast arithmetic may reorder."""


def weights_reference(sums, logarithms, visible):
    """Scores plus log2 of the values' scales, and these alone (BLOCK,), of which the first `visible` count.

    Returns the maximum of the sums; the bytes 2^(sum - maximum) * DOT.most, rounded; and the sum of the weights,
    DOT.most * 2^(score - maximum).
    """
    seen = np.arange(len(sums)) < visible
    sums = np.where(seen, sums, -np.inf)
    top = sums.max()
    products = np.exp2(sums - top) * DOT.most
    return top, np.rint(products).astype(np.uint8), (products[seen] / np.exp2(logarithms[seen])).sum()


class _Row(Vectors):
    """Writes loops over the numbers of a row: all of them count, or the first `visible`."""

    def __init__(self, builder: ir.IRBuilder, visible: ir.Value | None) -> None:
        super().__init__(builder, WIDTH)
        self._limit = (
            None if visible is None else spread(builder, builder.trunc(visible, INT32), self.integers)
        )

    def if_seen(self, index: ir.Value, numbers: ir.Value, other: ir.Value) -> ir.Value:
        """The numbers of the register whose first is `index`, and others for those that do not count."""
        if self._limit is None:
            return numbers
        counted = ir.Constant(self.integers, list(range(WIDTH)))
        place = self.builder.add(
            counted, spread(self.builder, self.builder.trunc(index, INT32), self.integers)
        )
        return self.builder.select(self.builder.icmp_signed("<", place, self._limit), numbers, other)

    def over(self, first: ir.Value, body: Any) -> list[ir.Value]:
        """`state = body(index, state)` for every register of the row, UNROLL states side by side."""

        def some(index: ir.Value, states: list[ir.Value]) -> list[ir.Value]:
            places = [self.builder.add(index, INT64(WIDTH * part)) for part in range(UNROLL)]
            return [body(place, state) for place, state in zip(places, states, strict=True)]

        return loop(self.builder, INT64(0), INT64(BLOCK), WIDTH * UNROLL, [first] * UNROLL, some)[1]

    def nearest_in_low_bits(self, x: ir.Value) -> ir.Value:
        """The nearest whole numbers, ties to even, of 0 <= x < 2^22: in the low bits of int32."""
        return self.builder.bitcast(self.builder.fadd(x, self.number(MAGIC)), self.integers)

    def exp2(self, x: ir.Value) -> ir.Value:
        """2^x for x up to 100; below -126 it stays at 1e-38."""
        builder = self.builder
        y = self.larger(x, self.number(SMALLEST))
        kind = ir.FunctionType(self.floats, [self.floats])
        rint = cgutils.get_or_insert_function(builder.module, kind, f"llvm.rint.v{WIDTH}f32")
        whole = builder.call(rint, [y])
        f = builder.fsub(y, whole)
        power = self.number(COEFFICIENTS[-1])
        for coefficient in reversed(COEFFICIENTS[:-1]):
            power = multiply_add(builder, power, f, self.number(coefficient))
        exponent = builder.shl(builder.fptosi(whole, self.integers), self.integer(23))
        return builder.bitcast(builder.add(builder.bitcast(power, self.integers), exponent), self.floats)

    def fold(self, values: list[ir.Value], join: Any) -> ir.Value:
        """All numbers of these registers joined to one."""
        while len(values) > 1:
            rest = values[len(values) // 2 * 2 :]
            values = [join(*pair) for pair in zip(values[::2], values[1::2], strict=False)] + rest
        (value,), lanes = values, WIDTH
        while lanes > 1:  # halves, of which each takes less of the processor than the one before
            lanes //= 2
            value = join(
                *(shuffle(self.builder, value, value, [*range(first, first + lanes)]) for first in (0, lanes))
            )
        return self.builder.extract_element(value, INT32(0))


def _make_top(masked: bool) -> Any:
    @intrinsic
    def top(typingctx: Any, sums: Any, visible: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            row = _Row(builder, arguments[1] if masked else None)

            def compare(index: Any, most: Any) -> Any:
                numbers = load(builder, at(builder, arguments[0], (index, 4)), row.floats)
                return row.larger(most, row.if_seen(index, numbers, row.number(LOWEST)))

            return row.fold(row.over(row.number(LOWEST), compare), row.larger)

        return types.float32(*[types.int64] * 2), generate

    return top


def _make_weights(masked: bool) -> Any:
    @intrinsic
    def weights(typingctx: Any, sums: Any, inverses: Any, visible: Any, top: Any, numbers: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            sums, inverses, visible, top, numbers = arguments
            row = _Row(builder, visible if masked else None)
            most = ir.Constant(FLOAT, float(np.float32(np.log2(DOT.most))))
            zero = spread(builder, builder.fsub(top, most), row.floats)
            bytes_ = ir.VectorType(INT8, WIDTH)

            def weigh(index: Any, total: Any) -> Any:
                here = load(builder, at(builder, sums, (index, 4)), row.floats)
                product = row.if_seen(index, row.exp2(builder.fsub(here, zero)), row.number(0))
                whole = row.nearest_in_low_bits(product)
                place = pointer(builder, builder.add(numbers, index), bytes_)
                builder.store(builder.trunc(whole, bytes_), place, align=1)
                inverse = load(builder, at(builder, inverses, (index, 4)), row.floats)
                return multiply_add(builder, product, row.if_seen(index, inverse, row.number(0)), total)

            return row.fold(row.over(row.number(0), weigh), builder.fadd)

        return types.float32(*[types.int64] * 3, types.float32, types.int64), generate

    return weights


_top_of_all, _top_of_some = (_make_top(masked) for masked in (False, True))
_weights_of_all, _weights_of_some = (_make_weights(masked) for masked in (False, True))


@njit
def top_score(sums, visible):
    """The maximum of `weights_reference`, the sums by address; a NaN is passed over."""
    return _top_of_all(sums, visible) if visible == BLOCK else _top_of_some(sums, visible)


@njit
def weights(sums, inverses, visible, top, numbers):
    """The sum of `weights_reference`; its bytes are written to `numbers`. By addresses but for `visible` and `top`.

    `inverses`: 2^-logarithm.
    """
    if visible == BLOCK:
        return _weights_of_all(sums, inverses, visible, top, numbers)
    return _weights_of_some(sums, inverses, visible, top, numbers)
