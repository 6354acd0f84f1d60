"""int8 keys and values: a scale for each position, and of a key for each group of 64 columns; 1.05 bytes a number.

Groups of 64 are rotated before they are rounded, as those of int8 weights are, and `read` rotates them back. The
layout is that of `kernels/attention_int8.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylm.kernels.attention_amx import attention_int8_amx_operation
from tinylm.kernels.attention_int8 import (
    attention_int8_operation,
    groups_of,
    key_columns,
    key_scales_at,
    record_bytes,
    value_rows,
    value_scales_at,
    values_at,
)
from tinylm.kernels.dot import COLUMNS, ROWS
from tinylm.kernels.hadamard import GROUP, rotate_reference
from tinylm.kernels.store_int8 import LEAST, LOG_1, LOG_2, LOG_3, LOG_4, STEP, store_int8_operation
from tinylm.kernels.tile_amx import permitted
from tinylm.kernels.tile_attention import BLOCK

Floats = NDArray[np.float32]
Records = NDArray[np.uint8]


class Int8KeyValues:
    """Keys as rows of int8, values as columns."""

    name = "int8"
    store = store_int8_operation
    attention = attention_int8_amx_operation if permitted() else attention_int8_operation

    def record_bytes(self, head_dim: int) -> int:
        """Bytes of a record."""
        return int(record_bytes(head_dim))

    def _parts(self, records: Records, head_dim: int) -> tuple[NDArray[Any], ...]:
        """Views (blocks, Hkv, ...) of keys and their scales, values and theirs."""
        at = [
            0,
            key_scales_at(head_dim),
            values_at(head_dim),
            value_scales_at(head_dim),
            record_bytes(head_dim),
        ]
        shapes: list[tuple[tuple[int, ...], Any]] = [
            ((BLOCK // ROWS, key_columns(head_dim) // COLUMNS, ROWS, COLUMNS), np.int8),
            ((BLOCK // ROWS, groups_of(head_dim), ROWS), np.uint16),
            ((value_rows(head_dim) // ROWS, BLOCK // COLUMNS, ROWS, COLUMNS), np.int8),
            ((BLOCK,), np.float32),
        ]
        pieces = zip(at, at[1:], shapes, strict=False)
        return tuple(
            records[..., begin:end].view(dtype).reshape(*records.shape[:2], *shape)
            for begin, end, (shape, dtype) in pieces
        )

    def write(self, records: Records, positions: NDArray[np.int64], keys: Floats, values: Floats) -> None:
        """Keys and values (T, Hkv, Dh) to their positions."""
        head_dim = keys.shape[-1]
        keys, values = _rotate(keys), _rotate(values)
        key_part, key_scales, value_part, value_scales = self._parts(records, head_dim)
        block, place = positions // BLOCK, positions % BLOCK
        part, line = place // ROWS, place % ROWS
        for first in range(0, head_dim, GROUP):
            numbers = keys[..., first : first + GROUP]
            largest = np.abs(numbers).max(axis=-1) * STEP
            bits = ((largest.view(np.uint32).astype(np.uint64) + 0xFFFF) >> 16).astype(np.uint16)
            key_scales[block, :, part, first // GROUP, line] = bits
            rounded = _round(numbers, _widen(bits))
            for k in range(numbers.shape[-1]):
                step, column = divmod(first + k, COLUMNS)
                key_part[block, :, part, step, line, column] = rounded[..., k]
        for k in range(head_dim, key_columns(head_dim)):  # what fills the last step
            key_part[block, :, part, k // COLUMNS, line, k % COLUMNS] = 0
        scale = np.maximum(np.abs(values).max(axis=-1) * STEP, LEAST)
        value_scales[block, :, place] = logarithms = log2(scale)
        rounded = _round(values, np.exp2(logarithms))
        for d in range(head_dim):
            row = value_part[:, :, d // ROWS, :, d % ROWS]
            row[block, :, place // COLUMNS, place % COLUMNS] = rounded[..., d]

    def read(self, records: Records, head_dim: int) -> tuple[Floats, Floats]:
        """All keys and values (positions, Hkv, Dh)."""
        key_part, key_scales, value_part, value_scales = self._parts(records, head_dim)
        blocks, heads = records.shape[:2]
        keys = key_part.transpose(0, 2, 4, 1, 3, 5).reshape(blocks * BLOCK, heads, -1)[..., :head_dim]
        factors = _widen(key_scales).transpose(0, 2, 4, 1, 3).reshape(blocks * BLOCK, heads, -1)
        factors = np.repeat(factors, GROUP, axis=-1)[..., :head_dim]
        values = value_part.transpose(0, 3, 5, 1, 2, 4).reshape(blocks * BLOCK, heads, -1)[..., :head_dim]
        value_factors = np.exp2(value_scales.transpose(0, 2, 1).reshape(blocks * BLOCK, heads, 1))
        rotated = keys.astype(np.float32) * factors, values.astype(np.float32) * value_factors
        return _rotate(rotated[0]), _rotate(rotated[1])


def _rotate(numbers: Floats) -> Floats:
    """Groups of 64 of the last axis rotated; twice is not at all."""
    rotated: Floats = rotate_reference(numbers) if numbers.size else numbers
    return rotated


def _widen(bits: NDArray[np.uint16]) -> Floats:
    wide: Floats = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return wide


def log2(scale: Floats) -> Floats:
    """log2 of positive numbers as the kernel reckons it."""
    fraction, exponent = np.frexp(scale)
    f: Floats = (2 * fraction - 1).astype(np.float32)
    near = f * (LOG_1 + f * (LOG_2 + f * (LOG_3 + f * LOG_4)))
    return (exponent - 1 + near).astype(np.float32)


def _round(numbers: Floats, scale: Floats) -> NDArray[np.int8]:
    """Numbers (..., n) by the inverse of their scale (...), to nearest, ties to even."""
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    rounded: NDArray[np.int8] = np.rint(numbers * inverse[..., None]).astype(np.int8)
    return rounded
