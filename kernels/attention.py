"""Attention over a KV cache: softmax(q k^T / sqrt(Dh)) v, causal, grouped query heads, several sequences.

The cache of a layer is blocks of BLOCK positions, each of them a record a key/value head: its keys in transposed
strips, (BLOCK / STRIP, Dh, STRIP), then its values, (BLOCK, padded Dh). So keys meet registers full of positions,
values registers full of columns, and a task reads memory from front to back.

The work is cut into *tasks*: queries of one sequence that share a key/value head, against a range of positions. A
query is a pair (token, head of the group). Up to FEW of them go through the tiles of `tile_attention.py`; more, in a
step of many, lie side by side in the lanes of the matrix tile. Each key and value is read once for all queries of a
task. A task keeps a running maximum and sum (Milakov and Gimelshein 2018, arXiv:1805.02867), so its positions go by
in blocks. Long contexts of few queries are split over positions; `combine` then joins the parts. The split is a
function of the lengths alone: the result does not depend on the number of threads.
"""

import numpy as np

from tinylm.kernels.exponential import exp
from tinylm.kernels.jit import carray, njit, operation, plain
from tinylm.kernels.lay import lay_side_by_side, make_lay
from tinylm.kernels.narrow_floats import BFLOAT16, FLOAT16, FLOAT32, narrow_at, size_of, widen_to
from tinylm.kernels.operands import float32_1d_at, float32_2d, float32_2d_at, int64_1d, int64_2d
from tinylm.kernels.simd import CACHE_LINE, float_from_bits, memory, prefetch, scratch
from tinylm.kernels.softmax import LOWEST, softmax_block, softmax_row
from tinylm.kernels.tile import LANES, ROWS, WIDTH, first_row, narrow_tile, narrow_tiles, tile
from tinylm.kernels.tile_attention import (
    BLOCK,
    MOST,
    STEP,
    STRIP,
    score_1,
    score_2,
    score_3,
    score_4,
    weigh_1,
    weigh_2,
    weigh_3,
    weigh_4,
)

FEW = 4 * MOST
"""Queries of a task of few. In a step of few queries all tasks are such: each query then has the same sums, to the
bit, in steps of one token and of several, and the wide tile is no faster before it is full."""

SPLIT, PARTS = 2 * BLOCK, 16
"""Positions a task, where a step has few queries; more where that made more than so many parts."""

lay_together = make_lay(WIDTH)

SEQUENCE, ROW, FIRST, QUERIES_HERE, BEGIN, END, TASK_FIELDS = range(7)
"""A task: its sequence; that sequence's first row in the step; first query and their number; positions."""

TILE_TASK, TILE_PARTS, TILE_ROW, TILE_FIRST, TILE_QUERIES, TILE_FIELDS = range(6)
"""A tile of queries: its first task and how many there are (parts); row, first query, number of queries."""


def attention_reference(q, keys, values, positions, scale):
    """`(T, H, Dh), (S, Hkv, Dh), (S, Hkv, Dh), (T,) -> (T, H, Dh)` and the pattern (H, T, S).

    Query t sees the keys at positions 0 to positions[t]. Query head h uses key/value head h // (H / Hkv)
    (Vaswani et al. 2017, arXiv:1706.03762; Ainslie et al. 2023, arXiv:2305.13245).
    """
    group = q.shape[1] // keys.shape[1]
    keys, values = np.repeat(keys, group, axis=1), np.repeat(values, group, axis=1)
    scores = np.einsum("thd,shd->hts", q, keys) * np.float32(scale)
    hidden = np.arange(keys.shape[0])[None, :] > positions[:, None]
    scores = np.where(hidden[None], np.float32(-np.inf), scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    pattern = (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)
    return np.einsum("hts,shd->thd", pattern, values).astype(np.float32), pattern


def plan(starts, counts, lengths, group):
    """The tasks (n, TASK_FIELDS) and tiles (m, TILE_FIELDS), int64, of a step.

    For each sequence: its first row in the step, its tokens there, and its positions with them; `group` is
    the number of query heads a key/value head.
    """
    tasks, tiles = [], []
    few = sum(counts) * group <= 4 * LANES
    for sequence, (row, count, length) in enumerate(zip(starts, counts, lengths, strict=True)):
        queries = count * group
        lanes = FEW if few or queries <= FEW else LANES
        for first in range(0, queries, lanes):
            here = min(lanes, queries - first)
            end = length - count + (first + here - 1) // group + 1
            step = max(SPLIT, BLOCK * -(-end // (BLOCK * PARTS))) if few else end
            parts = range(0, end, step)
            tiles.append((len(tasks), len(parts), row, first, here))
            tasks += [(sequence, row, first, here, begin, min(begin + step, end)) for begin in parts]
    return np.array(tasks, np.int64).reshape(-1, TASK_FIELDS), np.array(tiles, np.int64).reshape(
        -1, TILE_FIELDS
    )


@plain
def padded(head_dim):
    """The columns of a row of values: a head rounded up to whole registers."""
    return -(-head_dim // STEP) * STEP


@plain
def record_length(head_dim):
    """Numbers of a record: the keys and values of one head at BLOCK positions."""
    return BLOCK * (head_dim + padded(head_dim))


@plain
def part_size(head_dim):
    """float32 of a part: maxima and sums of LANES queries, then weighted values, (LANES, padded Dh)."""
    return LANES * (2 + padded(head_dim))


@njit
def first_record(tasks, unit, caches, layer, heads, size):
    """Where the first record of a unit is; a record takes so many bytes."""
    task = tasks[unit // heads]
    return caches[task[SEQUENCE], layer] + size * (unit % heads + heads * (task[BEGIN] // BLOCK))


@njit
def _wide(like, source, wide, count):
    """`count` numbers such as `like` as float32: where they stand then, which is `wide`, or `source` if they are."""
    if size_of(like) == 4:
        return source
    widen_to(like, source, wide, count)
    return wide


@njit
def _multiply(left, row_stride, k_stride, rows, right, K, before, before_stride, out):
    """Rows of a product, added to others, rounded up to whole tiles; addresses, strides in bytes."""
    tiles = (rows + ROWS - 1) // ROWS
    wide = tiles - narrow_tiles(rows)
    for i in range(tiles):
        row = first_row(i, wide)
        here, sums, there = left + row * row_stride, before + row * before_stride, out + 4 * row * LANES
        if i < wide:
            tile(here, row_stride, k_stride, right, K, sums, before_stride, there, 4 * LANES)
        else:
            narrow_tile(here, row_stride, k_stride, right, K, sums, before_stride, there, 4 * LANES)


@njit
def _attend_many(like, records, stride, task, head_dim, queries, last, part, shrink):
    """A task of many queries (LANES, Dh), which fill the lanes of the tile."""
    highest, total = part[:LANES], part[LANES : 2 * LANES]
    size = padded(head_dim)
    packed = float32_2d_at(scratch(4 * head_dim * LANES), head_dim, LANES)
    done = lay_side_by_side(
        FLOAT32, queries.ctypes.data, 4 * head_dim, head_dim, packed.ctypes.data, 4 * LANES
    )
    for d in range(done, head_dim):
        for lane in range(LANES):
            packed[d, lane] = queries[lane * head_dim + d]
    before = scratch(4 * (head_dim + ROWS) * LANES)
    sums = float32_2d_at(before, head_dim + ROWS, LANES)
    sums[:] = np.float32(0)
    scores = float32_1d_at(scratch(4 * (BLOCK + ROWS) * LANES), (BLOCK + ROWS) * LANES)
    zeros = float32_1d_at(scratch(4 * LANES), LANES)
    zeros[:] = np.float32(0)
    wide = scratch(0 if size_of(like) == 4 else 4 * BLOCK * size)
    for position in range(task[BEGIN], task[END], BLOCK):
        rows = min(BLOCK, task[END] - position)
        keys = records + stride * (position // BLOCK)
        left = _wide(like, keys, wide, BLOCK * head_dim)
        for strip in range(0, rows, STRIP):
            out = scores.ctypes.data + 4 * LANES * strip
            here, some = left + 4 * head_dim * strip, min(STRIP, rows - strip)
            _multiply(here, 4, 4 * STRIP, some, packed.ctypes.data, head_dim, zeros.ctypes.data, 0, out)
        softmax_block(scores, position, rows, last, highest, total, shrink)
        left = _wide(like, keys + size_of(like) * BLOCK * head_dim, wide, rows * size)
        for d in range(head_dim):
            row = float32_1d_at(before + 4 * LANES * d, LANES)
            for lane in range(LANES):
                row[lane] *= shrink[lane]
        _multiply(left, 4, 4 * size, head_dim, scores.ctypes.data, rows, before, 4 * LANES, before)
    turned = head_dim // WIDTH * WIDTH
    for d in range(0, turned, WIDTH):
        there = part.ctypes.data + 4 * (2 * LANES + d)
        lay_together(FLOAT32, before + 4 * LANES * d, 4 * LANES, LANES, there, 4 * size)
    for d in range(turned, head_dim):
        for lane in range(LANES):
            part[2 * LANES + size * lane + d] = sums[d, lane]


@njit
def _score(like, queries, left, stride, keys, K, out):
    """The tile of so many queries."""
    if queries == 4:
        score_4(like, left, stride, keys, K, out)
    elif queries == 3:
        score_3(like, left, stride, keys, K, out)
    elif queries == 2:
        score_2(like, left, stride, keys, K, out)
    else:
        score_1(like, left, stride, keys, K, out)


@njit
def _weigh(like, queries, weights, values, rows, size, shrink, sums):
    """The tile of so many queries."""
    if queries == 4:
        weigh_4(like, weights, values, rows, size, shrink, sums)
    elif queries == 3:
        weigh_3(like, weights, values, rows, size, shrink, sums)
    elif queries == 2:
        weigh_2(like, weights, values, rows, size, shrink, sums)
    else:
        weigh_1(like, weights, values, rows, size, shrink, sums)


@njit
def _attend_few(like, records, stride, task, head_dim, packed, last, part, shrink):
    """A task of few queries, packed (queries, Dh)."""
    size, queries = padded(head_dim), task[QUERIES_HERE]
    highest, total, sums = part.ctypes.data, part.ctypes.data + 4 * LANES, part.ctypes.data + 8 * LANES
    part[2 * LANES : 2 * LANES + queries * size] = np.float32(0)
    scores = scratch(4 * BLOCK * FEW)
    for position in range(task[BEGIN], task[END], BLOCK):
        rows = min(BLOCK, task[END] - position)
        keys = records + stride * (position // BLOCK)
        values = keys + size_of(like) * BLOCK * head_dim
        for strip in range(0, rows, STRIP):
            here = keys + size_of(like) * head_dim * strip
            for first in range(0, queries, MOST):
                left, out = packed.ctypes.data + 4 * head_dim * first, scores + 4 * (BLOCK * first + strip)
                _score(like, min(MOST, queries - first), left, 4 * head_dim, here, head_dim, out)
        for query in range(queries):
            softmax_row(scores + 4 * BLOCK * query, last[query] + 1 - position, highest + 4 * query,
                        total + 4 * query, shrink.ctypes.data + 4 * query)  # fmt: skip
        for first in range(0, queries, MOST):
            weights, factors = scores + 4 * BLOCK * first, shrink.ctypes.data + 4 * first
            _weigh(
                like,
                min(MOST, queries - first),
                weights,
                values,
                rows,
                size,
                factors,
                sums + 4 * size * first,
            )


@njit
def attention(like, q, positions, tasks, caches, layer, heads, head_dim, scale, parts, begin, end):
    """Units `begin` to `end` (a unit is a task of one of `heads` key/value heads) into `parts`.

    q (T, H * Dh), already rotated; caches (sequences, layers) addresses of records of numbers such as `like`; parts
    (units, part_size(Dh)) for `combine`; the other names as above.
    """
    group = q.shape[1] // (heads * head_dim)
    size = size_of(like) * record_length(head_dim)
    packed = float32_1d_at(scratch(4 * head_dim * LANES), head_dim * LANES)
    last, shrink = (
        carray(memory(scratch(4 * LANES)), (LANES,), np.int32),
        float32_1d_at(scratch(4 * LANES), LANES),
    )
    for unit in range(begin, end):
        task, head, part = tasks[unit // heads], unit % heads, parts[unit]
        records, stride = caches[task[SEQUENCE], layer] + size * head, size * heads
        few = task[QUERIES_HERE] <= FEW
        for lane in range(task[QUERIES_HERE] if few else LANES):
            query = task[FIRST] + min(lane, task[QUERIES_HERE] - 1)
            token, column = task[ROW] + query // group, (head * group + query % group) * head_dim
            last[lane] = positions[token]
            for d in range(head_dim):
                packed[lane * head_dim + d] = q[token, column + d] * scale
        part[:LANES] = LOWEST
        part[LANES : 2 * LANES] = np.float32(0)
        if few:
            _attend_few(like, records, stride, task, head_dim, packed, last, part, shrink)
        else:
            _attend_many(like, records, stride, task, head_dim, packed, last, part, shrink)


@njit
def combine(tiles, heads, head_dim, parts, out, begin, end):
    """Units `begin` to `end` (a unit is a tile of one of `heads` key/value heads): parts into out (T, H * Dh)."""
    group = out.shape[1] // (heads * head_dim)
    size = padded(head_dim)
    for unit in range(begin, end):
        here, head = tiles[unit // heads], unit % heads
        first = here[TILE_TASK] * heads + head
        last = first + here[TILE_PARTS] * heads
        for lane in range(here[TILE_QUERIES]):
            query = here[TILE_FIRST] + lane
            token, column = here[TILE_ROW] + query // group, (head * group + query % group) * head_dim
            highest = LOWEST
            for part in range(first, last, heads):
                highest = max(highest, parts[part, lane])
            total = np.float32(0)
            for part in range(first, last, heads):
                total += exp(parts[part, lane] - highest) * parts[part, LANES + lane]
            result = out[token, column : column + head_dim]
            result[:] = np.float32(0)
            for part in range(first, last, heads):
                weight = exp(parts[part, lane] - highest) / total
                first_value = 2 * LANES + size * lane
                values = parts[part, first_value : first_value + head_dim]
                for d in range(head_dim):
                    result[d] += weight * values[d]


@njit
def expect(address, stride, count):
    """Ask for so many lines: one token's are each in another, and what stores them waits for one after the other."""
    for i in range(count):
        prefetch(address + stride * i)


@njit
def in_line(positions, rows, token, count, end):
    """Whether `count` tokens from one on, before `end`, are of one sequence, at positions that follow each other."""
    last = token + count - 1
    return last < end and rows[last] == rows[token] and positions[last] - positions[token] == count - 1


@njit
def _store_together(keys, values, token, heads, head_dim, key, value, size, stride):
    """WIDTH tokens of float32 from one on, at positions that follow each other in a strip.

    `key`, `value`, by address: the places of the first, in a record of `size` bytes a head; values are at a stride.
    """
    for head in range(heads):
        column = head * head_dim
        first = keys.ctypes.data + 4 * (token * keys.shape[1] + column)
        done = lay_together(FLOAT32, first, 4 * keys.shape[1], head_dim, key + size * head, 4 * STRIP)
        for i in range(WIDTH):
            for d in range(done, head_dim):
                float32_1d_at(key + size * head + 4 * STRIP * d, WIDTH)[i] = keys[token + i, column + d]
            there = values.ctypes.data + 4 * ((token + i) * values.shape[1] + column)
            widen_to(np.float32(0), there, value + size * head + stride * i, head_dim)


@njit
def store(like, keys, values, positions, rows, caches, layer, heads, head_dim, begin, end):
    """Keys and values (T, Hkv * Dh) of the tokens `begin` to `end` to their positions in the caches.

    `rows` (T,) names the row of `caches` of each token.
    """
    width = size_of(like)
    size, columns = width * record_length(head_dim), padded(head_dim)
    token = begin
    while token < end:
        block, place = positions[token] // BLOCK, positions[token] % BLOCK
        records = caches[rows[token], layer] + size * block * heads
        key = records + width * (place // STRIP * STRIP * head_dim + place % STRIP)
        value = records + width * (BLOCK * head_dim + place * columns)
        fits = width == 4 and place % STRIP + WIDTH <= STRIP
        if fits and in_line(positions, rows, token, WIDTH, end):
            _store_together(keys, values, token, heads, head_dim, key, value, size, 4 * columns)
            token += WIDTH
            continue
        for head in range(heads if end - begin == 1 else 0):
            expect(key + size * head, width * STRIP, head_dim)
            expect(value + size * head, CACHE_LINE, -(-width * head_dim // CACHE_LINE))
        for head in range(heads):
            for d in range(head_dim):
                narrow_at(like, keys[token, head * head_dim + d], key + size * head + width * STRIP * d)
                narrow_at(like, values[token, head * head_dim + d], value + size * head + width * d)
        token += 1


@njit
def _attention(like, operands, begin, end):
    attention(
        like,
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


@njit
def _store(like, operands, begin, end):
    keys, values = float32_2d(operands, 0), float32_2d(operands, 3)
    positions, rows, caches = int64_1d(operands, 6), int64_1d(operands, 8), int64_2d(operands, 10)
    store(like, keys, values, positions, rows, caches, operands[13], operands[14], operands[15], begin, end)


@operation
def combine_operation(operands, begin, end):
    """tiles (3), heads, head_dim (1 each), parts (3), out (3)."""
    tiles, parts, out = int64_2d(operands, 0), float32_2d(operands, 5), float32_2d(operands, 8)
    combine(tiles, operands[3], operands[4], parts, out, begin, end)


@operation
def attention_float32_operation(operands, begin, end):
    """q (3), positions (2), tasks (3), caches (3), layer, heads, head_dim, scale (1 each), parts (3)."""
    _attention(FLOAT32, operands, begin, end)


@operation
def attention_bfloat16_operation(operands, begin, end):
    """The same, of a cache in bfloat16."""
    _attention(BFLOAT16, operands, begin, end)


@operation
def attention_float16_operation(operands, begin, end):
    """The same, of a cache in float16."""
    _attention(FLOAT16, operands, begin, end)


@operation
def store_float32_operation(operands, begin, end):
    """keys (3), values (3), positions (2), rows (2), caches (3), layer, heads, head_dim (1 each)."""
    _store(FLOAT32, operands, begin, end)


@operation
def store_bfloat16_operation(operands, begin, end):
    """The same, in bfloat16."""
    _store(BFLOAT16, operands, begin, end)


@operation
def store_float16_operation(operands, begin, end):
    """The same, in float16."""
    _store(FLOAT16, operands, begin, end)
