"""What products with int8 and with int4 weights share: `(T, K) @ (N, K).T -> (T, N)` by integers, scaled to float32.

Both sides are rounded in groups of 64 columns, after each whole group was rotated (`hadamard`). Weights: in blocks of
16 rows and 64 bytes (`tile_integers`), (N / 16, K / 4, 16, 4) for 8 bits, (N / 16, K / 8, 16, 4) for 4; one scale
(bfloat16) for each row and group, (N / 16, G, 16). Activations: int8, one scale for each token and group. One unit of
work is one row of the weights; shares begin at multiples of BLOCK_ROWS.

With many tokens, two blocks of rows at a time meet all of them: these weights then come from the first cache, and of
the tokens, which come from the second, little is read for each product.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinylm.kernels.dot import COLUMNS, DOT, ROWS
from tinylm.kernels.hadamard import GROUP, rotate, rotate_and_round, rotate_reference
from tinylm.kernels.jit import Function, Operation, carray, njit, operation, plain
from tinylm.kernels.operands import float32_1d_at, float32_2d, float32_2d_at, int32_1d_at, uint16_2d
from tinylm.kernels.simd import (
    CACHE_LINE,
    float_bits,
    float_of_int32_bits,
    memory,
    nearest_int32,
    scratch,
    to_float32,
)
from tinylm.kernels.tile_integers import make_tile

BLOCK_ROWS = 2 * ROWS

MINUS_OFFSET = np.int32(-DOT.offset)

NAN_BITS = 0x7FC0
"""NaN as a bfloat16."""

MANY = {16: (6, 2), 8: (4, 1), 4: (6, 1)}[DOT.lanes]
"""Tokens and blocks of rows of the largest tile: as many as this CPU's registers hold the sums of, beside what they
meet. Two blocks meet each activation twice."""

MANY_OF_4_BITS = (min(MANY[0], 4), 1) if DOT.lanes == 4 else MANY
"""Each register of 4 bits becomes two to be met: with 6 tokens an M1 would keep half of the sums on its stack."""

MANY_FROM = 2 * MANY[0]
"""Tokens from which on the largest tile is taken, the last of which may have some of the one before again."""


@plain
def steps_of(K, bits=8):
    """How many blocks of columns K columns make: of four for 8 bits, of eight for 4."""
    columns = COLUMNS * 8 // bits
    return -(-K // columns)


@plain
def groups_of(K):
    """How many groups K columns make; the last may be smaller."""
    return -(-K // GROUP)


def blocks_of(N: int) -> int:
    """How many blocks of 16 rows N rows make: an even number, the last may be empty."""
    return BLOCK_ROWS // ROWS * -(-N // BLOCK_ROWS)


@plain
def packed_columns(K):
    """Bytes of a packed token's numbers: zeros behind K fill whole steps of eight."""
    return -(-K // (2 * COLUMNS)) * 2 * COLUMNS


@plain
def packed_width(K):
    """Places (4 bytes) of a packed token: its numbers, then each group's scale and the start of its sums.

    They fill whole cache lines.
    """
    places = packed_columns(K) // 4 + 2 * -(-K // GROUP)
    return -(-places // (CACHE_LINE // 4)) * (CACHE_LINE // 4)


def groups_reference(weight):
    """`(N, K) -> (blocks * 16, G, 64)`: what is rounded, zero beyond the matrix."""
    N, K = weight.shape
    padded = np.zeros((blocks_of(N) * ROWS, groups_of(K) * GROUP), np.float32)
    padded[:N, :K] = rotate_reference(weight)
    return padded.reshape(len(padded), -1, GROUP)


def widened(bits):
    """bfloat16 bits as float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def scales_reference(bits):
    """`(rows, G) -> (blocks, G, 16)`, as scales are stored."""
    return np.ascontiguousarray(bits.reshape(-1, ROWS, bits.shape[1]).swapaxes(1, 2))


def restore_reference(numbers, scales, N, K):
    """`(rows, columns), (blocks, G, 16) -> (N, K)` float32, rotated back."""
    factors = widened(scales).swapaxes(1, 2).reshape(len(numbers), -1)
    return rotate_reference(numbers[:N, :K] * np.repeat(factors, GROUP, axis=1)[:N, :K].astype(np.float32))


def make_quantize(bits: int, round_group: Function) -> Function:
    """The kernel that rounds blocks of rows. `round_group(numbers, codes)`: 64 of each; returns the scale's bits."""

    @njit
    def quantize(weight, packed, scales, begin, end):
        """Blocks `begin` to `end` of `quantize_reference`; the weights as `to_float32` reads them."""
        N, K = weight.shape
        room = scratch(4 * GROUP)
        numbers = float32_1d_at(room, GROUP)
        codes = carray(memory(scratch(GROUP)), (GROUP,), np.uint8)
        for block in range(begin, end):
            for row in range(ROWS):
                n = block * ROWS + row
                for group in range(scales.shape[1]):
                    first = group * GROUP
                    for k in range(first, first + GROUP):
                        numbers[k - first] = to_float32(weight[n, k]) if n < N and k < K else np.float32(0)
                    if first + GROUP <= K:
                        rotate(room, room)
                    scales[block, group, row] = np.uint16(round_group(numbers, codes))
                    step = first * bits // (8 * COLUMNS)
                    for i in range(min(GROUP * bits // (8 * COLUMNS), packed.shape[1] - step)):
                        for column in range(COLUMNS):
                            code = codes[COLUMNS * 8 // bits * i + column]
                            if bits == 4:
                                code |= codes[2 * COLUMNS * i + COLUMNS + column] << 4
                            packed[block, step + i, row, column] = code

    return quantize


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
def largest_of(numbers):
    """The largest absolute value; NaN where there is one."""
    most = np.int32(0)
    for number in numbers:  # bits without their sign are in the order of sizes, NaN above all
        most = max(most, np.int32(float_bits(number) & np.int32(0x7FFFFFFF)))
    return float_of_int32_bits(most)


@njit
def _pack_rest(numbers, target):
    """A last group that is not whole, to its bytes; returns its scale and their sum."""
    scale = largest_of(numbers) / np.float32(127)
    inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
    total = np.int32(0)
    for k in range(len(numbers)):
        number = nearest_int32(numbers[k] * inverse)
        target[k] = np.int8(number)
        total += number
    return scale, total


@njit
def pack_group(source, K, group, target):
    """A group of a token, its 64 float32 (or what K leaves it) at an address, to its places in a packed token."""
    columns, groups = packed_columns(K), groups_of(K)
    numbers, scale, begin = (
        target + GROUP * group,
        target + columns + 4 * group,
        target + columns + 4 * groups,
    )
    if GROUP * (group + 1) <= K:
        rotate_and_round(source, numbers, scale, begin + 4 * group)
        return
    rest = carray(memory(numbers), (columns - GROUP * group,), np.int8)
    for k in range(K - GROUP * group, len(rest)):
        rest[k] = np.int8(0)
    found, total = _pack_rest(float32_1d_at(source, K - GROUP * group), rest)
    float32_1d_at(scale, 1)[0] = found
    int32_1d_at(begin, groups)[group] = total * MINUS_OFFSET


@njit
def pack_token(source, K, target):
    """K float32 at an address, to a packed token of packed_width(K) places at another."""
    for group in range(groups_of(K)):
        pack_group(source + 4 * GROUP * group, K, group, target)


@njit
def pack(x, packed, begin, end):
    """Tokens `begin` to `end` of x (T, K) into packed (T, packed_width)."""
    for token in range(begin, end):
        target = packed.ctypes.data + 4 * packed.shape[1] * token
        pack_token(x.ctypes.data + 4 * x.shape[1] * token, x.shape[1], target)


@njit
def copy_columns(source, width, target):
    """The first columns of rows of `width` float32, at an address, to target (tokens, columns)."""
    results = float32_2d_at(source, target.shape[0], width)
    for t in range(target.shape[0]):
        for row in range(target.shape[1]):
            target[t, row] = results[t, row]


def make_few(bits: int) -> Function:
    """The product of few tokens: all rows meet those of a tile, then of the next."""
    several = 8 if DOT.lanes == 16 else MANY[0] if bits == 8 else MANY_OF_4_BITS[0]
    one, two, four = make_tile(1, 1, bits), make_tile(2, 1, bits), make_tile(min(4, several), 1, bits)
    many = make_tile(several, 1, bits)

    @njit
    def few(packed, weights, scales, K, out, begin, end):
        """As `product`."""
        N = out.shape[1]
        columns, groups, whole = packed_columns(K), -(-K // GROUP), K // GROUP
        in_block = COLUMNS * 8 // bits
        tail = -(-(K - GROUP * whole) // in_block)
        block_bytes, scale_bytes = ROWS * COLUMNS * -(-K // in_block), 2 * ROWS * groups
        stride, begins = 4 * packed.shape[1], columns + 4 * groups
        edge, token, T = scratch(4 * several * ROWS), 0, len(out)
        while token < T:
            tokens = 1
            if T - token >= several:
                tokens = several
            elif T - token >= 4:
                tokens = 4
            elif T - token >= 2:
                tokens = 2
            x = packed.ctypes.data + stride * token
            for n in range(begin, end, ROWS):
                rows = min(ROWS, end - n)
                target, target_stride = out.ctypes.data + 4 * (N * token + n), 4 * N
                if rows < ROWS:
                    target, target_stride = edge, 4 * ROWS
                left, factors = weights + n // ROWS * block_bytes, scales + n // ROWS * scale_bytes
                if tokens == several:
                    many(whole, tail, left, block_bytes, x, stride, factors, scale_bytes, columns, begins,
                         target, target_stride)  # fmt: skip
                elif tokens == 4:
                    four(whole, tail, left, block_bytes, x, stride, factors, scale_bytes, columns, begins,
                         target, target_stride)  # fmt: skip
                elif tokens == 2:
                    two(whole, tail, left, block_bytes, x, stride, factors, scale_bytes, columns, begins,
                        target, target_stride)  # fmt: skip
                else:
                    one(whole, tail, left, block_bytes, x, stride, factors, scale_bytes, columns, begins,
                        target, target_stride)  # fmt: skip
                if rows < ROWS:
                    copy_columns(edge, ROWS, out[token : token + tokens, n : n + rows])
            token += tokens

    return few


def _make_many(bits: int) -> Function:
    """The product of many tokens: each tile's blocks of rows stay in the first cache until all have met them."""
    most, blocks = MANY if bits == 8 else MANY_OF_4_BITS
    width = ROWS * blocks
    tile = make_tile(most, blocks, bits)

    @njit
    def many(packed, weights, scales, K, out, begin, end):
        """As `product`, of MANY_FROM tokens or more."""
        N = out.shape[1]
        columns, groups, whole = packed_columns(K), -(-K // GROUP), K // GROUP
        in_block = COLUMNS * 8 // bits
        tail = -(-(K - GROUP * whole) // in_block)
        block_bytes, scale_bytes = ROWS * COLUMNS * -(-K // in_block), 2 * ROWS * groups
        stride, begins = 4 * packed.shape[1], columns + 4 * groups
        edge, T = scratch(4 * most * width), len(out)
        for n in range(begin, end, width):
            rows = min(width, end - n)
            left, factors = weights + n // ROWS * block_bytes, scales + n // ROWS * scale_bytes
            for first in range(0, T, most):
                token = min(first, T - most)  # the last tile takes some tokens again
                x = packed.ctypes.data + stride * token
                target, target_stride = out.ctypes.data + 4 * (N * token + n), 4 * N
                if rows < width:
                    target, target_stride = edge, 4 * width
                tile(whole, tail, left, block_bytes, x, stride, factors, scale_bytes, columns, begins,
                     target, target_stride)  # fmt: skip
                if rows < width:
                    copy_columns(edge, width, out[token : token + most, n : n + rows])

    return many


def make_product(bits: int) -> Function:
    """The kernel that multiplies with weights of so many bits."""
    few, many = make_few(bits), _make_many(bits)

    @njit
    def product(packed, weights, scales, K, out, begin, end):
        """Rows `begin` to `end` of the weights times packed tokens (T, packed_width) into out (T, N).

        weights and scales: the addresses of the arrays of `quantize_reference`.
        """
        if len(out) >= MANY_FROM:
            many(packed, weights, scales, K, out, begin, end)
        else:
            few(packed, weights, scales, K, out, begin, end)

    return product


def make_take(number_at: Function) -> Function:
    """The kernel that finds rows. `number_at(weights, K, row, k)`: a number before it is scaled."""

    @njit
    def take(weights, scales, indices, out, begin, end):
        """Rows `begin` to `end` of the rows of these indices into out (R, K); the weights and scales by address."""
        K = out.shape[1]
        groups, whole = -(-K // GROUP), K // GROUP
        for row in range(begin, end):
            block, line = indices[row] // ROWS, indices[row] % ROWS
            factors = carray(memory(scales + 2 * ROWS * block * groups), (groups, ROWS), np.uint16)
            for k in range(K):
                scale = to_float32(factors[k // GROUP, line])
                out[row, k] = np.float32(number_at(weights, K, indices[row], k)) * scale
            for group in range(whole):
                here = out.ctypes.data + 4 * (K * row + GROUP * group)
                rotate(here, here)

    return take


def quantize_operations(name: str, quantize: Function) -> tuple[Operation, Operation]:
    """`quantize` of float32 weights, and of bfloat16; units are blocks.

    Operands: weight (3), packed address, steps, scales address, groups, blocks (1 each).
    """

    @njit
    def run(weight, operands, begin, end):
        packed = carray(memory(operands[3]), (operands[7], operands[4], ROWS, COLUMNS), np.uint8)
        scales = carray(memory(operands[5]), (operands[7], operands[6], ROWS), np.uint16)
        quantize(weight, packed, scales, begin, end)

    def float32(operands: Any, begin: int, end: int) -> None:
        run(float32_2d(operands, 0), operands, begin, end)

    def bfloat16(operands: Any, begin: int, end: int) -> None:
        run(uint16_2d(operands, 0), operands, begin, end)

    for function in (float32, bfloat16):
        function.__name__ = f"quantize_{name}_of_{function.__name__}_operation"
    return operation(float32), operation(bfloat16)


@operation
def pack_int8_operation(operands, begin, end):
    """x (3), packed (3)."""
    pack(float32_2d(operands, 0), float32_2d(operands, 3), begin, end)
