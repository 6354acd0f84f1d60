"""Attention over a KV cache of int8: scores and weighted sums by integer products, as `matmul_int8.py` multiplies.

A record, one key/value head at BLOCK positions, is two matrices as the weights of a layer would be stored. Keys:
positions are rows, a head is columns, (BLOCK / 16, Dh / 4, 16, 4) int8, with a scale (bfloat16) for each position and
group of 64 columns. Values: a head is rows, positions are columns, (value rows / 16, BLOCK / 4, 16, 4) int8, with
log2 of a scale (float32) for each position, which goes into the weight that meets it. Whole groups of 64 of a head are
rotated (`hadamard`) before they are rounded: queries as their keys, which leaves the scores as they were; and the
weighted sum of rotated values is rotated back. Queries are rounded to a byte too, with a scale for 64 of them, and
weights, with one for a block (Zhang et al. 2024, arXiv:2410.02367, do so with queries and keys, smoothed otherwise).
"""

import numpy as np

from tinylm.kernels.attention import (
    BEGIN,
    END,
    FIRST,
    QUERIES_HERE,
    ROW,
    SEQUENCE,
    first_record,
    padded,
)
from tinylm.kernels.dot import COLUMNS, DOT, ROWS
from tinylm.kernels.exponential import LOG2_E, exp
from tinylm.kernels.hadamard import GROUP, rotate
from tinylm.kernels.jit import Function, carray, njit, operation, plain
from tinylm.kernels.matmul_integers import pack_token, packed_columns, packed_width
from tinylm.kernels.operands import float32_1d_at, float32_2d, float32_2d_at, int64_1d, int64_2d
from tinylm.kernels.simd import (
    float_from_bits,
    memory,
    scratch,
)
from tinylm.kernels.softmax import LOWEST
from tinylm.kernels.softmax_int8 import top_score, weights
from tinylm.kernels.streams import ask_ahead
from tinylm.kernels.tile import LANES
from tinylm.kernels.tile_attention import BLOCK
from tinylm.kernels.tile_attention_int8 import BLOCKS, ROUND, TOKENS, make_weigh
from tinylm.kernels.tile_integers import make_tile

_score_many, _score_some, _score_one = (
    make_tile(*shape, 8, added=True) for shape in zip(TOKENS, BLOCKS, strict=True)
)
_weigh_many, _weigh_some, _weigh_one = (make_weigh(*shape) for shape in zip(TOKENS, BLOCKS, strict=True))

MANY_BLOCKS = BLOCKS[0]
"""Blocks of a tile of many queries. One of few takes a block after the other: it waits for memory, which follows
one stream."""

LN_2 = np.float32(1 / LOG2_E)

LARGEST_BYTE = np.float32(DOT.most)


@plain
def key_columns(head_dim):
    """The columns of a row of keys: whole steps of four."""
    return -(-head_dim // COLUMNS) * COLUMNS


@plain
def value_rows(head_dim):
    """The rows of values: two blocks of 16 at a time."""
    return -(-head_dim // (2 * ROWS)) * 2 * ROWS


@plain
def groups_of(columns):
    """How many groups so many columns make."""
    return -(-columns // GROUP)


@plain
def key_scales_at(head_dim):
    """Where in a record the scales of the keys begin."""
    return BLOCK * key_columns(head_dim)


@plain
def values_at(head_dim):
    """Where in a record the values begin."""
    return key_scales_at(head_dim) + 2 * BLOCK * groups_of(head_dim)


@plain
def value_scales_at(head_dim):
    """Where in a record the scales of the values begin."""
    return values_at(head_dim) + BLOCK * value_rows(head_dim)


@plain
def record_bytes(head_dim):
    """Bytes of a record, a multiple of 64."""
    return value_scales_at(head_dim) + 4 * BLOCK


@plain
def _tile_for(queries):
    """How many queries the next tile takes, of so many."""
    return TOKENS[0] if queries > TOKENS[1] else TOKENS[1] if queries > 1 else 1


@njit
def score(packed, queries, record, head_dim, rows, scores):
    """Packed queries times the first `rows` keys of a record, plus log2 of the scales of the values there:
    (queries, BLOCK), all by address.

    Queries are rounded up to whole tiles, and rows to whole blocks.
    """
    columns, groups = key_columns(head_dim), groups_of(head_dim)
    whole, tail = columns // GROUP, columns % GROUP // COLUMNS
    stride, block_bytes, scale_bytes = 4 * packed_width(head_dim), ROWS * columns, 2 * ROWS * groups
    size = packed_columns(head_dim)
    begins = size + 4 * groups
    query = 0
    while query < queries:
        x = packed + stride * query
        tokens = _tile_for(queries - query)
        blocks = MANY_BLOCKS if tokens == TOKENS[0] else 1
        for row in range(0, rows, ROWS * blocks):
            keys = record + row // ROWS * block_bytes
            scales = record + key_scales_at(head_dim) + row // ROWS * scale_bytes
            out, added = scores + 4 * (BLOCK * query + row), record + value_scales_at(head_dim) + 4 * row
            if tokens == TOKENS[0]:
                _score_many(whole, tail, keys, block_bytes, x, stride, scales, scale_bytes,
                            size, begins, out, 4 * BLOCK, added)  # fmt: skip
            elif tokens == TOKENS[1]:
                _score_some(whole, tail, keys, block_bytes, x, stride, scales, scale_bytes,
                            size, begins, out, 4 * BLOCK, added)  # fmt: skip
            else:
                _score_one(whole, tail, keys, block_bytes, x, stride, scales, scale_bytes,
                           size, begins, out, 4 * BLOCK, added)  # fmt: skip
        query += tokens


@njit
def weigh(values, rows, queries, numbers, shrink, scale, sums, width):
    """sums (queries, width) = sums * shrink + numbers (queries, rows of BLOCK) @ values * scale, all by address."""
    query, rounds = 0, -(-rows // ROUND)
    while query < queries:
        tokens = _tile_for(queries - query)
        left, factors, scales = numbers + BLOCK * query, shrink + 4 * query, scale + 4 * query
        blocks = MANY_BLOCKS if tokens == TOKENS[0] else 1
        for column in range(0, width, ROWS * blocks):
            right, out = values + BLOCK * column, sums + 4 * (width * query + column)
            if tokens == TOKENS[0]:
                _weigh_many(rounds, right, left, BLOCK, factors, scales, out, 4 * width)
            elif tokens == TOKENS[1]:
                _weigh_some(rounds, right, left, BLOCK, factors, scales, out, 4 * width)
            else:
                _weigh_one(rounds, right, left, BLOCK, factors, scales, out, 4 * width)
        query += tokens


def make_attention(score: Function, weigh: Function) -> Function:
    """The kernel of these two halves: `score` and `weigh`, or what gives the same numbers."""

    @njit
    def attend(records, stride, task, head_dim, packed, last, highest, total, sums, width, following):
        """A task: packed queries, maxima and sums (LANES,), and by address weighted values (LANES, width).

        `following`: the record that is read after it.
        """
        queries = task[QUERIES_HERE]
        scores, numbers = scratch(4 * LANES * BLOCK), scratch(LANES * BLOCK)
        shrink, scale = float32_1d_at(scratch(4 * LANES), LANES), float32_1d_at(scratch(4 * LANES), LANES)
        top = float32_1d_at(scratch(4 * LANES), LANES)
        visible = carray(memory(scratch(4 * LANES)), (LANES,), np.int32)
        inverses = float32_1d_at(scratch(4 * BLOCK), BLOCK)
        top[:] = LOWEST
        for position in range(task[BEGIN], task[END], BLOCK):
            rows = min(BLOCK, task[END] - position)
            record = records + stride * (position // BLOCK)
            scales = record + value_scales_at(head_dim)
            after = record + stride if position + BLOCK < task[END] else following
            ask_ahead(after, values_at(head_dim))
            score(packed, queries, record, head_dim, rows, scores)
            for query in range(queries):
                visible[query] = max(0, min(rows, last[query] + 1 - position))
                top[query] = top_score(scores + 4 * BLOCK * query, np.int64(visible[query]))
            for lane in range(LANES):
                new = max(highest[lane], top[lane])
                shrink[lane] = exp((highest[lane] - new) * LN_2)
                scale[lane] = exp((top[lane] - new) * LN_2) / LARGEST_BYTE
                highest[lane], total[lane] = new, total[lane] * shrink[lane]
            logarithms = float32_1d_at(scales, BLOCK)
            for i in range(BLOCK):
                inverses[i] = exp(-LN_2 * logarithms[i])
            for query in range(queries):
                total[query] += scale[query] * weights(
                    scores + 4 * BLOCK * query, inverses.ctypes.data, np.int64(visible[query]), top[query],
                    numbers + BLOCK * query,
                )  # fmt: skip
            ask_ahead(after + values_at(head_dim), BLOCK * width)
            addresses = shrink.ctypes.data, scale.ctypes.data
            weigh(record + values_at(head_dim), rows, queries, numbers, *addresses, sums, width)

    @njit
    def attention(q, positions, tasks, caches, layer, heads, head_dim, scale, parts, begin, end):
        """As `attention.attention`, of a cache in int8."""
        queries_of_head = q.shape[1] // (heads * head_dim)
        size, columns = record_bytes(head_dim), padded(head_dim)
        row = float32_1d_at(scratch(4 * head_dim), head_dim)
        packed, row_bytes = scratch(LANES * 4 * packed_width(head_dim)), 4 * packed_width(head_dim)
        last = carray(memory(scratch(4 * LANES)), (LANES,), np.int32)
        width = value_rows(head_dim)
        sums = float32_2d_at(scratch(4 * LANES * width), LANES, width)
        for unit in range(begin, end):
            task, head, part = tasks[unit // heads], unit % heads, parts[unit]
            for lane in range(task[QUERIES_HERE]):
                query = task[FIRST] + lane
                token, member = task[ROW] + query // queries_of_head, query % queries_of_head
                column = (head * queries_of_head + member) * head_dim
                last[lane] = positions[token]
                for d in range(head_dim):
                    row[d] = q[token, column + d] * (scale * LOG2_E)
                pack_token(row.ctypes.data, head_dim, packed + row_bytes * lane)
                sums[lane, :] = np.float32(0)
            part[:LANES] = LOWEST
            part[LANES : 2 * LANES] = np.float32(0)
            records, stride = caches[task[SEQUENCE], layer] + size * head, size * heads
            highest, total = part[:LANES], part[LANES : 2 * LANES]
            following = first_record(tasks, min(unit + 1, end - 1), caches, layer, heads, size)
            attend(
                records,
                stride,
                task,
                head_dim,
                packed,
                last,
                highest,
                total,
                sums.ctypes.data,
                width,
                following,
            )
            for lane in range(LANES):
                highest[lane] *= LN_2
            for lane in range(task[QUERIES_HERE]):
                there = part.ctypes.data + 4 * (2 * LANES + columns * lane)
                for group in range(head_dim // GROUP):
                    rotate(sums.ctypes.data + 4 * (width * lane + GROUP * group), there + 4 * GROUP * group)
                for d in range(head_dim // GROUP * GROUP, head_dim):
                    part[2 * LANES + columns * lane + d] = sums[lane, d]

    return attention


attention = make_attention(score, weigh)


@njit
def run_attention(attention, operands, begin, end):
    """One of `make_attention`, of the operands of `attention_int8_operation`."""
    attention(
        float32_2d(operands, 0),
        int64_1d(operands, 3),
        int64_2d(operands, 5),
        int64_2d(operands, 8),
        operands[11],
        operands[12],
        operands[13],
        float_from_bits(operands[14]),
        float32_2d(operands, 15),
        begin,
        end,
    )


@operation
def attention_int8_operation(operands, begin, end):
    """q (3), positions (2), tasks (3), caches (3), layer, heads, head_dim, scale (1 each), parts (3)."""
    run_attention(attention, operands, begin, end)
