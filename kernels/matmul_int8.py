"""Matrix products with int8 weights: `(T, K) @ (N, K).T -> (T, N)` by integer products, scaled to float32.

Weights: int8 in blocks of 16 rows x 4 columns, (N / 16, K / 4, 16, 4), one scale (bfloat16) for each row and
group of 64 columns, (N / 16, G, 16). Activations: each token's groups are rounded to 256 * high + low, two
int8 planes, so that they cost no quality: both meet the weights as these are read, once. One unit of work is
one row of the weights; shares begin at multiples of BLOCK_ROWS.
"""

import numpy as np

from tinylm.kernels.dot import COLUMNS, DOT, ROWS
from tinylm.kernels.jit import carray, njit, operation
from tinylm.kernels.operands import float32_2d, float32_2d_at, int64_1d, uint16_2d
from tinylm.kernels.simd import float_bits, float_of_int32_bits, memory, nearest_int32, scratch, to_float32
from tinylm.kernels.tile_int8 import GROUP, make_tile

HIGHEST = 127 * 256 + 127
"""The largest 256 * high + low of two signed bytes, symmetric."""

BLOCK_ROWS = 2 * ROWS

NAN_BITS = 0x7FC0
"""NaN as a bfloat16."""

LOW_SHARE = np.float32(3)
"""Measured on SmolLM2: mean KL 0.004 of all groups beyond 4, 0.003 beyond 2, 0.008 without a low plane."""

ONE, FEW, MANY = range(3)
"""Kinds of tile: one token; few, with both planes; many, with one plane."""

FEW_TOKENS, FEW_BLOCKS = (4, 2) if DOT.lanes == 16 else (2, 1)
MANY_TOKENS, MANY_BLOCKS = {16: (12, 2), 8: (4, 1), 4: (6, 1)}[DOT.lanes]
"""As many sums as this CPU's registers hold, beside what they meet."""

MANY_FROM = 32
"""From so many tokens on, time goes into arithmetic and not into reading: one plane, where it is enough."""

_one = make_tile(1, 2, 1)
_few = make_tile(FEW_TOKENS, 2, FEW_BLOCKS)
_many = make_tile(MANY_TOKENS, 1, MANY_BLOCKS)


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
    """Places (4 bytes) of a packed token: two planes of bytes, then scales and sums of each group and plane."""
    return 2 * padded_columns(K) // 4 + 4 * groups_of(K)


def quantize_reference(weight):
    """`(N, K) -> (blocks, K / 4, 16, 4) int8, (blocks, G, 16) uint16`: scale = max / 127 rounded up to bfloat16."""
    N, K = weight.shape
    blocks, groups, columns = blocks_of(N), groups_of(K), padded_columns(K)
    padded = np.zeros((blocks * ROWS, groups * GROUP), np.float32)
    padded[:N, :K] = weight
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
    return (numbers[:N, :K] * np.repeat(factors, GROUP, axis=1)[:N, :K]).astype(np.float32)


@njit
def quantize(weight, packed, scales, begin, end):
    """Blocks `begin` to `end` of `quantize_reference`; the weights as `to_float32` reads them."""
    N, K = weight.shape
    groups = scales.shape[1]
    for block in range(begin, end):
        for row in range(ROWS):
            n = block * ROWS + row
            for group in range(groups):
                first, last = group * GROUP, min(K, (group + 1) * GROUP)
                largest, nothing = np.float32(0), np.float32(0)
                if n < N:
                    for k in range(first, last):
                        number = to_float32(weight[n, k])
                        largest = max(largest, abs(number))
                        nothing += np.float32(0) * number  # but for infinity and NaN, which must come through
                step = float_bits(largest / np.float32(127))
                bits = (np.int64(step) + 0xFFFF) >> 16
                if np.isnan(nothing):
                    bits = NAN_BITS
                scales[block, group, row] = np.uint16(bits)
                scale = to_float32(scales[block, group, row])
                inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
                for k in range(first, min((group + 1) * GROUP, COLUMNS * packed.shape[1])):
                    rounded = np.int32(0)
                    if n < N and k < K:
                        rounded = nearest_int32(to_float32(weight[n, k]) * inverse)
                    packed[block, k // COLUMNS, row, k % COLUMNS] = np.int8(rounded)


def pack_reference(x):
    """`(T, K) -> (T, G * 64) int32 of 256 * high + low, (T, G) float32 scales`."""
    T, K = x.shape
    padded = np.zeros((T, groups_of(K) * GROUP), np.float32)
    padded[:, :K] = x
    parts = padded.reshape(T, -1, GROUP)
    scale = np.abs(parts).max(axis=-1) / np.float32(HIGHEST)
    divided = np.divide(parts, scale[..., None], out=np.zeros_like(parts), where=scale[..., None] > 0)
    return np.rint(divided).astype(np.int32).reshape(T, -1), scale


@njit
def _token(packed, token, K):
    """The parts of a packed token: planes (2, columns) int8, scales (2, G) float32, sums (2, G) int32."""
    columns, groups = -(-K // COLUMNS) * COLUMNS, -(-K // GROUP)
    address = packed.ctypes.data + 4 * token * packed.shape[1]
    planes = carray(memory(address), (2, columns), np.int8)
    scales = carray(memory(address + 2 * columns), (2, groups), np.float32)
    sums = carray(memory(address + 2 * columns + 8 * groups), (2, groups), np.int32)
    return planes, scales, sums


@njit
def _pack_group(numbers, high_plane, low_plane):
    """A group of activations to its two planes; returns its scale and the sums of the planes."""
    # The bits of floats without their sign are in the order of their sizes, NaN above all.
    largest = np.int32(0)
    for k in range(len(numbers)):
        largest = max(largest, np.int32(float_bits(numbers[k]) & np.int32(0x7FFFFFFF)))
    scale = float_of_int32_bits(largest) / np.float32(HIGHEST)
    inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
    high_sum, low_sum = np.int32(0), np.int32(0)
    for k in range(len(numbers)):
        number = nearest_int32(numbers[k] * inverse)
        high = np.int32((number + np.int32(128)) >> np.int32(8))
        low = np.int32(number - np.int32(high << np.int32(8)))
        high_plane[k], low_plane[k] = np.int8(high), np.int8(low)
        high_sum += high
        low_sum += low
    return scale, high_sum, low_sum


@njit
def pack(x, packed, begin, end):
    """Tokens `begin` to `end` of x (T, K) into packed (T, packed_width)."""
    K = x.shape[1]
    for token in range(begin, end):
        planes, scales, sums = _token(packed, token, K)
        planes[:, K:] = np.int8(0)
        for group in range(scales.shape[1]):
            part = slice(group * GROUP, min(K, (group + 1) * GROUP))
            scale, high, low = _pack_group(x[token, part], planes[0, part], planes[1, part])
            scales[0, group], scales[1, group] = scale * np.float32(256), scale
            sums[0, group], sums[1, group] = high, low


@njit
def _tile(
    kind,
    whole,
    tail,
    left,
    block_bytes,
    x,
    stride,
    plane,
    factors,
    scale_bytes,
    x_scale,
    x_sums,
    sum_plane,
    out,
    out_stride,
):
    """The tile of a kind; the strides by token of activations, their scales and their sums are one."""
    if kind == MANY:
        _many(whole, tail, left, block_bytes, x, stride, plane, factors, scale_bytes,
              x_scale, stride, x_sums, stride, sum_plane, out, out_stride)  # fmt: skip
    elif kind == FEW:
        _few(whole, tail, left, block_bytes, x, stride, plane, factors, scale_bytes,
             x_scale, stride, x_sums, stride, sum_plane, out, out_stride)  # fmt: skip
    else:
        _one(whole, tail, left, block_bytes, x, stride, plane, factors, scale_bytes,
             x_scale, stride, x_sums, stride, sum_plane, out, out_stride)  # fmt: skip


@njit
def _needs_low(scales, groups, needed):
    """Which groups of a tile of tokens need their low plane: those whose rounding would weigh most.

    `scales` (tokens, G). The error of a group is its scale; where its square is more than LOW_SHARE times the
    average of a token's groups, the high plane alone would not do.
    """
    for group in range(groups):
        needed[group] = False
    for token in range(scales.shape[0]):
        total = np.float32(0)
        for group in range(groups):
            total += scales[token, group] * scales[token, group]
        bound = total * LOW_SHARE / np.float32(groups)
        for group in range(groups):
            if scales[token, group] * scales[token, group] > bound:
                needed[group] = True


@njit
def matmul_int8(packed, weights, scales, K, out, begin, end):
    """Rows `begin` to `end` of the weights times packed tokens (T, packed_width) into out (T, N).

    weights and scales: the addresses of the arrays of `quantize_reference`. One token and few meet the
    weights with both planes; many with the high plane, and with the low one where `_needs_low` says so.
    """
    T, N = out.shape
    columns, groups = -(-K // COLUMNS) * COLUMNS, -(-K // GROUP)
    whole, tail = K // GROUP, (columns - K // GROUP * GROUP) // COLUMNS
    block_bytes, scale_bytes = ROWS * columns, 2 * ROWS * groups
    stride = 4 * packed.shape[1]
    edge = float32_2d_at(scratch(4 * MANY_TOKENS * BLOCK_ROWS), MANY_TOKENS, BLOCK_ROWS)
    high_scales = float32_2d_at(scratch(4 * MANY_TOKENS * groups), MANY_TOKENS, groups)
    needed = carray(memory(scratch(groups)), (groups,), np.bool_)
    token = 0
    while token < T:
        kind, tokens, step = ONE, 1, ROWS
        if T - token >= MANY_TOKENS and T >= MANY_FROM:
            kind, tokens, step = MANY, MANY_TOKENS, ROWS * MANY_BLOCKS
            for t in range(tokens):
                _, token_scales, _ = _token(packed, token + t, K)
                for group in range(groups):
                    high_scales[t, group] = token_scales[0, group]
            _needs_low(high_scales, groups, needed)
        elif T - token >= FEW_TOKENS:
            kind, tokens, step = FEW, FEW_TOKENS, ROWS * FEW_BLOCKS
        x = packed.ctypes.data + stride * token
        x_scale = x + 2 * columns
        x_sums = x_scale + 8 * groups
        for n in range(begin, end, step):
            inside = n + step <= N
            target = out.ctypes.data + 4 * (N * token + n) if inside else edge.ctypes.data
            target_stride = 4 * N if inside else 4 * BLOCK_ROWS
            rows = min(step, N - n)
            if inside:
                for t in range(tokens):
                    for row in range(rows):
                        out[token + t, n + row] = np.float32(0)
            else:
                for t in range(tokens):
                    for row in range(BLOCK_ROWS):
                        edge[t, row] = np.float32(0)
            left, factors = weights + n // ROWS * block_bytes, scales + n // ROWS * scale_bytes
            first_scale = x_scale if kind == MANY else x_scale + 4 * groups
            _tile(kind, whole, tail, left, block_bytes, x, stride, columns, factors, scale_bytes,
                  first_scale, x_sums, 4 * groups, target, target_stride)  # fmt: skip
            if kind == MANY:
                for group in range(groups):
                    if needed[group]:
                        one, rest = (1, 0) if group < whole else (0, tail)
                        _tile(kind, one, rest, left + ROWS * GROUP * group, block_bytes, x + columns + GROUP * group,
                              stride, columns, factors + 2 * ROWS * group, scale_bytes,
                              x_scale + 4 * (groups + group), x_sums + 4 * (groups + group), 0,
                              target, target_stride)  # fmt: skip
            if not inside:
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
    steps, groups = -(-K // COLUMNS), -(-K // GROUP)
    for row in range(begin, end):
        block, line = indices[row] // ROWS, indices[row] % ROWS
        numbers = carray(memory(weights + block * ROWS * COLUMNS * steps), (steps, ROWS, COLUMNS), np.int8)
        factors = carray(memory(scales + 2 * ROWS * block * groups), (groups, ROWS), np.uint16)
        for k in range(K):
            scale = to_float32(factors[k // GROUP, line])
            out[row, k] = np.float32(numbers[k // COLUMNS, line, k % COLUMNS]) * scale


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
