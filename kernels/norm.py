"""Normalisation of each row: RMSNorm and LayerNorm. One unit of work is one row."""

import numpy as np

from tinylm.kernels.jit import njit, operation
from tinylm.kernels.operands import float32_1d, float32_2d
from tinylm.kernels.simd import float_from_bits


def rmsnorm_reference(x, weight, eps):
    """`(R, D), (D,) -> (R, D)`: x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    return (x / np.sqrt(mean_square + np.float32(eps)) * weight).astype(np.float32)


@njit
def rmsnorm(x, weight, eps, out, begin, end):
    """Rows `begin` to `end` of `rmsnorm_reference` into `out` (R, D)."""
    D = x.shape[1]
    for row in range(begin, end):
        total = np.float32(0)
        for d in range(D):
            total += x[row, d] * x[row, d]
        scale = np.float32(1) / np.sqrt(total / np.float32(D) + eps)
        for d in range(D):
            out[row, d] = x[row, d] * scale * weight[d]


@operation
def rmsnorm_operation(operands, begin, end):
    """x (3), weight (2), eps (1), out (3)."""
    x, weight = float32_2d(operands, 0), float32_1d(operands, 3)
    rmsnorm(x, weight, float_from_bits(operands[5]), float32_2d(operands, 6), begin, end)


def layernorm_reference(x, weight, bias, eps):
    """`(R, D), (D,), (D,) -> (R, D)`: (x - mean) / sqrt(var + eps) * weight + bias.

    Ba et al. 2016, arXiv:1607.06450.
    """
    centred = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float32)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True, dtype=np.float32)
    return (centred / np.sqrt(variance + np.float32(eps)) * weight + bias).astype(np.float32)


@njit
def layernorm(x, weight, bias, eps, out, begin, end):
    """Rows `begin` to `end` of `layernorm_reference` into `out` (R, D)."""
    D = x.shape[1]
    for row in range(begin, end):
        total = np.float32(0)
        for d in range(D):
            total += x[row, d]
        mean = total / np.float32(D)
        squares = np.float32(0)
        for d in range(D):
            squares += (x[row, d] - mean) * (x[row, d] - mean)
        scale = np.float32(1) / np.sqrt(squares / np.float32(D) + eps)
        for d in range(D):
            out[row, d] = (x[row, d] - mean) * scale * weight[d] + bias[d]


@operation
def layernorm_operation(operands, begin, end):
    """x (3), weight (2), bias (2), eps (1), out (3)."""
    x, weight, bias = float32_2d(operands, 0), float32_1d(operands, 3), float32_1d(operands, 5)
    layernorm(x, weight, bias, float_from_bits(operands[7]), float32_2d(operands, 8), begin, end)
