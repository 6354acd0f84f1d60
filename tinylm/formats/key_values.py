"""How the keys and values of a text are stored, for each name of `kv_dtype`.

A format says how many bytes a record has (one key/value head at BLOCK positions), names the operations that write
and read them, and can do both itself in NumPy, for the reference. The cache and the executor never look inside.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tinylm.errors import ParameterError
from tinylm.formats.key_values_int8 import Int8KeyValues
from tinylm.formats.table import any_quantized
from tinylm.kernels import attention
from tinylm.kernels.attention import padded, record_length
from tinylm.kernels.jit import Operation
from tinylm.kernels.narrow_floats import BFLOAT16, FLOAT16, FLOAT32, narrow_reference, widen_reference
from tinylm.kernels.tile_attention import BLOCK, STRIP

Floats = NDArray[np.float32]
Records = NDArray[np.uint8]
"""(blocks, Hkv, record_bytes)."""


class KeyValueFormat(Protocol):
    """A number format of the cache."""

    name: str

    store: Operation
    """Keys and values of new tokens into the records; a unit is one token."""

    attention: Operation
    """A task of attention; a unit is one task of one key/value head."""

    def record_bytes(self, head_dim: int) -> int:
        """Bytes of a record; a multiple of 64."""

    def write(self, records: Records, positions: NDArray[np.int64], keys: Floats, values: Floats) -> None:
        """What `store` does: keys and values (T, Hkv, Dh) to their positions."""

    def read(self, records: Records, head_dim: int) -> tuple[Floats, Floats]:
        """All keys and values (positions, Hkv, Dh), as they were rounded."""


class FloatKeyValues:
    """Numbers of 4 or 2 bytes: keys in strips (BLOCK / STRIP, Dh, STRIP), then values (BLOCK, padded Dh)."""

    def __init__(self, name: str, like: Any, store: Operation, attention: Operation) -> None:
        self.name, self.store, self.attention = name, store, attention
        self._like = like

    def record_bytes(self, head_dim: int) -> int:
        """Bytes of a record."""
        return int(self._like.itemsize * record_length(head_dim))

    def _parts(self, records: Records, head_dim: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Views of the keys (blocks, Hkv, strips, Dh, STRIP) and the values (blocks, Hkv, BLOCK, padded Dh)."""
        numbers = records.view(self._like.dtype)
        split = BLOCK * head_dim
        shape = numbers.shape[:2]
        keys = numbers[..., :split].reshape(*shape, BLOCK // STRIP, head_dim, STRIP)
        return keys, numbers[..., split:].reshape(*shape, BLOCK, padded(head_dim))

    def write(self, records: Records, positions: NDArray[np.int64], keys: Floats, values: Floats) -> None:
        """Keys and values (T, Hkv, Dh) to their positions."""
        key_part, value_part = self._parts(records, keys.shape[-1])
        block, place = positions // BLOCK, positions % BLOCK
        key_part[block, :, place // STRIP, :, place % STRIP] = narrow_reference(self._like, keys)
        value_part[block, :, place, : keys.shape[-1]] = narrow_reference(self._like, values)

    def read(self, records: Records, head_dim: int) -> tuple[Floats, Floats]:
        """All keys and values (positions, Hkv, Dh)."""
        key_part, value_part = self._parts(records, head_dim)
        heads = records.shape[1]
        keys = key_part.transpose(0, 2, 4, 1, 3).reshape(-1, heads, head_dim)
        values = value_part[..., :head_dim].transpose(0, 2, 1, 3).reshape(-1, heads, head_dim)
        return widen_reference(self._like, keys), widen_reference(self._like, values)


_FORMATS: tuple[KeyValueFormat, ...] = (
    FloatKeyValues(
        "float32", FLOAT32, attention.store_float32_operation, attention.attention_float32_operation
    ),
    FloatKeyValues(
        "bfloat16", BFLOAT16, attention.store_bfloat16_operation, attention.attention_bfloat16_operation
    ),
    FloatKeyValues(
        "float16", FLOAT16, attention.store_float16_operation, attention.attention_float16_operation
    ),
    Int8KeyValues(),
)

KV_DTYPES = tuple(one.name for one in _FORMATS)


def automatic(matrices: Iterable[str]) -> str:
    """The format that is taken unless one is asked for, beside weights of these formats.

    A quarter of the memory where the weights are rounded anyway; weights as published are computed exactly.
    """
    return "int8" if any_quantized(matrices) else "float32"


def key_value_format(name: str) -> KeyValueFormat:
    """The format of a name. Raises ParameterError."""
    for one in _FORMATS:
        if one.name == name:
            return one
    raise ParameterError(f"kv_dtype {name!r}: expected one of {', '.join(KV_DTYPES)}")


def position_bytes(name: str, layers: int, key_value_heads: int, head_dim: int) -> float:
    """Bytes of the keys and values of one position, in all layers."""
    return layers * key_value_heads * key_value_format(name).record_bytes(head_dim) / BLOCK
