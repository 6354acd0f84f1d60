"""Products of many tokens with bfloat16 weights by the matrix unit AMX, as exact as in float32.

Each token is three planes (`tile_amx_bf16`): a third of what the unit can do, and five times what other registers can.
"""

import numpy as np

from tinylm.kernels.jit import njit, operation
from tinylm.kernels.lay import make_lay
from tinylm.kernels.matmul import DEPTH, few_tokens
from tinylm.kernels.narrow_floats import FLOAT32
from tinylm.kernels.operands import float32_2d, float32_2d_at, uint16_2d
from tinylm.kernels.simd import scratch
from tinylm.kernels.tile_amx import CONFIGURATION, TOKENS, clear_shapes, configure, give_shape, release
from tinylm.kernels.tile_amx_bf16 import (
    COLUMNS,
    PLANES,
    ROW_BYTES,
    ROWS,
    STEP_BYTES,
    add_tile,
    lay_planes,
    tile,
)

SUMS_BYTES = 4 * ROWS * 2 * TOKENS
"""Bytes of the sums of so many rows and tokens."""

BLOCKS = 4
"""Blocks of ROWS that meet tokens, DEPTH columns at a time, one after the other: those then stay in the first cache."""

_turn = make_lay(ROWS)


def fits(N, K):
    """Whether the unit takes a matrix (N, K)."""
    return N >= ROWS and K % COLUMNS == 0


def packed_width(K):
    """Places (4 bytes) of a packed token."""
    return PLANES * K // 2


def packed_length(T):
    """How many tokens a packed buffer has room for: T, and what the last tile leaves empty."""
    return -(-T // TOKENS) * TOKENS if T >= TOKENS else T


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
    for number in range(begin, end):
        first = TOKENS * number
        out = packed.ctypes.data + PLANES * plane * number
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
    clear_shapes(shapes)
    for number in range(8):
        give_shape(shapes, number, TOKENS, ROW_BYTES)
    configure(shapes)


@njit
def _write(sums, out, token, n):
    """Sums (32 rows, 32 tokens) to the tokens that are there."""
    stride = 4 * out.shape[1]
    if out.shape[0] - token >= 2 * TOKENS:
        _turn(FLOAT32, sums, 8 * TOKENS, 2 * TOKENS, out.ctypes.data + stride * token + 4 * n, stride)
        return
    block = float32_2d_at(sums, ROWS, 2 * TOKENS)
    for t in range(min(2 * TOKENS, out.shape[0] - token)):
        for row in range(ROWS):
            out[token + t, n + row] = block[row, t]


@njit
def matmul_amx_bf16(packed, weight, out, begin, end):
    """Rows `begin` to `end` of the weights (N, K), bits in uint16, times what `pack_amx` made, into out (T, N)."""
    T, N, K = len(out), weight.shape[0], weight.shape[1]
    if T < TOKENS:
        x = float32_2d_at(packed.ctypes.data, T, K)
        for n in range(begin, end):
            few_tokens(x, weight, out, n)
        return
    plane, row_bytes, tiles = STEP_BYTES // COLUMNS * K, 2 * K, (T + TOKENS - 1) // TOKENS
    tile_bytes = PLANES * plane
    room, sums = scratch(SUMS_BYTES), scratch(SUMS_BYTES * BLOCKS)
    _configure()
    for pair in range(0, tiles, 2):
        # alone, the last tile meets the weights as both
        apart = tile_bytes if pair + 1 < tiles else 0
        for begun in range(begin, end, ROWS * BLOCKS):
            last = min(end, begun + ROWS * BLOCKS)
            for k in range(0, K, DEPTH):
                steps = min(DEPTH, K - k) // COLUMNS
                right = packed.ctypes.data + tile_bytes * pair + STEP_BYTES // COLUMNS * k
                for first in range(begun, last, ROWS):
                    n = min(first, N - ROWS)  # the last rows may be some of others', who write the same
                    left = weight.ctypes.data + row_bytes * n + 2 * k
                    here = sums + SUMS_BYTES // ROWS * (first - begun)
                    tile(left, row_bytes, steps, right, apart, plane, here if k == 0 else room)
                    if k > 0:
                        add_tile(room, here)
            for first in range(begun, last, ROWS):
                here = sums + SUMS_BYTES // ROWS * (first - begun)
                _write(here, out, TOKENS * pair, min(first, N - ROWS))
    release()


@operation
def pack_amx_operation(operands, begin, end):
    """x (3), packed (3)."""
    pack_amx(float32_2d(operands, 0), float32_2d(operands, 3), begin, end)


@operation
def matmul_bfloat16_amx_operation(operands, begin, end):
    """packed (3), weight (3), out (3)."""
    matmul_amx_bf16(float32_2d(operands, 0), uint16_2d(operands, 3), float32_2d(operands, 6), begin, end)
