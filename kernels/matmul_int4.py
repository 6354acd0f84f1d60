"""int4 weights of `matmul_integers`: each the place in LEVELS of what comes nearest, times its group's scale.

The scale of a group is not taken from its largest number but searched: of both signs and several sizes, that with the
smallest sum of squared errors. (Other tables of 16 numbers: NF4 of Dettmers et al. 2023, QLoRA, arXiv:2305.14314.)
"""

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
from tinylm.kernels.operands import float32_1d_at, float32_2d, int64_1d
from tinylm.kernels.simd import float_bits, memory, scratch, to_float32
from tinylm.kernels.tile_integers import LEVELS

ZERO = LEVELS.index(0)
NUMBERS = np.array(LEVELS, np.float32)
MIDDLES = (NUMBERS[1:] + NUMBERS[:-1]) / np.float32(2)
"""Above the first is the second level, above the second the third, ..."""

RISES = NUMBERS[1:] - NUMBERS[:-1]

SIZES = np.linspace(0.75, 1.2, 8).astype(np.float32) / np.float32(127)
"""Scales that are tried, for a group whose largest number is 1."""

BETTER = np.float32(1.0001)
"""By so much a scale must be better than those tried before: more than what the order of a sum makes."""

TINY = np.float32(np.finfo(np.float32).tiny)
"""A group of smaller numbers is stored as zeros."""


def quantize_reference(weight):
    """`(N, K) -> (blocks, K / 8, 16, 4) uint8, (blocks, G, 16) uint16`."""
    parts = groups_reference(weight)
    largest = np.abs(parts).max(axis=-1, keepdims=True)
    parts = np.divide(parts, largest, out=np.zeros_like(parts), where=largest >= TINY)
    best, ratio = np.zeros(parts.shape[:2], np.float32), np.zeros(parts.shape[:2], np.float32)
    for sign in np.float32(1), np.float32(-1):
        for size in SIZES:
            chosen = NUMBERS[places_reference(sign * parts, size)]
            fit, square = (sign * parts * chosen).sum(axis=-1), np.square(chosen).sum(axis=-1)
            gain = np.divide(fit * fit, square, out=np.zeros_like(fit), where=square > 0)
            better = gain > best * BETTER
            best[better], ratio[better] = gain[better], sign * fit[better] / square[better]
    bits = (ratio * largest[..., 0]).view(np.uint32).astype(np.uint64)
    bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    scale = np.divide(widened(bits), largest[..., 0], out=np.zeros_like(ratio), where=largest[..., 0] >= TINY)
    places = places_reference(np.copysign(1, scale)[..., None] * parts, np.abs(scale)[..., None])
    places[scale == 0] = ZERO
    steps = steps_of(weight.shape[1], 4)
    places = places.reshape(len(parts), -1)[:, : 2 * COLUMNS * steps].reshape(-1, ROWS, steps, 2, COLUMNS)
    packed = (places[..., 0, :] | places[..., 1, :] << 4).astype(np.uint8).swapaxes(1, 2)
    return np.ascontiguousarray(packed), scales_reference(bits)


def places_reference(numbers, scale):
    """The place in LEVELS of what comes nearest to each number / scale."""
    return (numbers[..., None] > MIDDLES * np.asarray(scale, np.float32)[..., None]).sum(axis=-1)


def dequantize_reference(packed, scales, N, K):
    """`(blocks, K / 8, 16, 4) uint8, (blocks, G, 16) uint16 -> (N, K)` float32."""
    places = np.stack([packed & 15, packed >> 4], axis=3).swapaxes(1, 2)
    return restore_reference(NUMBERS[places.reshape(len(packed) * ROWS, -1)], scales, N, K)


@njit
def _round_group(numbers, codes):
    largest, nothing = np.float32(0), np.float32(0)
    for number in numbers:
        largest = max(largest, abs(number))
        nothing += np.float32(0) * number  # but for infinity and NaN, which must come through
    for k in range(GROUP):
        codes[k] = np.uint8(ZERO)
    if np.isnan(nothing):
        return np.int64(NAN_BITS)
    if not largest >= TINY:
        return np.int64(0)
    for k in range(GROUP):
        numbers[k] /= largest
    chosen = float32_1d_at(scratch(4 * GROUP), GROUP)
    best, ratio = np.float32(0), np.float32(0)
    for negative in range(2):
        for size in SIZES:
            for k in range(GROUP):
                chosen[k] = NUMBERS[0]
            for place in range(len(MIDDLES)):
                middle, rise = MIDDLES[place] * size, RISES[place]
                for k in range(GROUP):
                    chosen[k] += rise if numbers[k] > middle else np.float32(0)
            fit, square = np.float32(0), np.float32(0)
            for k in range(GROUP):
                fit += numbers[k] * chosen[k]
                square += chosen[k] * chosen[k]
            if square > 0 and fit * fit / square > best * BETTER:
                best, ratio = fit * fit / square, -fit / square if negative else fit / square
        for k in range(GROUP):
            numbers[k] = -numbers[k]
    bits = np.int64(float_bits(ratio * largest)) & 0xFFFFFFFF
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    scale = to_float32(np.uint16(bits)) / largest
    if scale == 0:
        return bits
    for k in range(GROUP):
        numbers[k] = -numbers[k] if scale < 0 else numbers[k]
        codes[k] = np.uint8(0)
    for place in range(len(MIDDLES)):
        middle = MIDDLES[place] * abs(scale)
        for k in range(GROUP):
            codes[k] += np.uint8(1) if numbers[k] > middle else np.uint8(0)
    return bits


quantize = make_quantize(4, _round_group)
quantize_float32_operation, quantize_bfloat16_operation = quantize_operations("int4", quantize)

matmul_int4 = make_product(4)
gated_int4 = make_gated(4, GATED_TOKENS, matmul_int4)
gated_int4_operation = gated_operation("int4", gated_int4)


@njit
def _number_at(weights, K, row, k):
    steps = -(-K // (2 * COLUMNS))
    address = weights + (row // ROWS * steps + k // (2 * COLUMNS)) * ROWS * COLUMNS
    both = np.int64(carray(memory(address), (ROWS, COLUMNS), np.uint8)[row % ROWS, k % COLUMNS])
    return NUMBERS[(both >> 4 * (k // COLUMNS % 2)) & 15]


take = make_take(_number_at)


@operation
def matmul_int4_operation(operands, begin, end):
    """packed (3), weights address, scales address, K (1 each), out (3)."""
    packed, out = float32_2d(operands, 0), float32_2d(operands, 6)
    matmul_int4(packed, operands[3], operands[4], operands[5], out, begin, end)


@operation
def take_int4_operation(operands, begin, end):
    """weights address, scales address, K (1 each), indices (2), out (3)."""
    take(operands[0], operands[1], int64_1d(operands, 3), float32_2d(operands, 5), begin, end)
