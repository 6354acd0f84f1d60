"""Matrix products with int8 weights: `(T, K) @ (N, K).T -> (T, N)` by integer products, scaled to float32.

Both sides are rounded in groups of 64 columns, after each whole group was rotated (`hadamard`). Weights: int8
in blocks of 16 rows x 4 columns, (N / 16, K / 4, 16, 4), one scale (bfloat16) for each row and group,
(N / 16, G, 16). Activations: int8, one scale for each token and group. One unit of work is one row of the
weights; shares begin at multiples of BLOCK_ROWS.
"""

import numpy as np

from tinylm.kernels.dot import COLUMNS, DOT, ROWS
from tinylm.kernels.hadamard import GROUP, rotate, rotate_and_round, rotate_reference
from tinylm.kernels.jit import carray, njit, operation
from tinylm.kernels.operands import float32_1d_at, float32_2d, float32_2d_at, int32_1d_at, int64_1d, uint16_2d
from tinylm.kernels.simd import float_bits, float_of_int32_bits, memory, nearest_int32, scratch, to_float32
from tinylm.kernels.tile_int8 import make_tile

BLOCK_ROWS = 2 * ROWS

NAN_BITS = 0x7FC0
"""NaN as a bfloat16."""

MANY_TOKENS, MANY_BLOCKS = {16: (12, 2), 8: (4, 1), 4: (6, 1)}[DOT.lanes]
"""As many sums as this CPU's registers hold, beside what they meet; few tokens take one block at a time, since the
memory follows one stream."""

_one = make_tile(1, 1)
_two = make_tile(2, 1)
_four = make_tile(min(4, MANY_TOKENS), 1)
_eight = make_tile(min(8, MANY_TOKENS), 1)
_many = make_tile(MANY_TOKENS, MANY_BLOCKS)


def padded_columns(K: int) -> int:
    """K rounded up to whole steps of four columns."""
    return -(-K // COLUMNS) * COLUMNS


def groups_of(K: int) -> int:
    """How many groups K columns make; the last may be smaller."""
    return -(-K // GROUP)


def blocks_of(N: int) -> int:
    """How many blocks of 16 rows N rows make: an even number, the last may be empty."""
    return BLOCK_ROWS // ROWS * -(-N // BLOCK_ROWS)


def packed_width(K: int) -> int:
    """Places (4 bytes) of a packed token: its bytes, then the scale and the sum of each group."""
    return padded_columns(K) // 4 + 2 * groups_of(K)


def quantize_reference(weight):
    """`(N, K) -> (blocks, K / 4, 16, 4) int8, (blocks, G, 16) uint16`: scale = max / 127 rounded up to bfloat16."""
    N, K = weight.shape
    blocks, groups, columns = blocks_of(N), groups_of(K), padded_columns(K)
    padded = np.zeros((blocks * ROWS, groups * GROUP), np.float32)
    padded[:N, :K] = rotate_reference(weight)
    parts = padded.reshape(blocks * ROWS, groups, GROUP)
    largest = np.abs(parts).max(axis=-1) / np.float32(127)
    bits = ((largest.view(np.uint32).astype(np.uint64) + 0xFFFF) >> 16).astype(np.uint16)
    scale = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    divided = np.divide(parts, scale[..., None], out=np.zeros_like(parts), where=scale[..., None] > 0)
    numbers = np.rint(divided).astype(np.int8).reshape(blocks * ROWS, -1)[:, :columns]
    packed = numbers.reshape(blocks, ROWS, columns // COLUMNS, COLUMNS).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(packed), np.ascontiguousarray(
        bits.reshape(blocks, ROWS, groups).swapaxes(1, 2)
    )


def dequantize_reference(packed, scales, N, K):
    """`(blocks, K / 4, 16, 4) int8, (blocks, G, 16) uint16 -> (N, K)` float32."""
    numbers = packed.transpose(0, 2, 1, 3).reshape(len(packed) * ROWS, -1).astype(np.float32)
    factors = (
        (scales.astype(np.uint32) << np.uint32(16)).view(np.float32).swapaxes(1, 2).reshape(len(numbers), -1)
    )
    return rotate_reference(numbers[:N, :K] * np.repeat(factors, GROUP, axis=1)[:N, :K])


@njit
def quantize(weight, packed, scales, begin, end):
    """Blocks `begin` to `end` of `quantize_reference`; the weights as `to_float32` reads them."""
    N, K = weight.shape
    room = scratch(4 * GROUP)
    numbers = float32_1d_at(room, GROUP)
    for block in range(begin, end):
        for row in range(ROWS):
            n = block * ROWS + row
            for group in range(scales.shape[1]):
                first = group * GROUP
                for k in range(first, first + GROUP):
                    numbers[k - first] = to_float32(weight[n, k]) if n < N and k < K else np.float32(0)
                if first + GROUP <= K:
                    rotate(room, room)
                largest, nothing = np.float32(0), np.float32(0)
                for number in numbers:
                    largest = max(largest, abs(number))
                    nothing += np.float32(0) * number  # but for infinity and NaN, which must come through
                bits = (np.int64(float_bits(largest / np.float32(127))) + 0xFFFF) >> 16
                if np.isnan(nothing):
                    bits = NAN_BITS
                scales[block, group, row] = np.uint16(bits)
                scale = to_float32(scales[block, group, row])
                inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
                for k in range(first, min(first + GROUP, COLUMNS * packed.shape[1])):
                    rounded = nearest_int32(numbers[k - first] * inverse)
                    packed[block, k // COLUMNS, row, k % COLUMNS] = np.int8(rounded)


def pack_reference(x):
    """`(T, K) -> (T, G * 64) int32, (T, G) float32`: the rotated and rounded activations, and their scales."""
    T, K = x.shape
    padded = np.zeros((T, groups_of(K) * GROUP), np.float32)
    padded[:, :K] = rotate_reference(x)
    parts = padded.reshape(T, -1, GROUP)
    scale = np.abs(parts).max(axis=-1) / np.float32(127)
    divided = np.divide(parts, scale[..., None], out=np.zeros_like(parts), where=scale[..., None] > 0)
    return np.rint(divided).astype(np.int32).reshape(T, -1), scale


def round_reference(x):
    """`(T, K) -> (T, K)` float32: what the activations stand for after `pack`."""
    numbers, scale = pack_reference(x)
    return rotate_reference((numbers * np.repeat(scale, GROUP, axis=1))[:, : x.shape[1]])


@njit
def _pack_rest(numbers, target):
    """A last group that is not whole, to its bytes; returns its scale and their sum."""
    # The bits of floats without their sign are in the order of their sizes, NaN above all.
    largest = np.int32(0)
    for k in range(len(numbers)):
        largest = max(largest, np.int32(float_bits(numbers[k]) & np.int32(0x7FFFFFFF)))
    scale = float_of_int32_bits(largest) / np.float32(127)
    inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
    total = np.int32(0)
    for k in range(len(numbers)):
        number = nearest_int32(numbers[k] * inverse)
        target[k] = np.int8(number)
        total += number
    return scale, total


@njit
def pack(x, packed, begin, end):
    """Tokens `begin` to `end` of x (T, K) into packed (T, packed_width)."""
    K = x.shape[1]
    columns, groups, whole = -(-K // COLUMNS) * COLUMNS, -(-K // GROUP), K // GROUP
    for token in range(begin, end):
        source = x.ctypes.data + 4 * K * token
        numbers = packed.ctypes.data + 4 * token * packed.shape[1]
        scales, sums = numbers + columns, numbers + columns + 4 * groups
        for group in range(whole):
            rotate_and_round(
                source + 4 * GROUP * group, numbers + GROUP * group, scales + 4 * group, sums + 4 * group
            )
        if whole < groups:
            rest = carray(memory(numbers + GROUP * whole), (columns - GROUP * whole,), np.int8)
            for k in range(K - GROUP * whole, len(rest)):
                rest[k] = np.int8(0)
            scale, total = _pack_rest(x[token, GROUP * whole :], rest)
            float32_1d_at(scales, groups)[whole] = scale
            int32_1d_at(sums, groups)[whole] = total


@njit
def matmul_int8(packed, weights, scales, K, out, begin, end):
    """Rows `begin` to `end` of the weights times packed tokens (T, packed_width) into out (T, N).

    weights and scales: the addresses of the arrays of `quantize_reference`.
    """
    T, N = out.shape
    columns, groups = -(-K // COLUMNS) * COLUMNS, -(-K // GROUP)
    whole, tail = K // GROUP, (columns - K // GROUP * GROUP) // COLUMNS
    block_bytes, scale_bytes = ROWS * columns, 2 * ROWS * groups
    stride = 4 * packed.shape[1]
    edge = float32_2d_at(scratch(4 * MANY_TOKENS * BLOCK_ROWS), MANY_TOKENS, BLOCK_ROWS)
    token = 0
    while token < T:
        tokens, step = 1, ROWS
        if T - token >= MANY_TOKENS:
            tokens, step = MANY_TOKENS, ROWS * MANY_BLOCKS
        elif T - token >= 8:
            tokens = 8
        elif T - token >= 4:
            tokens = 4
        elif T - token >= 2:
            tokens = 2
        x = packed.ctypes.data + stride * token
        x_scale, x_sums = x + columns, x + columns + 4 * groups
        for n in range(begin, end, step):
            rows = min(step, N - n)
            target, target_stride = out.ctypes.data + 4 * (N * token + n), 4 * N
            if rows < step:
                target, target_stride = edge.ctypes.data, 4 * BLOCK_ROWS
            for t in range(tokens):
                row_of = float32_1d_at(target + target_stride * t, step)
                for row in range(step):
                    row_of[row] = np.float32(0)
            left, factors = weights + n // ROWS * block_bytes, scales + n // ROWS * scale_bytes
            if tokens == MANY_TOKENS:
                _many(whole, tail, left, block_bytes, x, stride, factors, scale_bytes, x_scale, stride,
                      x_sums, stride, target, target_stride)  # fmt: skip
            elif tokens == 8:
                _eight(whole, tail, left, block_bytes, x, stride, factors, scale_bytes, x_scale, stride,
                       x_sums, stride, target, target_stride)  # fmt: skip
            elif tokens == 4:
                _four(whole, tail, left, block_bytes, x, stride, factors, scale_bytes, x_scale, stride,
                      x_sums, stride, target, target_stride)  # fmt: skip
            elif tokens == 2:
                _two(whole, tail, left, block_bytes, x, stride, factors, scale_bytes, x_scale, stride,
                     x_sums, stride, target, target_stride)  # fmt: skip
            else:
                _one(whole, tail, left, block_bytes, x, stride, factors, scale_bytes, x_scale, stride,
                     x_sums, stride, target, target_stride)  # fmt: skip
            if rows < step:
                for t in range(tokens):
                    for row in range(rows):
                        out[token + t, n + row] = edge[t, row]
        token += tokens


def take_reference(packed, scales, indices, N, K):
    """`(R,) -> (R, K)`: the rows of these indices."""
    return dequantize_reference(packed, scales, N, K)[indices]


@njit
def take(weights, scales, indices, out, begin, end):
    """Rows `begin` to `end` of `take_reference` into out (R, K); the weights and scales by address."""
    K = out.shape[1]
    steps, groups, whole = -(-K // COLUMNS), -(-K // GROUP), K // GROUP
    for row in range(begin, end):
        block, line = indices[row] // ROWS, indices[row] % ROWS
        numbers = carray(memory(weights + block * ROWS * COLUMNS * steps), (steps, ROWS, COLUMNS), np.int8)
        factors = carray(memory(scales + 2 * ROWS * block * groups), (groups, ROWS), np.uint16)
        for k in range(K):
            scale = to_float32(factors[k // GROUP, line])
            out[row, k] = np.float32(numbers[k // COLUMNS, line, k % COLUMNS]) * scale
        for group in range(whole):
            here = out.ctypes.data + 4 * (K * row + GROUP * group)
            rotate(here, here)


@operation
def quantize_float32_operation(operands, begin, end):
    """weight float32 (3), packed address, steps, scales address, groups (1 each), blocks (1)."""
    _quantize(
        float32_2d(operands, 0), operands[3], operands[4], operands[5], operands[6], operands[7], begin, end
    )


@operation
def quantize_bfloat16_operation(operands, begin, end):
    """weight bfloat16 (3), packed address, steps, scales address, groups (1 each), blocks (1)."""
    _quantize(
        uint16_2d(operands, 0), operands[3], operands[4], operands[5], operands[6], operands[7], begin, end
    )


@njit
def _quantize(weight, packed, steps, scales, groups, blocks, begin, end):
    numbers = carray(memory(packed), (blocks, steps, ROWS, COLUMNS), np.int8)
    factors = carray(memory(scales), (blocks, groups, ROWS), np.uint16)
    quantize(weight, numbers, factors, begin, end)


@operation
def pack_int8_operation(operands, begin, end):
    """x (3), packed (3)."""
    pack(float32_2d(operands, 0), float32_2d(operands, 3), begin, end)


@operation
def matmul_int8_operation(operands, begin, end):
    """packed (3), weights address, scales address, K (1 each), out (3)."""
    packed, out = float32_2d(operands, 0), float32_2d(operands, 6)
    matmul_int8(packed, operands[3], operands[4], operands[5], out, begin, end)


@operation
def take_int8_operation(operands, begin, end):
    """weights address, scales address, K (1 each), indices (2), out (3)."""
    take(operands[0], operands[1], int64_1d(operands, 3), float32_2d(operands, 5), begin, end)
