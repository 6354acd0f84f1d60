"""What happens number by number: activations, gated products, sums. One unit of work is BLOCK numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinylm.kernels.exponential import Vectors, exp
from tinylm.kernels.jit import intrinsic, njit, operation, types
from tinylm.kernels.operands import float32_1d, float32_1d_at
from tinylm.kernels.simd import INT64, pointer, scratch
from tinylm.kernels.tile import WIDTH
from tinylm.kernels.vectors import at, load, loop

BLOCK = 256

ONE, HALF = np.float32(1), np.float32(0.5)
SQRT_HALF = np.float32(math.sqrt(0.5))
SQRT_2_OVER_PI = np.float32(math.sqrt(2 / math.pi))


def silu_reference(x):
    """x * sigmoid(x) (Elfwing et al. 2017, arXiv:1702.03118)."""
    with np.errstate(over="ignore"):
        return (x / (1 + np.exp(-x))).astype(np.float32)


def gelu_reference(x):
    """x * Phi(x), exact, with the error function (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    erf = np.vectorize(math.erf, otypes=[np.float64])(x * math.sqrt(0.5)) if x.size else x
    return (0.5 * x * (1 + erf)).astype(np.float32)


def gelu_tanh_reference(x):
    """The tanh approximation of GELU, `gelu_new` and `gelu_pytorch_tanh` of the configs."""
    return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))).astype(np.float32)


def relu_reference(x):
    """max(x, 0)."""
    return np.maximum(x, np.float32(0))


ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
SILU, GELU, GELU_TANH, RELU = range(4)
REFERENCES = (silu_reference, gelu_reference, gelu_tanh_reference, relu_reference)


@njit
def _sigmoid(x):
    return ONE / (ONE + exp(-x))


@intrinsic
def _silu_registers(typingctx: Any, x: Any, out: Any, n: Any) -> Any:
    """silu of float32 at an address to another, register by register; returns how many are done.

    LLVM's own loop takes twice as long on Intel's: it halves the registers and builds the division of several steps.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, out, n = arguments
        vectors = Vectors(builder, WIDTH)

        def some(index: Any, state: list[Any]) -> list[Any]:
            numbers = load(builder, at(builder, x, (4, index)), vectors.floats)
            made = builder.fmul(numbers, vectors.sigmoid(numbers))
            builder.store(made, pointer(builder, at(builder, out, (4, index)), vectors.floats), align=4)
            return state

        return loop(builder, INT64(0), n, WIDTH, [], some)[0]

    return types.int64(types.int64, types.int64, types.int64), generate


@njit
def _silu(x, out):
    """silu of x (n,) into out (n,): each number as in a register, wherever it stands."""
    done = _silu_registers(x.ctypes.data, out.ctypes.data, np.int64(len(x)))
    if done == len(x):
        return
    rest, made = scratch(4 * WIDTH), scratch(4 * WIDTH)
    numbers, results = float32_1d_at(rest, WIDTH), float32_1d_at(made, WIDTH)
    numbers[:] = np.float32(0)
    for i in range(done, len(x)):
        numbers[i - done] = x[i]
    _silu_registers(rest, made, np.int64(WIDTH))
    for i in range(done, len(x)):
        out[i] = results[i - done]


@njit
def _erf(x):
    """The error function to 1.5e-7 (Abramowitz and Stegun 7.1.26)."""
    size = abs(x)
    t = ONE / (ONE + np.float32(0.3275911) * size)
    poly = np.float32(1.061405429) * t - np.float32(1.453152027)
    poly = poly * t + np.float32(1.421413741)
    poly = poly * t - np.float32(0.284496736)
    poly = poly * t + np.float32(0.254829592)
    value = ONE - poly * t * exp(-size * size)
    return value if x >= 0 else -value


@njit
def _gelu(x):
    return HALF * x * (ONE + _erf(x * SQRT_HALF))


@njit
def _gelu_tanh(x):
    # 0.5 (1 + tanh(z)) is the sigmoid of 2 z
    return x * _sigmoid(np.float32(2) * SQRT_2_OVER_PI * (x + np.float32(0.044715) * x * x * x))


@njit
def activate(kind, x, out, begin, end):
    """Blocks `begin` to `end` of the activation ACTIVATIONS[kind] of x (n,) into out (n,)."""
    part = slice(begin * BLOCK, min(end * BLOCK, x.shape[0]))
    x, out = x[part], out[part]
    if kind == SILU:
        _silu(x, out)
    elif kind == GELU:
        for i in range(len(x)):
            out[i] = _gelu(x[i])
    elif kind == GELU_TANH:
        for i in range(len(x)):
            out[i] = _gelu_tanh(x[i])
    else:
        for i in range(len(x)):
            out[i] = max(x[i], np.float32(0))


def activate_reference(kind, x):
    """The activation ACTIVATIONS[kind] of x."""
    return REFERENCES[kind](x)


def gate_reference(kind, x, y):
    """activation(x) * y: the gate of SwiGLU and its kin (Shazeer 2020, arXiv:2002.05202)."""
    return activate_reference(kind, x) * y


@njit
def gate(kind, x, y, out, begin, end):
    """Blocks `begin` to `end` of `gate_reference` of x, y (n,) into out (n,)."""
    activate(kind, x, out, begin, end)
    part = slice(begin * BLOCK, min(end * BLOCK, x.shape[0]))
    y, out = y[part], out[part]
    for i in range(len(y)):
        out[i] *= y[i]


def add_reference(x, y):
    """x + y."""
    return x + y


@njit
def add(x, y, out, begin, end):
    """Blocks `begin` to `end` of x (n,) + y (n,) into out (n,)."""
    part = slice(begin * BLOCK, min(end * BLOCK, x.shape[0]))
    x, y, out = x[part], y[part], out[part]  # from 0 on, for an index that may be negative is no SIMD
    for i in range(len(x)):
        out[i] = x[i] + y[i]


@operation
def activate_operation(operands, begin, end):
    """kind (1), x (2), out (2)."""
    activate(operands[0], float32_1d(operands, 1), float32_1d(operands, 3), begin, end)


@operation
def gate_operation(operands, begin, end):
    """kind (1), x (2), y (2), out (2)."""
    x, y, out = float32_1d(operands, 1), float32_1d(operands, 3), float32_1d(operands, 5)
    gate(operands[0], x, y, out, begin, end)


@operation
def add_operation(operands, begin, end):
    """x (2), y (2), out (2)."""
    add(float32_1d(operands, 0), float32_1d(operands, 2), float32_1d(operands, 4), begin, end)
