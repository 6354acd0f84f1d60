"""exp for float32 in a few multiplications, so that loops over it become SIMD; libm's is one call a number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir

from tinylm.kernels.jit import njit
from tinylm.kernels.simd import FLOAT, INT32, float_of_int32_bits
from tinylm.kernels.vectors import multiply_add

LOG2_E = np.float32(1.4426950408889634)
# exp2 on [-0.5, 0.5]: the Taylor coefficients ln(2)^n / n!, whose remainder there is under 2e-8.
COEFFICIENTS = tuple(np.float32(math.log(2) ** n / math.factorial(n)) for n in range(7))
C0, C1, C2, C3, C4, C5, C6 = COEFFICIENTS
SMALLEST, LARGEST = np.float32(-126), np.float32(127)


@njit
def exp(x):
    """e^x for float32 to 2e-7 relative near 0 and 1e-5 at the ends; below e^-87 it stays at 1e-38, never 0.

    2^(n + f) = 2^n 2^f with n an integer (it goes straight to the exponent bits) and f in [-0.5, 0.5].
    -inf gives 1e-38 as well; a mask must therefore set the result to 0 itself where it matters.
    """
    y = x * LOG2_E
    y = SMALLEST if y < SMALLEST else y  # not min and max: NaN must come through
    y = LARGEST if y > LARGEST else y
    n = np.int32(y + np.float32(127.5))
    f = y - np.float32(n - np.int32(127))
    power = C6 * f + C5
    power = power * f + C4
    power = power * f + C3
    power = power * f + C2
    power = power * f + C1
    power = power * f + C0
    return power * float_of_int32_bits(np.int32(n << np.int32(23)))


def exp_reference(x):
    """e^x by NumPy."""
    return np.exp(x)


class Vectors:
    """Writes arithmetic on vectors of `width` float32 or int32."""

    def __init__(self, builder: ir.IRBuilder, width: int) -> None:
        self.builder = builder
        self.floats, self.integers = ir.VectorType(FLOAT, width), ir.VectorType(INT32, width)
        self._width = width

    def number(self, value: float | np.floating[Any]) -> ir.Constant:
        """A float32 in every lane."""
        return ir.Constant(self.floats, [float(value)] * self._width)

    def integer(self, value: int) -> ir.Constant:
        """An int32 in every lane."""
        return ir.Constant(self.integers, [value] * self._width)

    def larger(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """max(x, y), or x where a NaN is involved."""
        return self.builder.select(self.builder.fcmp_ordered("<", x, y), y, x)

    def exp(self, x: ir.Value) -> ir.Value:
        """e^x for x <= 0, as `exponential.exp`."""
        builder = self.builder
        y = self.larger(builder.fmul(x, self.number(LOG2_E)), self.number(SMALLEST))
        n = builder.fptosi(builder.fsub(y, self.number(0.5)), self.integers)
        f = builder.fsub(y, builder.sitofp(n, self.floats))
        power = self.number(COEFFICIENTS[-1])
        for coefficient in reversed(COEFFICIENTS[:-1]):
            power = multiply_add(builder, power, f, self.number(coefficient))
        exponent = builder.shl(builder.add(n, self.integer(127)), self.integer(23))
        return builder.fmul(power, builder.bitcast(exponent, self.floats))

    def sigmoid(self, x: ir.Value) -> ir.Value:
        """1 / (1 + e^-x), by e^-|x|, which is no more than 1."""
        builder = self.builder
        sign = self.integer(-(1 << 31))
        below = builder.bitcast(builder.or_(builder.bitcast(x, self.integers), sign), self.floats)
        power = self.exp(below)
        one = self.number(1)
        above = builder.select(builder.fcmp_ordered(">=", x, self.number(0)), one, power)
        return builder.fdiv(above, builder.fadd(one, power))
