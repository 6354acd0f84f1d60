"""Attention over a KV cache of int8: scores and weighted sums by integer products, as `matmul_int8.py` multiplies.

A record, one key/value head at BLOCK positions, is two matrices as the weights of a layer would be stored. Keys:
positions are rows, a head is columns, (BLOCK / 16, Dh / 4, 16, 4) int8, with a scale (bfloat16) for each position and
group of 64 columns. Values: a head is rows, positions are columns, (value rows / 16, BLOCK / 4, 16, 4) int8, with a
scale (float32) for each position, which goes into the weight that meets it. Whole groups of 64 of a head are rotated
(`hadamard`) before they are rounded: queries as their keys, which leaves the scores as they were; and the weighted sum
of rotated values is rotated back. Queries and weights are rounded to a byte too, with a scale for 64 of them (Zhang et
al. 2024, arXiv:2410.02367, do so with queries and keys, smoothed in another way).
"""

import numpy as np

from tinylm.kernels.attention import (
    BEGIN,
    END,
    FEW,
    FIRST,
    QUERIES_HERE,
    ROW,
    SEQUENCE,
    padded,
)
from tinylm.kernels.dot import COLUMNS, DOT, ROWS
from tinylm.kernels.hadamard import GROUP, rotate
from tinylm.kernels.jit import carray, njit, operation, plain
from tinylm.kernels.operands import float32_1d_at, float32_2d, float32_2d_at, int64_1d, int64_2d
from tinylm.kernels.packed_rows import pack_row, pack_weights, packed_bytes
from tinylm.kernels.simd import float_bits, float_from_bits, memory, nearest_int32, scratch, to_float32
from tinylm.kernels.softmax import LOWEST, softmax_row
from tinylm.kernels.tile import LANES
from tinylm.kernels.tile_attention import BLOCK
from tinylm.kernels.tile_integers import make_tile

BLOCKS = 2 if DOT.lanes == 16 else 1
"""Blocks of 16 rows that a tile takes."""

TOKENS = (8, 4, 1) if DOT.lanes == 16 else (4, 2, 1)
"""Queries that tiles take at a time."""

_eight, _four, _one = (make_tile(tokens, BLOCKS, 8) for tokens in TOKENS)

ONE_AS_BFLOAT16 = 0x3F80

STEP = np.float32(1 / 127)
"""The scale of numbers whose largest is 1."""


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


@njit
def _largest(numbers):
    """The largest absolute value; NaN where there is one, or an infinity."""
    largest, nothing = np.float32(0), np.float32(0)
    for number in numbers:
        largest = max(largest, abs(number))
        nothing += np.float32(0) * number
    return largest + nothing


@njit
def _rotate_head(numbers, head_dim):
    """Whole groups of a head, at an address, in place; doing so twice changes nothing."""
    for group in range(head_dim // GROUP):
        rotate(numbers + 4 * GROUP * group, numbers + 4 * GROUP * group)


@njit
def _store_key(key, record, place):
    """A rotated key (Dh,) to its place in a record."""
    head_dim = key.shape[0]
    columns, groups = key_columns(head_dim), groups_of(head_dim)
    numbers = carray(memory(record), (BLOCK // ROWS, columns // COLUMNS, ROWS, COLUMNS), np.int8)
    scales = carray(memory(record + key_scales_at(head_dim)), (BLOCK // ROWS, groups, ROWS), np.uint16)
    part, line = place // ROWS, place % ROWS
    for group in range(groups):
        first, last = group * GROUP, min(head_dim, (group + 1) * GROUP)
        largest = _largest(key[first:last])
        bits = (np.int64(float_bits(largest * STEP)) + 0xFFFF) >> 16  # rounded up
        scales[part, group, line] = np.uint16(0x7FC0 if np.isnan(largest) else bits)
        scale = to_float32(scales[part, group, line])
        inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
        for k in range(first, last):
            numbers[part, k // COLUMNS, line, k % COLUMNS] = np.int8(nearest_int32(key[k] * inverse))


@njit
def _store_value(value, record, place):
    """A rotated value (Dh,) to its place in a record."""
    head_dim = value.shape[0]
    shape = (value_rows(head_dim) // ROWS, BLOCK // COLUMNS, ROWS, COLUMNS)
    numbers = carray(memory(record + values_at(head_dim)), shape, np.int8)
    scale = _largest(value) * STEP
    float32_1d_at(record + value_scales_at(head_dim), BLOCK)[place] = scale
    inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
    for d in range(head_dim):
        rounded = np.int8(nearest_int32(value[d] * inverse))
        numbers[d // ROWS, place // COLUMNS, d % ROWS, place % COLUMNS] = rounded


@njit
def store(keys, values, positions, rows, caches, layer, heads, head_dim, begin, end):
    """Keys and values (T, Hkv * Dh) of the tokens `begin` to `end` to their positions in the caches."""
    numbers = float32_1d_at(scratch(4 * head_dim), head_dim)
    for token in range(begin, end):
        block, place = positions[token] // BLOCK, positions[token] % BLOCK
        for head in range(heads):
            record = caches[rows[token], layer] + record_bytes(head_dim) * (block * heads + head)
            for d in range(head_dim):
                numbers[d] = keys[token, head * head_dim + d]
            _rotate_head(numbers.ctypes.data, head_dim)
            _store_key(numbers, record, place)
            for d in range(head_dim):
                numbers[d] = values[token, head * head_dim + d]
            _rotate_head(numbers.ctypes.data, head_dim)
            _store_value(numbers, record, place)


@njit
def _multiply(packed, size, tokens, left, columns, scales, scale_bytes, rows, out, out_stride):
    """Packed tokens (of `size` numbers) times `rows` rows of int8, added to out (tokens, ...): all by address.

    `columns` numbers of a token count: whole steps of four. Tokens are rounded up to whole tiles, and rows to whole
    blocks.
    """
    whole, tail = columns // GROUP, columns % GROUP // COLUMNS
    stride, block_bytes = packed_bytes(size), ROWS * columns
    token = 0
    while token < tokens:
        x = packed + stride * token
        factors = x + size
        sums = factors + 4 * groups_of(size)
        rest = tokens - token
        for row in range(0, rows, ROWS * BLOCKS):
            here, scale = left + row // ROWS * block_bytes, scales + row // ROWS * scale_bytes
            target = out + out_stride * token + 4 * row
            if rest > TOKENS[1]:
                _eight(whole, tail, here, block_bytes, x, stride, scale, scale_bytes,
                       factors, stride, sums, stride, target, out_stride)  # fmt: skip
            elif rest > 1:
                _four(whole, tail, here, block_bytes, x, stride, scale, scale_bytes,
                      factors, stride, sums, stride, target, out_stride)  # fmt: skip
            else:
                _one(whole, tail, here, block_bytes, x, stride, scale, scale_bytes,
                     factors, stride, sums, stride, target, out_stride)  # fmt: skip
        token += TOKENS[0] if rest > TOKENS[1] else TOKENS[1] if rest > 1 else 1


@njit
def _attend(records, stride, task, head_dim, packed, last, highest, total, sums):
    """A task: packed queries, maxima and sums (LANES,), weighted values (LANES, value rows)."""
    columns, queries = key_columns(head_dim), task[QUERIES_HERE]
    weight_bytes = packed_bytes(BLOCK)
    scores, weights = scratch(4 * LANES * BLOCK), scratch(LANES * weight_bytes)
    scores_here = float32_1d_at(scores, queries * BLOCK)
    ones = carray(memory(scratch(4 * ROWS)), (2 * ROWS,), np.uint16)
    ones[:] = np.uint16(ONE_AS_BFLOAT16)
    shrink = float32_1d_at(scratch(4), 1)
    for position in range(task[BEGIN], task[END], BLOCK):
        rows = min(BLOCK, task[END] - position)
        record = records + stride * (position // BLOCK)
        scales, factors = record + key_scales_at(head_dim), record + value_scales_at(head_dim)
        scores_here[:] = np.float32(0)
        _multiply(packed, padded(head_dim), queries, record, columns, scales,
                  2 * ROWS * groups_of(head_dim), rows, scores, 4 * BLOCK)  # fmt: skip
        for query in range(queries):
            row, visible = scores + 4 * BLOCK * query, min(rows, last[query] + 1 - position)
            place = 4 * query
            softmax_row(
                row, visible, highest.ctypes.data + place, total.ctypes.data + place, shrink.ctypes.data
            )
            pack_weights(row, weights + weight_bytes * query, BLOCK, factors, visible)
            for d in range(sums.shape[1]):
                sums[query, d] *= shrink[0]
        _multiply(weights, BLOCK, queries, record + values_at(head_dim), BLOCK, ones.ctypes.data, 0,
                  sums.shape[1], sums.ctypes.data, 4 * sums.shape[1])  # fmt: skip


@njit
def attention(q, positions, tasks, caches, layer, heads, head_dim, scale, parts, begin, end):
    """As `attention.attention`, of a cache in int8."""
    group = q.shape[1] // (heads * head_dim)
    size, columns = record_bytes(head_dim), padded(head_dim)
    row = float32_1d_at(scratch(4 * columns), columns)
    packed = scratch(LANES * packed_bytes(columns))
    last = carray(memory(scratch(4 * LANES)), (LANES,), np.int32)
    width = value_rows(head_dim)
    sums = float32_2d_at(scratch(4 * LANES * width), LANES, width)
    row[:] = np.float32(0)
    for unit in range(begin, end):
        task, head, part = tasks[unit // heads], unit % heads, parts[unit]
        queries = task[QUERIES_HERE]
        few = queries <= FEW
        for lane in range(queries):
            query = task[FIRST] + lane
            token, column = task[ROW] + query // group, (head * group + query % group) * head_dim
            last[lane] = positions[token]
            for d in range(head_dim):
                row[d] = q[token, column + d] * scale
            _rotate_head(row.ctypes.data, head_dim)
            pack_row(row.ctypes.data, packed + packed_bytes(columns) * lane, columns)
            sums[lane, :] = np.float32(0)
        lanes = FEW if few else LANES
        part[:lanes] = LOWEST
        part[lanes : 2 * lanes] = np.float32(0)
        records, stride = caches[task[SEQUENCE], layer] + size * head, size * heads
        _attend(records, stride, task, head_dim, packed, last, part[:lanes], part[lanes : 2 * lanes], sums)
        for lane in range(queries):
            _rotate_head(sums.ctypes.data + 4 * width * lane, head_dim)
            for d in range(head_dim):
                part[2 * lanes + (lane * columns + d if few else d * lanes + lane)] = sums[lane, d]


@operation
def attention_int8_operation(operands, begin, end):
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
def store_int8_operation(operands, begin, end):
    """keys (3), values (3), positions (2), rows (2), caches (3), layer, heads, head_dim (1 each)."""
    keys, values = float32_2d(operands, 0), float32_2d(operands, 3)
    positions, rows, caches = int64_1d(operands, 6), int64_1d(operands, 8), int64_2d(operands, 10)
    store(keys, values, positions, rows, caches, operands[13], operands[14], operands[15], begin, end)
