"""Products of many tokens with bfloat16 weights by the matrix unit AMX, as exact as in float32.

Weights are tiles as they lie. A token's float32 is the sum of three bfloat16, so tokens are packed as three planes, and
each meets the weights: a third of what the unit can do, five times what other registers can. (With two, 2^-17 of each
number is lost: 1e-5 of the logits of a small model.) Tokens are the right side: tiles of 16, and of each, plane by
plane, pairs of columns of all of them, (K / 2, 16, 2) bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from tinylm.kernels.jit import carray, intrinsic, njit, operation, types
from tinylm.kernels.matmul import DEPTH, few_tokens
from tinylm.kernels.operands import float32_1d_at, float32_2d, float32_2d_at, uint16_2d
from tinylm.kernels.simd import FLOAT, INT32, INT64, memory, pointer, scratch
from tinylm.kernels.tile import make_turn
from tinylm.kernels.tile_amx import CONFIGURATION, TOKENS, call_amx, configure, give_shape, place_at, release
from tinylm.kernels.vectors import at, load, loop, shuffle, transposed

COLUMNS = 32
"""Columns that the unit takes at a time, and of which every row is to be a multiple."""

ROWS = 32
"""Rows of weights, and tokens, that meet at a time: four tiles of sums."""

PLANES = 3
STEP_BYTES = TOKENS * COLUMNS * 2
"""Bytes of a plane of a tile of tokens, for COLUMNS of them."""

ROW_BYTES = 64

SUMS_BYTES = 4 * ROWS * 2 * TOKENS
"""Bytes of the sums of so many rows and tokens."""

BLOCKS = 4
"""Blocks of ROWS that meet tokens, DEPTH columns at a time, one after the other: those then stay in the first cache."""

FLOATS, INTEGERS = ir.VectorType(FLOAT, TOKENS), ir.VectorType(INT32, TOKENS)
_turn = make_turn(16, 2 * TOKENS, 16)


def fits(N: int, K: int) -> bool:
    """Whether the unit takes a matrix of this shape."""
    return N >= ROWS and K % COLUMNS == 0


def packed_width(K: int) -> int:
    """Places (4 bytes) of a packed token."""
    return PLANES * K // 2


def planes_reference(x):
    """`(T, K) -> (3, T, K)` float32: the bfloat16 nearest to x, the one nearest to what is left, and what then is."""

    def nearest(numbers):
        bits = numbers.view(np.uint32)
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        return ((bits + (np.uint32(0x7FFF) + odd)) & np.uint32(0xFFFF0000)).view(np.float32)

    planes, rest = [], x
    for _ in range(PLANES):
        planes.append(nearest(rest))
        rest = rest - planes[-1]
    return np.stack(planes)


def _nearest(builder: ir.IRBuilder, numbers: ir.Value) -> ir.Value:
    """The bits of the nearest bfloat16 in the upper halves, zeros in the lower."""

    def same(number: int) -> ir.Constant:
        return ir.Constant(INTEGERS, [number] * TOKENS)

    bits = builder.bitcast(numbers, INTEGERS)
    odd = builder.and_(builder.lshr(bits, same(16)), same(1))
    return builder.and_(builder.add(bits, builder.add(odd, same(0x7FFF))), same(-0x10000))


def _pairs(builder: ir.IRBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    """Upper halves of 32 numbers, two to an int32, the earlier below."""
    even, odd = (shuffle(builder, first, second, list(range(part, 2 * TOKENS, 2))) for part in (0, 1))
    return builder.or_(odd, builder.lshr(even, ir.Constant(INTEGERS, [16] * TOKENS)))


@intrinsic
def lay_planes(typingctx: Any, x: Any, stride: Any, K: Any, out: Any, plane: Any) -> Any:
    """16 tokens at a stride, to a packed tile whose planes are so many bytes apart; all by address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, stride, K, out, plane = arguments

        def step(k: Any, state: list[Any]) -> list[Any]:
            words: list[list[Any]] = [[] for _ in range(PLANES)]
            for token in range(TOKENS):
                rest = [
                    load(builder, at(builder, x, (stride, token), (4, k), (ROW_BYTES, part)), FLOATS)
                    for part in (0, 1)
                ]
                for rows in words:
                    bits = [_nearest(builder, half) for half in rest]
                    rows.append(_pairs(builder, *bits))
                    rest = [
                        builder.fsub(half, builder.bitcast(one, FLOATS))
                        for half, one in zip(rest, bits, strict=True)
                    ]
            for place, rows in enumerate(words):
                here = at(builder, out, (k, STEP_BYTES // COLUMNS), (plane, place))
                for i, row in enumerate(transposed(builder, rows)):
                    to = pointer(builder, at(builder, here, (ROW_BYTES, i)), INTEGERS)
                    builder.store(row, to, align=4)
            return state

        loop(builder, INT64(0), K, COLUMNS, [], step)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@intrinsic
def tile_amx_bf16(
    typingctx: Any, left: Any, row_bytes: Any, steps: Any, right: Any, tile_bytes: Any, plane: Any, out: Any
) -> Any:
    """32 rows of weights times two tiles of tokens, over so many steps of columns: (32, 32) float32 at `out`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, row_bytes, steps, right, tile_bytes, plane, out = arguments
        for sums in range(4):
            call_amx(builder, "tilezero", sums)

        def step(number: Any, state: list[Any]) -> list[Any]:
            for half in (0, 1):
                rows = at(builder, left, (ROW_BYTES, number), (row_bytes, TOKENS * half))
                call_amx(builder, "tileloadd64", 4 + half, place_at(builder, rows), row_bytes)
            for part in range(PLANES):
                for half in (0, 1):
                    tokens = at(builder, right, (STEP_BYTES, number), (plane, part), (tile_bytes, half))
                    call_amx(builder, "tileloadd64", 6 + half, place_at(builder, tokens), INT64(ROW_BYTES))
                for sums in range(4):
                    call_amx(builder, "tdpbf16ps", sums, 4 + sums // 2, 6 + sums % 2)
            return state

        loop(builder, INT64(0), steps, 1, [], step)
        for sums in range(4):
            place = at(builder, out, (2 * ROW_BYTES * TOKENS, sums // 2), (ROW_BYTES, sums % 2))
            call_amx(builder, "tilestored64", sums, place_at(builder, place), INT64(2 * ROW_BYTES))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate


@njit
def pack_amx(x, packed, begin, end):
    """Tiles `begin` to `end` of x (T, K) into packed (T rounded up, packed_width).

    Fewer tokens than a tile are left as they are, (T, K) float32.
    """
    T, K = x.shape
    if T < TOKENS:
        same = float32_2d_at(packed.ctypes.data, T, K)
        for token in range(begin * TOKENS, T):
            for k in range(K):
                same[token, k] = x[token, k]
        return
    plane, stride = STEP_BYTES // COLUMNS * K, 4 * K
    room = float32_2d_at(scratch(4 * TOKENS * COLUMNS), TOKENS, COLUMNS)
    for tile in range(begin, end):
        first = TOKENS * tile
        out = packed.ctypes.data + PLANES * plane * tile
        if first + TOKENS <= T:
            lay_planes(x.ctypes.data + stride * first, stride, K, out, plane)
            continue
        room[:] = np.float32(0)
        for k in range(0, K, COLUMNS):
            for token in range(T - first):
                for i in range(COLUMNS):
                    room[token, i] = x[first + token, k + i]
            lay_planes(room.ctypes.data, 4 * COLUMNS, COLUMNS, out + STEP_BYTES // COLUMNS * k, plane)


@njit
def _configure():
    shapes = scratch(CONFIGURATION)
    carray(memory(shapes), (CONFIGURATION,), np.uint8)[:] = np.uint8(0)
    for tile in range(8):
        give_shape(shapes, tile, 16, ROW_BYTES)
    configure(shapes)


@njit
def _write(sums, out, token, n):
    """Sums (32 rows, 32 tokens) to the tokens that are there."""
    stride = 4 * out.shape[1]
    if out.shape[0] - token >= 2 * TOKENS:
        for row in range(0, ROWS, 16):
            _turn(sums + 8 * TOKENS * row, out.ctypes.data + stride * token + 4 * (n + row), stride)
        return
    block = float32_2d_at(sums, ROWS, 2 * TOKENS)
    for t in range(min(2 * TOKENS, out.shape[0] - token)):
        for row in range(ROWS):
            out[token + t, n + row] = block[row, t]


@njit
def matmul_amx_bf16(packed, weight, out, begin, end):
    """Rows `begin` to `end` of the weights (N, K), bits in uint16, times what `pack_amx` made, into out (T, N)."""
    T, (N, K) = len(out), weight.shape
    if T < TOKENS:
        x = float32_2d_at(packed.ctypes.data, T, K)
        for n in range(begin, end):
            few_tokens(x, weight, out, 0, n)
        return
    plane, row_bytes, tiles = STEP_BYTES // COLUMNS * K, 2 * K, (T + TOKENS - 1) // TOKENS
    tile_bytes = PLANES * plane
    room, sums = scratch(SUMS_BYTES), scratch(SUMS_BYTES * BLOCKS)
    part = float32_1d_at(room, SUMS_BYTES // 4)
    _configure()
    for tile in range(0, tiles, 2):
        # alone, the last tile meets the weights as both
        apart = tile_bytes if tile + 1 < tiles else 0
        for begun in range(begin, end, ROWS * BLOCKS):
            last = min(end, begun + ROWS * BLOCKS)
            for k in range(0, K, DEPTH):
                steps = min(DEPTH, K - k) // COLUMNS
                right = packed.ctypes.data + tile_bytes * tile + STEP_BYTES // COLUMNS * k
                for first in range(begun, last, ROWS):
                    n = min(first, N - ROWS)  # the last rows may be some of others', who write the same
                    left = weight.ctypes.data + row_bytes * n + 2 * k
                    here = sums + SUMS_BYTES // ROWS * (first - begun)
                    tile_amx_bf16(left, row_bytes, steps, right, apart, plane, here if k == 0 else room)
                    if k > 0:
                        total = float32_1d_at(here, SUMS_BYTES // 4)
                        for i in range(len(total)):
                            total[i] += part[i]
            for first in range(begun, last, ROWS):
                here = sums + SUMS_BYTES // ROWS * (first - begun)
                _write(here, out, TOKENS * tile, min(first, N - ROWS))
    release()


@operation
def pack_amx_operation(operands, begin, end):
    """x (3), packed (3)."""
    pack_amx(float32_2d(operands, 0), float32_2d(operands, 3), begin, end)


@operation
def matmul_bfloat16_amx_operation(operands, begin, end):
    """packed (3), weight (3), out (3), whether it stays packed (1), which it never does."""
    matmul_amx_bf16(float32_2d(operands, 0), uint16_2d(operands, 3), float32_2d(operands, 6), begin, end)
