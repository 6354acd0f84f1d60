"""int8 weights of `matmul_integers`: the largest of a group is 127 times its scale."""

import numpy as np

from tinylm.kernels.dot import COLUMNS, ROWS
from tinylm.kernels.gated_integers import GATED_TOKENS, gated_operation, make_gated
from tinylm.kernels.hadamard import GROUP
from tinylm.kernels.jit import carray, njit, operation
from tinylm.kernels.matmul_integers import (
    NAN_BITS,
    groups_reference,
    make_product,
    make_quantize,
    make_take,
    quantize_operations,
    restore_reference,
    scales_reference,
    steps_of,
    widened,
)
from tinylm.kernels.operands import float32_2d, int64_1d
from tinylm.kernels.simd import float_bits, memory, nearest_int32, to_float32


def quantize_reference(weight):
    """`(N, K) -> (blocks, K / 4, 16, 4) int8, (blocks, G, 16) uint16`: scale = max / 127 rounded up to bfloat16."""
    parts = groups_reference(weight)
    largest = np.abs(parts).max(axis=-1) / np.float32(127)
    bits = ((largest.view(np.uint32).astype(np.uint64) + 0xFFFF) >> 16).astype(np.uint16)
    scale = widened(bits)
    divided = np.divide(parts, scale[..., None], out=np.zeros_like(parts), where=scale[..., None] > 0)
    steps = steps_of(weight.shape[1])
    numbers = np.rint(divided).astype(np.int8).reshape(len(parts), -1)[:, : COLUMNS * steps]
    packed = numbers.reshape(-1, ROWS, steps, COLUMNS).swapaxes(1, 2)
    return np.ascontiguousarray(packed), scales_reference(bits)


def dequantize_reference(packed, scales, N, K):
    """`(blocks, K / 4, 16, 4) int8, (blocks, G, 16) uint16 -> (N, K)` float32."""
    numbers = packed.swapaxes(1, 2).reshape(len(packed) * ROWS, -1).astype(np.float32)
    return restore_reference(numbers, scales, N, K)


@njit
def _round_group(numbers, codes):
    largest, nothing = np.float32(0), np.float32(0)
    for number in numbers:
        largest = max(largest, abs(number))
        nothing += np.float32(0) * number  # but for infinity and NaN, which must come through
    bits = (np.int64(float_bits(largest / np.float32(127))) + 0xFFFF) >> 16
    if np.isnan(nothing):
        bits = np.int64(NAN_BITS)
    scale = to_float32(np.uint16(bits))
    inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
    for k in range(GROUP):
        codes[k] = np.uint8(np.int8(nearest_int32(numbers[k] * inverse)))
    return bits


quantize = make_quantize(8, _round_group)
quantize_float32_operation, quantize_bfloat16_operation = quantize_operations("int8", quantize)

matmul_int8 = make_product(8)
gated_int8 = make_gated(8, GATED_TOKENS, matmul_int8)
gated_int8_operation = gated_operation("int8", gated_int8)


@njit
def _number_at(weights, K, row, k):
    steps = -(-K // COLUMNS)
    address = weights + (row // ROWS * steps + k // COLUMNS) * ROWS * COLUMNS
    return carray(memory(address), (ROWS, COLUMNS), np.int8)[row % ROWS, k % COLUMNS]


take = make_take(_number_at)


@operation
def matmul_int8_operation(operands, begin, end):
    """packed (3), weights address, scales address, K (1 each), out (3)."""
    packed, out = float32_2d(operands, 0), float32_2d(operands, 6)
    matmul_int8(packed, operands[3], operands[4], operands[5], out, begin, end)


@operation
def take_int8_operation(operands, begin, end):
    """weights address, scales address, K (1 each), indices (2), out (3)."""
    take(operands[0], operands[1], int64_1d(operands, 3), float32_2d(operands, 5), begin, end)
