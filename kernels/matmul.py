"""Matrix products with float32 and bfloat16 weights: `(T, K) @ (N, K).T -> (T, N)`.

One token is a sum along one row after the other (`matvec`): memory speed, for the memory prefers one stream to several
rows at a time, which halve it; rows too long for the first cache are read before they are multiplied. A few tokens
are summed up row by row too. More tokens go through the register tile: `pack` lays them side by side, and `matmul`
takes BLOCK_ROWS rows of weights at a time, widened to float32, to all the tokens. One unit of work is one row of the
weights, for `pack` one token tile. The order of every sum is fixed by the shapes alone, so the result does not depend
on who did which share.
"""

import numpy as np

from tinylm.kernels.dot_bfloat16 import dot_split, split
from tinylm.kernels.jit import carray, njit, operation, plain
from tinylm.kernels.narrow_floats import widen_to
from tinylm.kernels.operands import float32_1d_at, float32_2d, float32_2d_at, uint16_2d
from tinylm.kernels.simd import CACHE_LINE, keep, memory, prefetch, scratch, to_float32
from tinylm.kernels.streams import INTEL, KEPT, LONG
from tinylm.kernels.tile import LANES, ROWS, lay_side_by_side, tile, turn
from tinylm.kernels.tile_amx import TOKENS
from tinylm.kernels.tile_few import dots_1, dots_4, dots_8

BLOCK_ROWS = 12
"""Rows of weights that all tokens meet at a time, whole tiles; shares of the work begin at multiples of it."""

COLUMNS = 2048
"""Rows longer than LONG meet one token COLUMNS at a time: a whole token of that length fills the first cache, and as
soon as it has to be read anew for each row, the weights come at half the speed."""

LONG_BYTES = 128 * 1024
"""Bytes of long rows that are read, in the order of memory, before any of them is multiplied: so many stay in the
second cache."""

DEPTH = 192
"""Columns that the tile adds up before its sums go to the total: one long chain of float32 loses a digit, and a
model can enlarge that (SmolLM2's second token: logits off by 4e-4 of the largest, 3e-6 in parts)."""

STRIP = 16 * LANES
"""Tokens that meet a panel of weights one tile after the other, whose sums are held; fewer where they would take more
than KEPT bytes."""

ASKED = not INTEL
"""Whether the next panel is asked for while one is met; cores of Intel's do better without (0.98 of the time)."""

TRANSPOSED = 16
"""Columns that `pack` turns at a time."""


def matmul_reference(x, weight):
    """`(T, K) @ (N, K).T -> (T, N)`."""
    return x @ weight.T


@njit
def _read(address, size):
    """Have bytes come into the caches; all are read, for who reads one of each line is slower."""
    numbers, found = carray(memory(address), (size // 8,), np.int64), np.int64(0)
    for i in range(len(numbers)):
        found |= numbers[i]
    keep(found)


@njit
def _long_rows(x, weight, out, begin, end):
    """`matvec` of rows longer than LONG."""
    K = weight.shape[1]
    row_bytes = weight.itemsize * K
    rows = max(1, LONG_BYTES // row_bytes)
    sums = float32_1d_at(scratch(4 * rows), rows)
    for first in range(begin, end, rows):
        last = min(end, first + rows)
        _read(weight.ctypes.data + row_bytes * first, row_bytes * (last - first))
        for k in range(0, K, COLUMNS):
            part = x[0, k : k + COLUMNS]
            for n in range(first, last):
                row, total = weight[n, k : k + COLUMNS], np.float32(0)
                for i in range(len(row)):
                    total += to_float32(row[i]) * part[i]
                sums[n - first] = total if k == 0 else sums[n - first] + total
        for n in range(first, last):
            out[0, n] = sums[n - first]


@njit
def matvec(x, weight, out, begin, end):
    """Rows `begin` to `end` of `(N, K) @ (K,) -> (N,)`: x is (1, K), out (1, N), the weights as `to_float32`.

    Each result is written once: a piece may be done again while others read it (`walk`).
    """
    K = weight.shape[1]
    if K > LONG:
        _long_rows(x, weight, out, begin, end)
        return
    row_bytes = weight.itemsize * K
    if weight.itemsize == 2:
        halves = scratch(4 * K)
        split(x.ctypes.data, K, halves)
        for n in range(begin, end):
            dot_split(weight.ctypes.data + row_bytes * n, K, halves, out.ctypes.data + 4 * n)
        return
    for n in range(begin, end):
        row = weight.ctypes.data + row_bytes * n
        dots_1(weight[0, 0], row, K, x.ctypes.data, 0, 1, out.ctypes.data + 4 * n, 0)


@njit
def few_tokens(x, weight, out, first, n):
    """Row n of the weights times the tokens from `first` on."""
    like, row, K = weight[0, 0], weight.ctypes.data + weight.itemsize * n * weight.shape[1], x.shape[1]
    stride = 4 * out.shape[1]
    while first < out.shape[0]:
        count = min(8, out.shape[0] - first)
        here, place = x.ctypes.data + 4 * K * first, out.ctypes.data + stride * first + 4 * n
        if count > 4:
            dots_8(like, row, K, here, 4 * K, count, place, stride)
        else:
            dots_4(like, row, K, here, 4 * K, count, place, stride)
        first += count


@plain
def tiled(T):
    """How many of T tokens go through the tile: all, but for a last tile less than half full."""
    return T - T % LANES if T % LANES <= LANES // 2 else T


def packed_length(T):
    """How many tokens a packed buffer has room for: T, and what the last tile leaves empty, LANES wide or AMX's."""
    by_amx = -(-T // TOKENS) * TOKENS if T >= TOKENS else 0
    return max(T, -(-tiled(T) // LANES) * LANES, by_amx)


@njit
def pack(x, packed, begin, end):
    """Tokens of x (T, K) to `packed`, tile after tile as (K, LANES), a few last ones as they are; a unit is a tile."""
    T, K = x.shape
    for first in range(begin * LANES, min(T, end * LANES), LANES):
        tokens = min(LANES, T - first)
        part = x[first : first + tokens]
        if first >= tiled(T):
            for token in range(tokens):
                for k in range(K):
                    packed[first + token, k] = part[token, k]
            continue
        place = packed.ctypes.data + 4 * first * K
        tile, done = float32_2d_at(place, K, LANES), 0
        if tokens == LANES:
            done = lay_side_by_side(part.ctypes.data, 4 * K, K, place, 4 * LANES)
        for k in range(done, K, TRANSPOSED):  # a cache line of every token at a time
            for column in range(k, min(K, k + TRANSPOSED)):
                for lane in range(tokens):
                    tile[column, lane] = part[lane, column]
                for lane in range(tokens, LANES):
                    tile[column, lane] = np.float32(0)


@njit
def _row(weight, n, k):
    """Where the columns from k on of row n are; of the last row where the matrix has ended."""
    return weight.ctypes.data + weight.itemsize * (min(n, weight.shape[0] - 1) * weight.shape[1] + k)


@njit
def _widen(weight, n, k, length, panel):
    """`length` columns from k on of BLOCK_ROWS rows from n on, as float32: (BLOCK_ROWS, DEPTH)."""
    for row in range(BLOCK_ROWS):
        widen_to(weight[0, 0], _row(weight, n + row, k), panel + 4 * DEPTH * row, length)


@njit
def _ask_for(weight, n, k, part, parts):
    """Ask for the `part`-th of so many parts of the panel at n and k."""
    for row in range(part, BLOCK_ROWS, parts):
        for byte in range(0, weight.itemsize * min(DEPTH, weight.shape[1] - k), CACHE_LINE):
            prefetch(_row(weight, n + row, k) + byte)


@njit
def _write(sums, out, stays_packed, first, n, rows):
    """The sums of a tile to `out`, to the tokens from `first` and the rows from n on that are there."""
    stride = 4 * out.shape[1]
    place = out.ctypes.data + stride * first
    if stays_packed:
        count = LANES * min(rows, BLOCK_ROWS)
        found, there = float32_1d_at(sums, count), float32_1d_at(place + 4 * LANES * n, count)
        for i in range(count):
            there[i] = found[i]
        return
    if out.shape[0] - first >= LANES and rows >= BLOCK_ROWS:
        for row in range(0, BLOCK_ROWS, ROWS):
            turn(sums + 4 * row * LANES, place + 4 * (n + row), stride)
        return
    block = float32_2d_at(sums, BLOCK_ROWS, LANES)
    for token in range(min(LANES, out.shape[0] - first)):
        for row in range(min(rows, BLOCK_ROWS)):
            out[first + token, n + row] = block[row, token]


@njit
def _tiles(packed, weight, out, stays_packed, start, stop, n, end, panel, zeros, sums):
    """A block of rows times the tokens `start` to `stop`, all of them in tiles; the last three by address."""
    K, size = weight.shape[1], 4 * BLOCK_ROWS * LANES
    tiles = (stop - start + LANES - 1) // LANES
    for k in range(0, K, DEPTH):
        length = min(DEPTH, K - k)
        _widen(weight, n, k, length, panel)
        for i in range(tiles):
            first = start + i * LANES
            if ASKED and k + DEPTH < K:
                _ask_for(weight, n, k + DEPTH, i, tiles)
            elif ASKED:
                _ask_for(weight, n + BLOCK_ROWS, 0, i, tiles)
            right = packed.ctypes.data + 4 * (first * K + k * LANES)
            for row in range(0, BLOCK_ROWS, ROWS):
                here = sums + size * i + 4 * row * LANES
                before = zeros if k == 0 else here
                tile(panel + 4 * DEPTH * row, 4 * DEPTH, 4, right, length, before, here)
            if k + DEPTH >= K:
                _write(sums + size * i, out, stays_packed, first, n, end - n)


@njit
def matmul(packed, weight, out, stays_packed, begin, end):
    """Rows `begin` to `end` of the weights (N, K) times the tokens that `pack` made, into out (T, N).

    If the result `stays_packed`, it is laid out as `pack` would have it, and takes as much room.
    """
    T = out.shape[0]
    panel, sums = scratch(4 * BLOCK_ROWS * DEPTH), scratch(4 * BLOCK_ROWS * STRIP)
    zeros = scratch(4 * ROWS * LANES)
    nothing = float32_1d_at(zeros, ROWS * LANES)
    for i in range(ROWS * LANES):
        nothing[i] = np.float32(0)
    strip = max(1, min(STRIP, KEPT // (4 * weight.shape[1])) // LANES) * LANES
    for start in range(0, tiled(T), strip):
        for n in range(begin, end, BLOCK_ROWS):
            stop = min(tiled(T), start + strip)
            _tiles(packed, weight, out, stays_packed, start, stop, n, end, panel, zeros, sums)
    if tiled(T) < T:
        for n in range(begin, end):
            few_tokens(packed, weight, out, tiled(T), n)


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
    """packed (3), weight (3), out (3), whether it stays packed (1)."""
    x, weight, out = float32_2d(operands, 0), float32_2d(operands, 3), float32_2d(operands, 6)
    matmul(x, weight, out, operands[9], begin, end)


@operation
def matmul_bfloat16_operation(operands, begin, end):
    """packed (3), weight (3), out (3), whether it stays packed (1)."""
    x, weight, out = float32_2d(operands, 0), uint16_2d(operands, 3), float32_2d(operands, 6)
    matmul(x, weight, out, operands[9], begin, end)
