"""Attention over a KV cache of int8 by the matrix unit AMX: that of `attention_int8`, to the bit."""

from tinylm.kernels.attention_int8 import (
    key_columns,
    key_scales_at,
    make_attention,
    run_attention,
    score,
    value_scales_at,
    weigh,
)
from tinylm.kernels.dot import COLUMNS, ROWS
from tinylm.kernels.hadamard import GROUP
from tinylm.kernels.jit import njit, operation
from tinylm.kernels.matmul_amx import shape_tiles
from tinylm.kernels.matmul_integers import groups_of, packed_columns, packed_width
from tinylm.kernels.simd import scratch
from tinylm.kernels.tile_amx import CONFIGURATION, ROOM, TOKENS, configure, release, tile_amx_added
from tinylm.kernels.tile_attention import BLOCK
from tinylm.kernels.tile_attention_amx import shape_rest, weigh_amx

FEW = TOKENS // 2
"""So many queries, the last of a task, are better off without."""


@njit
def score_amx(packed, queries, record, head_dim, rows, scores):
    """As `score`."""
    columns, groups = key_columns(head_dim), groups_of(head_dim)
    whole, tail = columns // GROUP, columns % GROUP // COLUMNS
    stride, room = 4 * packed_width(head_dim), scratch(ROOM)
    query = 0
    while queries - query > FEW:
        x = packed + stride * query
        for row in range(0, rows, ROWS):
            keys, scales = record + columns * row, record + key_scales_at(head_dim) + 2 * groups * row
            out, added = scores + 4 * (BLOCK * query + row), record + value_scales_at(head_dim) + 4 * row
            tile_amx_added(
                whole, tail, keys, x, stride, scales, packed_columns(head_dim), room, out, 4 * BLOCK, added
            )
        query += TOKENS
    if query < queries:
        score(packed + stride * query, queries - query, record, head_dim, rows, scores + 4 * BLOCK * query)


@njit
def weigh_all_amx(values, rows, queries, numbers, shrink, scale, sums, width):
    """As `weigh`."""
    room = scratch(ROOM)
    query = 0
    while queries - query > FEW:
        left, factors, scales = numbers + BLOCK * query, shrink + 4 * query, scale + 4 * query
        for column in range(0, width, ROWS):
            out = sums + 4 * (width * query + column)
            weigh_amx(values + BLOCK * column, left, factors, scales, out, 4 * width, room)
        query += TOKENS
    if query < queries:
        left, factors, scales = numbers + BLOCK * query, shrink + 4 * query, scale + 4 * query
        weigh(values, rows, queries - query, left, factors, scales, sums + 4 * width * query, width)


attention_amx = make_attention(score_amx, weigh_all_amx)


@operation
def attention_int8_amx_operation(operands, begin, end):
    """As `attention_int8_operation`, for a process to which tiles are `permitted`."""
    shapes = scratch(CONFIGURATION)
    shape_tiles(shapes, key_columns(operands[13]) % GROUP // COLUMNS)
    shape_rest(shapes)
    configure(shapes)
    run_attention(attention_amx, operands, begin, end)
    release()
