"""Attention over a KV cache: softmax(q k^T / sqrt(Dh)) v, causal, grouped query heads, several sequences.

The work is cut into *tasks*: up to LANES queries of one sequence that share a key/value head, against a range
of positions. A query is a pair (token, head of the group); the queries of a task lie side by side in the
lanes of the register tile, so each key and value is read once for all of them, and softmax runs over lanes.
A task keeps a running maximum and sum (Milakov and Gimelshein 2018, arXiv:1805.02867), so its positions go by
in blocks. Long contexts of few queries are split over positions; `combine` then joins the parts. The split is
a function of the lengths alone: the result does not depend on the number of threads.
"""

import numpy as np

from tinylm.kernels.exponential import exp
from tinylm.kernels.jit import carray, njit, operation, plain
from tinylm.kernels.operands import float32_1d_at, float32_2d, float32_2d_at, int64_1d, int64_2d
from tinylm.kernels.simd import float_from_bits, memory, scratch
from tinylm.kernels.softmax import LOWEST, softmax_block
from tinylm.kernels.tile import LANES, ROWS, tile
from tinylm.kernels.tile_attention import CHUNK, QUERIES, score_rows, weigh_rows

TILE_ROWS = ROWS
PADDING = 48
"""A cache is this many positions longer than its capacity: the tiles read whole blocks, and beyond a row's end."""

BLOCK = 96
"""Positions whose scores are held at a time."""

SMALL = 2 * QUERIES
"""Up to so many queries of a sequence are tasks of few; more fill the lanes of the wide tile well enough."""

SPLIT = 4 * BLOCK
"""Positions a task, where a step has few queries."""

SEQUENCE, ROW, FIRST, QUERIES_HERE, BEGIN, END, TASK_FIELDS = range(7)
"""A task: its sequence; that sequence's first row in the step; first query and their number; positions."""

TILE_TASK, TILE_PARTS, TILE_ROW, TILE_FIRST, TILE_QUERIES, TILE_FIELDS = range(6)
"""A tile of queries: its first task and how many there are (parts); row, first query, number of queries."""

CAPACITY, FIRST_LAYER = 0, 1
"""A row of `caches`: the capacity of the sequence, then two addresses a layer, keys and values."""


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
        lanes = LANES if queries > SMALL else QUERIES
        for first in range(0, queries, lanes):
            here = min(lanes, queries - first)
            end = length - count + (first + here - 1) // group + 1
            step = SPLIT if few else end
            parts = range(0, end, step)
            tiles.append((len(tasks), len(parts), row, first, here))
            tasks += [(sequence, row, first, here, begin, min(begin + step, end)) for begin in parts]
    return np.array(tasks, np.int64).reshape(-1, TASK_FIELDS), np.array(tiles, np.int64).reshape(
        -1, TILE_FIELDS
    )


@plain
def part_size(head_dim):
    """float32 of a part: maxima and sums of each lane, then weighted values, (Dh, lanes) or (QUERIES, padded Dh)."""
    return max(LANES * (2 + head_dim + TILE_ROWS), 2 * QUERIES + QUERIES * padded(head_dim))


@plain
def padded(head_dim):
    """A head rounded up to whole registers, for tasks of few queries."""
    return -(-head_dim // CHUNK) * CHUNK


@njit
def _multiply(left, row_stride, k_stride, rows, right, K, out):
    """`rows` rows (rounded up to whole tiles) of a tile product; the left side by address, in bytes."""
    for row in range(0, rows, ROWS):
        target = out.ctypes.data + 4 * row * LANES
        tile(out, left + row * row_stride, row_stride, k_stride, right.ctypes.data, K, target)


@njit
def _attend_many(keys, values, stride, task, head_dim, packed, last, part, scores, product, shrink):
    """A task of many queries, which fill the lanes of the tile: part is (2 + Dh, LANES)."""
    highest, total, sums = part[0], part[1], part[2:]
    for position in range(task[BEGIN], task[END], BLOCK):
        rows = min(BLOCK, task[END] - position)
        here = stride * position
        _multiply(keys + here, stride, 4, rows, packed, head_dim, scores)
        softmax_block(scores, position, rows, last, highest, total, shrink)
        _multiply(values + here, 4, stride, head_dim, scores, rows, product)
        for d in range(head_dim):
            for lane in range(LANES):
                sums[d, lane] = sums[d, lane] * shrink[lane] + product[d, lane]


@njit
def _attend_few(keys, values, stride, task, size, queries, last, part, scores, shrink):
    """A task of few queries, (QUERIES, padded Dh): part is flat."""
    highest, total, sums = part[:QUERIES], part[QUERIES : 2 * QUERIES], part[2 * QUERIES :]
    for position in range(task[BEGIN], task[END], BLOCK):
        rows = min(BLOCK, task[END] - position)
        here = stride * position
        score_rows(queries.ctypes.data, keys + here, stride, rows, size, scores.ctypes.data, values + here)
        softmax_block(scores, position, rows, last, highest, total, shrink)
        weigh_rows(
            scores.ctypes.data, values + here, stride, rows, size, shrink.ctypes.data, sums.ctypes.data
        )


@njit
def attention(q, positions, tasks, caches, layer, heads, head_dim, scale, parts, begin, end):
    """Units `begin` to `end` (a unit is a task of one of `heads` key/value heads) into `parts`.

    q (T, H * Dh), already rotated; parts (units, part_size(Dh)) for `combine`; the other names as above.
    """
    group = q.shape[1] // (heads * head_dim)
    stride, size = 4 * head_dim, padded(head_dim)
    most = max(head_dim * LANES, size * QUERIES)
    packed = float32_1d_at(scratch(4 * most), most)
    scores = float32_1d_at(scratch(4 * (BLOCK + TILE_ROWS) * LANES), (BLOCK + TILE_ROWS) * LANES)
    product = float32_2d_at(scratch(4 * (head_dim + TILE_ROWS) * LANES), head_dim + TILE_ROWS, LANES)
    last, shrink = (
        carray(memory(scratch(4 * LANES)), (LANES,), np.int32),
        float32_1d_at(scratch(4 * LANES), LANES),
    )
    for unit in range(begin, end):
        task, head, part = tasks[unit // heads], unit % heads, parts[unit]
        cache = caches[task[SEQUENCE]]
        offset = stride * head * (cache[CAPACITY] + PADDING)
        keys, values = cache[FIRST_LAYER + 2 * layer] + offset, cache[FIRST_LAYER + 2 * layer + 1] + offset
        few = task[QUERIES_HERE] <= QUERIES
        lanes = QUERIES if few else LANES
        for lane in range(lanes):
            query = task[FIRST] + min(lane, task[QUERIES_HERE] - 1)
            token, column = task[ROW] + query // group, (head * group + query % group) * head_dim
            last[lane] = positions[token]
            for d in range(head_dim):
                packed[lane * size + d if few else d * lanes + lane] = q[token, column + d] * scale
        part[:lanes] = LOWEST
        part[lanes:] = np.float32(0)
        if few:
            for lane in range(lanes):
                packed[lane * size + head_dim : (lane + 1) * size] = np.float32(0)
            _attend_few(keys, values, stride, task, size, packed, last[:lanes], part, scores, shrink[:lanes])
        else:
            whole = float32_2d_at(part.ctypes.data, 2 + head_dim, LANES)
            _attend_many(keys, values, stride, task, head_dim, packed, last, whole, scores, product, shrink)


@njit
def combine(tiles, heads, head_dim, parts, out, begin, end):
    """Units `begin` to `end` (a unit is a tile of one of `heads` key/value heads): parts into out (T, H * Dh)."""
    group = out.shape[1] // (heads * head_dim)
    size = padded(head_dim)
    for unit in range(begin, end):
        here, head = tiles[unit // heads], unit % heads
        few = here[TILE_QUERIES] <= QUERIES
        lanes = QUERIES if few else LANES
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
                total += exp(parts[part, lane] - highest) * parts[part, lanes + lane]
            result = out[token, column : column + head_dim]
            result[:] = np.float32(0)
            for part in range(first, last, heads):
                weight = exp(parts[part, lane] - highest) / total
                begin_of, step = (2 * lanes + lane * size, 1) if few else (2 * lanes + lane, lanes)
                for d in range(head_dim):
                    result[d] += weight * parts[part, begin_of + d * step]


@njit
def store(keys, values, positions, rows, caches, layer, heads, head_dim, begin, end):
    """Keys and values (T, Hkv * Dh) of the tokens `begin` to `end` to their positions in the caches.

    `rows` (T,) names the row of `caches` of each token; a cache is (Hkv, capacity + PADDING, Dh).
    """
    for token in range(begin, end):
        cache = caches[rows[token]]
        length = cache[CAPACITY] + PADDING
        shape = (heads, length, head_dim)
        key_cache = carray(memory(cache[FIRST_LAYER + 2 * layer]), shape, np.float32)
        value_cache = carray(memory(cache[FIRST_LAYER + 2 * layer + 1]), shape, np.float32)
        for head in range(heads):
            for d in range(head_dim):
                key_cache[head, positions[token], d] = keys[token, head * head_dim + d]
                value_cache[head, positions[token], d] = values[token, head * head_dim + d]


@operation
def attention_operation(operands, begin, end):
    """q (3), positions (2), tasks (3), caches (3), layer, heads, head_dim, scale (1 each), parts (3)."""
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
def combine_operation(operands, begin, end):
    """tiles (3), heads, head_dim (1 each), parts (3), out (3)."""
    tiles, parts, out = int64_2d(operands, 0), float32_2d(operands, 5), float32_2d(operands, 8)
    combine(tiles, operands[3], operands[4], parts, out, begin, end)


@operation
def store_operation(operands, begin, end):
    """keys (3), values (3), positions (2), rows (2), caches (3), layer, heads, head_dim (1 each)."""
    keys, values = float32_2d(operands, 0), float32_2d(operands, 3)
    positions, rows, caches = int64_1d(operands, 6), int64_1d(operands, 8), int64_2d(operands, 10)
    store(keys, values, positions, rows, caches, operands[13], operands[14], operands[15], begin, end)
