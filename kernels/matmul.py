"""Matrix products with float32 and bfloat16 weights: `(T, K) @ (N, K).T -> (T, N)`.

One token is a sum along one row after the other (`matvec`): memory speed, for the memory prefers one stream
to several rows at a time, which halve it. More tokens go through
the register tile: `pack` lays the tokens side by side, `matmul` then multiplies ROWS rows of weights with
LANES tokens at a time. One unit of work is one row of the weights, for `pack` one token tile. The order of
every sum is fixed by the shapes alone, so the result does not depend on who did which share.
"""

import numpy as np

from tinylm.kernels.jit import carray, njit, operation, plain
from tinylm.kernels.operands import float32_2d, float32_2d_at, uint16_2d
from tinylm.kernels.simd import memory, scratch, to_float32
from tinylm.kernels.tile import LANES, NARROW_LANES, NARROW_ROWS, ROWS, narrow_tile, tile

MOST_ROWS = max(ROWS, NARROW_ROWS)

BLOCK_ROWS = NARROW_ROWS
"""Shares of the work begin at multiples of this, so that only the last block of a matrix is cut short."""

DEPTH = 192
"""Columns that the tile adds up before its sums go to the total: one long chain of float32 loses a digit, and a
model can enlarge that (SmolLM2's second token: logits off by 4e-4 of the largest, 3e-6 in parts)."""

TRANSPOSED = 16
"""Columns that `pack` turns at a time."""

WIDE_FROM = 2 * NARROW_LANES + 1
"""From so many tokens on, one wide tile that is partly empty beats several narrow ones."""


def matmul_reference(x, weight):
    """`(T, K) @ (N, K).T -> (T, N)`."""
    return x @ weight.T


@njit
def matvec(x, weight, out, begin, end):
    """Rows `begin` to `end` of `(N, K) @ (K,) -> (N,)`: x is (1, K), out (1, N), the weights as `to_float32`."""
    for n in range(begin, end):
        total = np.float32(0)
        for k in range(weight.shape[1]):
            total += to_float32(weight[n, k]) * x[0, k]
        out[0, n] = total


@plain
def tile_lanes(first, T):
    """How many lanes the tile has that begins at token `first` of T."""
    return LANES if T - first >= WIDE_FROM or NARROW_LANES >= LANES else NARROW_LANES


def packed_length(T):
    """How many tokens a packed buffer must have room for: T and what the last tile leaves empty."""
    return T + LANES


@njit
def pack(x, packed, begin, end):
    """Tokens of x (T, K), tile after tile as (K, lanes) in `packed`; a unit is NARROW_LANES tokens."""
    T, K = x.shape
    first = 0
    while first < T:
        lanes = tile_lanes(first, T)
        if begin * NARROW_LANES <= first < end * NARROW_LANES:
            tokens = min(lanes, T - first)
            part = x[first : first + tokens]
            tile = float32_2d_at(packed.ctypes.data + 4 * first * K, K, lanes)
            for k in range(0, K, TRANSPOSED):  # a cache line of every token at a time
                for column in range(k, min(K, k + TRANSPOSED)):
                    for lane in range(tokens):
                        tile[column, lane] = part[lane, column]
                    for lane in range(tokens, lanes):
                        tile[column, lane] = np.float32(0)
        first += lanes


@njit
def _copy_last(weight, n, k, length, padded):
    """`length` columns from k on of the rows from n on, beside; the last row again where the matrix ends."""
    for row in range(padded.shape[0]):
        for column in range(length):
            padded[row, column] = weight[min(n + row, weight.shape[0] - 1), k + column]
    return padded.ctypes.data


@njit
def matmul(packed, weight, out, begin, end):
    """Rows `begin` to `end` of the weights (N, K) times the tokens that `pack` made, into out (T, N)."""
    T, N = out.shape
    K = weight.shape[1]
    size = weight.itemsize
    padded = carray(memory(scratch(MOST_ROWS * DEPTH * size)), (MOST_ROWS, DEPTH), weight.dtype)
    sums, parts = scratch(4 * MOST_ROWS * LANES), scratch(4 * MOST_ROWS * LANES)
    first = 0
    while first < T:
        lanes = tile_lanes(first, T)
        rows = ROWS if lanes == LANES else NARROW_ROWS
        right = packed.ctypes.data + 4 * first * K
        block, part = float32_2d_at(sums, rows, lanes), float32_2d_at(parts, rows, lanes)
        for n in range(begin, end, rows):
            for k in range(0, K, DEPTH):
                length = min(DEPTH, K - k)
                left, stride = weight.ctypes.data + size * (n * K + k), size * K
                if n + rows > N:
                    left, stride = _copy_last(weight, n, k, length, padded), size * DEPTH
                place = sums if k == 0 else parts
                if lanes == LANES:
                    tile(weight, left, stride, size, right + 4 * lanes * k, length, place)
                else:
                    narrow_tile(weight, left, stride, size, right + 4 * lanes * k, length, place)
                if k > 0:
                    for row in range(rows):
                        for lane in range(lanes):
                            block[row, lane] += part[row, lane]
            for token in range(min(lanes, T - first)):
                for row in range(min(rows, end - n)):
                    out[first + token, n + row] = block[row, token]
        first += lanes


@operation
def pack_operation(operands, begin, end):
    """x (3), packed (3)."""
    pack(float32_2d(operands, 0), float32_2d(operands, 3), begin, end)


@operation
def matvec_operation(operands, begin, end):
    """x (3), weight (3), out (3)."""
    matvec(float32_2d(operands, 0), float32_2d(operands, 3), float32_2d(operands, 6), begin, end)


@operation
def matvec_bfloat16_operation(operands, begin, end):
    """x (3), weight (3), out (3)."""
    matvec(float32_2d(operands, 0), uint16_2d(operands, 3), float32_2d(operands, 6), begin, end)


@operation
def matmul_operation(operands, begin, end):
    """packed (3), weight (3), out (3)."""
    matmul(float32_2d(operands, 0), float32_2d(operands, 3), float32_2d(operands, 6), begin, end)


@operation
def matmul_bfloat16_operation(operands, begin, end):
    """packed (3), weight (3), out (3)."""
    matmul(float32_2d(operands, 0), uint16_2d(operands, 3), float32_2d(operands, 6), begin, end)
