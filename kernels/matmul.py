"""Matrix products with float32 and bfloat16 weights: `(T, K) @ (N, K).T -> (T, N)`.

One token is a sum along one row after the other (`matvec`): memory speed, for the memory prefers one stream to several
rows at a time, which halve it; rows too long for the first cache are read before they are multiplied. A few tokens
are summed up row by row too. More tokens go through the register tile (`matmul`): a panel, LANES rows of weights
widened to float32 and laid side by side, meets all tokens, which are read where they lie. One unit of work is one row
of the weights. The order of every sum is fixed by the shapes alone, so the result does not depend on who did which
share.
"""

import numpy as np

from tinylm.kernels.dot_bfloat16 import dot_split, split
from tinylm.kernels.jit import carray, njit, operation
from tinylm.kernels.lay import lay_side_by_side
from tinylm.kernels.operands import float32_1d_at, float32_2d, float32_2d_at, uint16_2d
from tinylm.kernels.simd import CACHE_LINE, keep, memory, prefetch, scratch, to_float32
from tinylm.kernels.streams import KEPT, LONG
from tinylm.kernels.tile import LANES, NARROW, ROWS, first_row, narrow_tile, narrow_tiles, tile
from tinylm.kernels.tile_few import dots_1, dots_4, dots_8

FEWEST = 12
"""Tokens that go through the tile, at least. It holds no more, and takes no longer than row by row from there on."""

COLUMNS = 2048
"""Rows longer than LONG meet one token COLUMNS at a time: a whole token of that length fills the first cache, and as
soon as it has to be read anew for each row, the weights come at half the speed."""

LONG_BYTES = 128 * 1024
"""Bytes of long rows that are read, in the order of memory, before any of them is multiplied: so many stay in the
second cache."""

DEPTH = 192
"""Columns that the tile adds up before its sums go to the total: one long chain of float32 loses a digit, and a
model can enlarge that (SmolLM2's second token: logits off by 4e-4 of the largest, 3e-6 in parts)."""

STRIP = 12 * ROWS
"""Tokens that meet a panel at a time, at least: those of which KEPT bytes are as many or more, or else all. For fewer a
panel is not laid: with 36 at a time and 8,192 columns a product took 1.3 times as long."""

SOME = 4 * ROWS
"""Tokens that meet a panel at a time where it is no whole one: their sums stand apart from the result."""


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
def few_tokens(x, weight, out, n):
    """Row n of the weights times tokens."""
    like, row, K = weight[0, 0], weight.ctypes.data + weight.itemsize * n * weight.shape[1], x.shape[1]
    stride = 4 * out.shape[1]
    for first in range(0, out.shape[0], 8):
        count = min(8, out.shape[0] - first)
        here, place = x.ctypes.data + 4 * K * first, out.ctypes.data + stride * first + 4 * n
        if count > 4:
            dots_8(like, row, K, here, 4 * K, count, place, stride)
        else:
            dots_4(like, row, K, here, 4 * K, count, place, stride)


@njit
def _panel(weight, n, k, length, panel):
    """`length` columns from k on of LANES rows from n on, as float32: (length, LANES), zeros where the rows end."""
    N, K = weight.shape
    rows, done = min(LANES, N - n), 0
    if rows == LANES:
        here = weight.ctypes.data + weight.itemsize * (K * n + k)
        done = lay_side_by_side(weight[0, 0], here, weight.itemsize * K, length, panel, 4 * LANES)
    columns = float32_2d_at(panel, length, LANES)
    for column in range(done, length):
        for row in range(rows):
            columns[column, row] = to_float32(weight[n + row, k + column])
        for row in range(rows, LANES):
            columns[column, row] = np.float32(0)


@njit
def _ask_after(weight, n, k, part, parts):
    """Ask for the `part`-th of so many parts of the panel that comes after the one at n and k."""
    K = weight.shape[1]
    if k + DEPTH < K:
        k += DEPTH
    else:
        n, k = n + LANES, 0
    for row in range(part, LANES, parts):
        here = weight.ctypes.data + weight.itemsize * (K * (n + row) + k)
        for byte in range(0, weight.itemsize * min(DEPTH, K - k), CACHE_LINE):
            prefetch(here + byte)


@njit
def _copy(source, tokens, rows, out, stride):
    """Sums of tokens with LANES rows each, as many of them as there are, to their places at a stride in bytes."""
    for token in range(tokens):
        found, target = (
            float32_1d_at(source + 4 * LANES * token, rows),
            float32_1d_at(out + stride * token, rows),
        )
        for row in range(rows):
            target[row] = found[row]


@njit
def _times_panels(x, weight, first, last, n, panel, zeros, edge, out, stride):
    """Tokens `first` to `last` times LANES rows from n on, to an address, at a stride in bytes.

    If the last tile would not be full it takes some tokens again: its sums, (ROWS, LANES), grow at `edge`.
    """
    K, count = x.shape[1], last - first
    tiles = (count + ROWS - 1) // ROWS
    wide = tiles - narrow_tiles(count)
    size = ROWS if wide == tiles else NARROW  # of the last tile
    rest = count - first_row(tiles - 1, wide)
    for k in range(0, K, DEPTH):
        length = min(DEPTH, K - k)
        _panel(weight, n, k, length, panel)
        for i in range(tiles):
            _ask_after(weight, n, k, i, tiles)
            token = first_row(i, wide)
            target, target_stride = out + stride * token, stride
            if i == tiles - 1 and rest < size:
                token, target, target_stride = count - size, edge, 4 * LANES
            before, before_stride = (zeros, 0) if k == 0 else (target, target_stride)
            left = x.ctypes.data + 4 * (K * (first + token) + k)
            if i < wide:
                tile(left, 4 * K, 4, panel, length, before, before_stride, target, target_stride)
            else:
                narrow_tile(left, 4 * K, 4, panel, length, before, before_stride, target, target_stride)
    if rest < size:
        _copy(edge + 4 * LANES * (size - rest), rest, LANES, out + stride * (count - rest), stride)


@njit
def matmul(x, weight, out, begin, end):
    """Rows `begin`, a multiple of LANES, to `end` of the weights (N, K) times tokens (T, K), into out (T, N)."""
    T, N = out.shape
    if T < FEWEST:
        for n in range(begin, end):
            few_tokens(x, weight, out, n)
        return
    panel, zeros = scratch(4 * DEPTH * LANES), scratch(4 * LANES)
    edge, apart = scratch(4 * ROWS * LANES), scratch(4 * SOME * LANES)
    float32_1d_at(zeros, LANES)[:] = np.float32(0)
    strip = KEPT // (4 * weight.shape[1]) // ROWS * ROWS
    if strip < STRIP:
        strip = T
    for start in range(0, T, strip):
        stop = min(T, start + strip)
        for n in range(begin, end, LANES):
            rows = min(LANES, N - n)
            some = strip if rows == LANES else SOME
            for first in range(start, stop, some):
                last = min(stop, first + some)
                there = out.ctypes.data + 4 * (N * first + n)
                sums, stride = (there, 4 * N) if rows == LANES else (apart, 4 * LANES)
                _times_panels(x, weight, first, last, n, panel, zeros, edge, sums, stride)
                if rows < LANES:
                    _copy(apart, last - first, rows, there, 4 * N)


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
    """x (3), weight (3), out (3)."""
    matmul(float32_2d(operands, 0), float32_2d(operands, 3), float32_2d(operands, 6), begin, end)


@operation
def matmul_bfloat16_operation(operands, begin, end):
    """x (3), weight (3), out (3)."""
    matmul(float32_2d(operands, 0), uint16_2d(operands, 3), float32_2d(operands, 6), begin, end)
