"""Products of many tokens with int8 weights by the matrix unit AMX: those of `matmul_int8`, to the bit."""

from tinylm.kernels.dot import ROWS
from tinylm.kernels.gated_integers import gated_operation, make_gated
from tinylm.kernels.hadamard import GROUP
from tinylm.kernels.jit import njit, operation
from tinylm.kernels.matmul_integers import copy_columns, groups_of, make_few, packed_columns, steps_of
from tinylm.kernels.operands import float32_2d
from tinylm.kernels.simd import scratch
from tinylm.kernels.streams import KEPT
from tinylm.kernels.tile_amx import (
    CONFIGURATION,
    LAST_LEFT,
    LAST_RIGHT,
    LEFT,
    RIGHT,
    ROOM,
    SUMS,
    TOKENS,
    clear_shapes,
    configure,
    give_shape,
    release,
    tile_amx,
)

TILES = 2
"""Tiles of tokens that meet a block of rows one after the other: it then comes from the second cache once."""

_few = make_few(8)


@njit
def shape_tiles(shapes, tail):
    """Write the shapes of the tiles to a configuration, where the last group is `tail` blocks of columns."""
    clear_shapes(shapes)
    give_shape(shapes, SUMS, TOKENS, 4 * ROWS)
    give_shape(shapes, LEFT, TOKENS, GROUP)
    give_shape(shapes, RIGHT, GROUP // 4, 4 * ROWS)
    if tail > 0:
        give_shape(shapes, LAST_LEFT, TOKENS, 4 * tail)
        give_shape(shapes, LAST_RIGHT, tail, 4 * ROWS)


@njit
def _configure(K):
    """Give the tiles of this thread the shapes for K columns."""
    shapes = scratch(CONFIGURATION)
    shape_tiles(shapes, steps_of(K) - K // GROUP * (GROUP // 4))
    configure(shapes)


@njit
def _tiles(packed, weights, scales, K, out, begin, end):
    """As `matmul_int8`, of TOKENS tokens or more, by tiles that are configured.

    As many rows at a time as stay in the second cache; each block of them meets TILES tiles of tokens in turn.
    """
    T, N = out.shape
    columns, whole = packed_columns(K), K // GROUP
    tail = steps_of(K) - whole * (GROUP // 4)
    block_bytes, scale_bytes = 4 * ROWS * steps_of(K), 2 * ROWS * groups_of(K)
    stride, room, edge = 4 * packed.shape[1], scratch(ROOM), scratch(ROOM)
    rows_kept = max(1, KEPT // block_bytes) * ROWS
    for begun in range(begin, end, rows_kept):
        stop = min(end, begun + rows_kept)
        for tokens in range(0, T, TILES * TOKENS):
            for n in range(begun, stop, ROWS):
                left, factors = weights + n // ROWS * block_bytes, scales + n // ROWS * scale_bytes
                rows = min(ROWS, stop - n)
                for first in range(tokens, min(T, tokens + TILES * TOKENS), TOKENS):
                    token = min(first, T - TOKENS)  # the last tile takes some tokens again
                    x = packed.ctypes.data + stride * token
                    target, target_stride = out.ctypes.data + 4 * (N * token + n), 4 * N
                    if rows < ROWS:
                        target, target_stride = edge, 4 * ROWS
                    tile_amx(whole, tail, left, x, stride, factors, columns, room, target, target_stride)
                    if rows < ROWS:
                        copy_columns(edge, ROWS, out[token : token + TOKENS, n : n + rows])


@njit
def _configured(packed, weights, scales, K, out, begin, end):
    """As `matmul_int8`, by tiles that are configured."""
    if len(out) >= TOKENS:
        _tiles(packed, weights, scales, K, out, begin, end)
    else:
        _few(packed, weights, scales, K, out, begin, end)


@njit
def matmul_amx(packed, weights, scales, K, out, begin, end):
    """As `matmul_int8`."""
    _configure(K)
    _configured(packed, weights, scales, K, out, begin, end)
    release()


_gated = make_gated(8, TILES * TOKENS, _configured)


@njit
def gated_amx(packed, gates, ups, K, N, T, kind, out, begin, end):
    """As `gated_int8`."""
    _configure(K)
    _gated(packed, gates, ups, K, N, T, kind, out, begin, end)
    release()


gated_int8_amx_operation = gated_operation("int8_amx", gated_amx)


@operation
def matmul_int8_amx_operation(operands, begin, end):
    """As `matmul_int8_operation`, for a process to which tiles are `permitted`."""
    packed, out = float32_2d(operands, 0), float32_2d(operands, 6)
    matmul_amx(packed, operands[3], operands[4], operands[5], out, begin, end)
