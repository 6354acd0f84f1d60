"""Keys and values to a KV cache of int8, whose layout `attention_int8` tells.

In a prompt 16 tokens go together where their positions share blocks: a block of keys is theirs, rounded and turned,
and four positions of values are woven into each line.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from tinylm.kernels.attention import expect, in_line
from tinylm.kernels.attention_int8 import (
    LN_2,
    groups_of,
    key_columns,
    key_scales_at,
    record_bytes,
    value_rows,
    value_scales_at,
    values_at,
)
from tinylm.kernels.dot import COLUMNS, ROWS
from tinylm.kernels.exponential import exp
from tinylm.kernels.hadamard import GROUP, largest_of_rotated, rotate, round_group
from tinylm.kernels.jit import carray, intrinsic, njit, operation, types
from tinylm.kernels.lay import make_lay
from tinylm.kernels.matmul_integers import largest_of
from tinylm.kernels.narrow_floats import FLOAT32
from tinylm.kernels.operands import float32_1d_at, float32_2d, int64_1d, int64_2d
from tinylm.kernels.simd import (
    INT8,
    float_bits,
    float_of_int32_bits,
    memory,
    nearest_int32,
    pointer,
    scratch,
    to_float32,
)
from tinylm.kernels.tile_attention import BLOCK
from tinylm.kernels.vectors import at, load, shuffle

_lay_rows = make_lay(ROWS)

LOG_1, LOG_2, LOG_3, LOG_4 = (np.float32(c) for c in (1.43863803, -0.67774327, 0.32187971, -0.0828607))
"""log2(1 + f) of f in [0, 1], by least squares."""

LEAST = np.float32(2.0**-60)
"""The smallest scale of values: its inverse times a byte is still a number."""

STEP = np.float32(1 / 127)
"""The scale of numbers whose largest is 1."""


@njit
def _largest(numbers):
    """The largest absolute value; NaN where there is one, or an infinity."""
    size = largest_of(numbers)
    return size + np.float32(0) * size


@njit
def inverse_of(scale):
    """What a number is multiplied by to be rounded; 0 for no scale, or none that is a number."""
    return np.float32(1) / scale if scale > 0 else np.float32(0)


@njit
def _round(numbers, scale, out):
    """Numbers (n,) over their scale, as int8."""
    inverse = inverse_of(scale)
    for i in range(len(numbers)):
        out[i] = np.int8(nearest_int32(numbers[i] * inverse))


@njit
def log2(x):
    """log2 of a positive float32, to 2e-4: any number near it would do that is the same for all who use it."""
    bits = np.int32(float_bits(x))
    exponent = np.float32((bits >> np.int32(23)) - np.int32(127))
    f = float_of_int32_bits((bits & np.int32(0x7FFFFF)) | np.int32(0x3F800000)) - np.float32(1)
    return exponent + f * (LOG_1 + f * (LOG_2 + f * (LOG_3 + f * LOG_4)))


@njit
def key_scale(largest):
    """The scale of a group of keys as bfloat16, rounded up."""
    bits = (np.int64(float_bits(largest * STEP)) + 0xFFFF) >> 16
    return np.uint16(0x7FC0 if np.isnan(largest) else bits)


@njit
def value_scale(largest):
    """log2 of the scale of a value."""
    return largest if np.isnan(largest) else log2(max(largest * STEP, LEAST))


@njit
def _rotate_head(numbers, head_dim):
    """Whole groups of a head, at an address, in place; doing so twice changes nothing."""
    for group in range(head_dim // GROUP):
        rotate(numbers + 4 * GROUP * group, numbers + 4 * GROUP * group)


@njit
def _store_key(key, rounded, record, place):
    """A rotated key (Dh,) to its place in a record; `rounded` is room for it as int8, padded with zeros."""
    head_dim = key.shape[0]
    columns, groups = key_columns(head_dim), groups_of(head_dim)
    fours = carray(memory(record), (BLOCK // ROWS, columns // COLUMNS, ROWS), np.int32)
    scales = carray(memory(record + key_scales_at(head_dim)), (BLOCK // ROWS, groups, ROWS), np.uint16)
    part, line = place // ROWS, place % ROWS
    for group in range(groups):
        here = slice(group * GROUP, min(head_dim, (group + 1) * GROUP))
        largest = _largest(key[here])
        scales[part, group, line] = key_scale(largest)
        _round(key[here], to_float32(scales[part, group, line]), rounded[here])
    rounded_fours = carray(memory(rounded.ctypes.data), (columns // COLUMNS,), np.int32)
    for step in range(columns // COLUMNS):
        fours[part, step, line] = rounded_fours[step]


@njit
def _store_value(value, rounded, record, place):
    """A rotated value (Dh,) to its place in a record; `rounded` as above."""
    head_dim = value.shape[0]
    largest = _largest(value)
    logarithm = value_scale(largest)
    float32_1d_at(record + value_scales_at(head_dim), BLOCK)[place] = logarithm
    _round(value, exp(logarithm * LN_2), rounded)
    first = record + values_at(head_dim) + place // COLUMNS * ROWS * COLUMNS + place % COLUMNS
    for d in range(head_dim):
        there = first + d // ROWS * ROWS * BLOCK + d % ROWS * COLUMNS
        carray(memory(there), (1,), np.int8)[0] = rounded[d]


@intrinsic
def weave(typingctx: Any, rows: Any, stride: Any, out: Any) -> Any:
    """Four rows of 16 bytes, at a stride, column by column to 64 bytes; by address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, stride, out = arguments
        kind = ir.VectorType(INT8, ROWS)
        held = [load(builder, at(builder, rows, (stride, i)), kind, 1) for i in range(COLUMNS)]
        both = [*range(2 * ROWS)]
        first, second = shuffle(builder, held[0], held[1], both), shuffle(builder, held[2], held[3], both)
        order = [ROWS * row + column for column in range(ROWS) for row in range(COLUMNS)]
        woven = shuffle(builder, first, second, order)
        builder.store(woven, pointer(builder, out, woven.type), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@njit
def _round_keys(keys, stride, record, place, head_dim, room, rounded):
    """ROWS keys, whole groups, at a stride, to a block of a record; all by address. `room`: for a group, `rounded`: for
    ROWS keys.
    """
    groups, part = head_dim // GROUP, place // ROWS
    scales = carray(memory(record + key_scales_at(head_dim)), (BLOCK // ROWS, groups, ROWS), np.uint16)
    for line in range(ROWS):
        for group in range(groups):
            size = largest_of_rotated(keys + stride * line + 4 * GROUP * group, room)
            scales[part, group, line] = key_scale(size + np.float32(0) * size)
            scale = to_float32(scales[part, group, line])
            round_group(room, inverse_of(scale), rounded + head_dim * line + GROUP * group)
    out, row_bytes = record + head_dim * ROWS * part, COLUMNS * ROWS
    _lay_rows(FLOAT32, rounded, head_dim, head_dim // COLUMNS, out, row_bytes)


@njit
def _round_values(values, stride, record, place, head_dim, room, rounded):
    """The same of values; `room`: for a head."""
    scales = float32_1d_at(record + value_scales_at(head_dim), BLOCK)
    for line in range(ROWS):
        most = np.int32(0)
        for group in range(0, head_dim, GROUP):
            size = largest_of_rotated(values + stride * line + 4 * group, room + 4 * group)
            most = max(most, np.int32(float_bits(size)))
        largest = float_of_int32_bits(most)
        scales[place + line] = value_scale(largest + np.float32(0) * largest)
        inverse = inverse_of(exp(scales[place + line] * LN_2))
        for group in range(0, head_dim, GROUP):
            round_group(room + 4 * group, inverse, rounded + head_dim * line + group)
    for d in range(0, head_dim, ROWS):
        for line in range(0, ROWS, COLUMNS):
            there = record + values_at(head_dim) + BLOCK * d + ROWS * (place + line)
            weave(rounded + head_dim * line + d, head_dim, there)


@njit
def store(keys, values, positions, rows, caches, layer, heads, head_dim, begin, end):
    """Keys and values (T, Hkv * Dh) of the tokens `begin` to `end` to their positions in the caches."""
    numbers = float32_1d_at(scratch(4 * head_dim), head_dim)
    columns = key_columns(head_dim)
    padded_row = carray(memory(scratch(columns)), (columns,), np.int8)
    padded_row[:] = np.int8(0)
    rounded = padded_row[:head_dim]
    room, many = scratch(4 * head_dim), scratch(ROWS * head_dim)
    token = begin
    while token < end:
        block, place = positions[token] // BLOCK, positions[token] % BLOCK
        records = caches[rows[token], layer] + record_bytes(head_dim) * block * heads
        fits = head_dim % GROUP == 0 and place % ROWS == 0
        if fits and in_line(positions, rows, token, ROWS, end):
            for head in range(heads):
                record = records + record_bytes(head_dim) * head
                first = 4 * (keys.shape[1] * token + head_dim * head)
                stride = 4 * keys.shape[1]
                _round_keys(keys.ctypes.data + first, stride, record, place, head_dim, room, many)
                _round_values(values.ctypes.data + first, stride, record, place, head_dim, room, many)
            token += ROWS
            continue
        for head in range(heads if end - begin == 1 else 0):
            record = records + record_bytes(head_dim) * head
            expect(record + place // ROWS * ROWS * columns, ROWS * COLUMNS, columns // COLUMNS)
            there = record + values_at(head_dim) + place // COLUMNS * ROWS * COLUMNS
            expect(there, ROWS * BLOCK, value_rows(head_dim) // ROWS)
            groups = groups_of(columns)
            expect(record + key_scales_at(head_dim) + place // ROWS * 2 * ROWS * groups, 2 * ROWS, groups)
            expect(record + value_scales_at(head_dim) + 4 * place, 0, 1)
        for head in range(heads):
            record = records + record_bytes(head_dim) * head
            for d in range(head_dim):
                numbers[d] = keys[token, head * head_dim + d]
            _rotate_head(numbers.ctypes.data, head_dim)
            _store_key(numbers, rounded, record, place)
            for d in range(head_dim):
                numbers[d] = values[token, head * head_dim + d]
            _rotate_head(numbers.ctypes.data, head_dim)
            _store_value(numbers, rounded, record, place)
        token += 1


@operation
def store_int8_operation(operands, begin, end):
    """keys (3), values (3), positions (2), rows (2), caches (3), layer, heads, head_dim (1 each)."""
    keys, values = float32_2d(operands, 0), float32_2d(operands, 3)
    positions, rows, caches = int64_1d(operands, 6), int64_1d(operands, 8), int64_2d(operands, 10)
    store(keys, values, positions, rows, caches, operands[13], operands[14], operands[15], begin, end)
