"""exp for float32 in a few multiplications, so that loops over it become SIMD; libm's is one call a number."""

import math

import numpy as np

from tinylm.kernels.jit import njit
from tinylm.kernels.simd import float_of_int32_bits

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
