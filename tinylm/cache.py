"""The memory of a text: the keys and values of its positions, for every layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinylm.formats.key_values import Floats, KeyValueFormat, Records, key_value_format
from tinylm.kernels.operands import aligned
from tinylm.kernels.tile_attention import BLOCK

SPARE = 64
"""Bytes behind the last record, which the tiles may read."""


class KeyValueCache:
    """Keys and values of one sequence: records (blocks, Hkv, bytes) for each layer, in one of KV_DTYPES.

    A block is BLOCK positions. The cache grows to what is asked for, layer by layer, so that only one layer is held
    twice meanwhile.
    """

    def __init__(
        self, layers: int, key_value_heads: int, head_dim: int, kv_format: KeyValueFormat | None = None
    ) -> None:
        self.format = kv_format or key_value_format("float32")
        self.capacity = 0
        self._heads, self._head_dim = key_value_heads, head_dim
        self.records = [self._room(0) for _ in range(layers)]
        self._row: list[int] = []

    def _room(self, blocks: int) -> Records:
        shape = (blocks, self._heads, self.format.record_bytes(self._head_dim))
        size = int(np.prod(shape))
        # zeros, not empty: the tiles read past the last position, and what they read there must be numbers
        return aligned((size + SPARE,), np.uint8)[:size].reshape(shape)

    def reserve(self, capacity: int, used: int) -> None:
        """Make room for `capacity` positions; the first `used` keep what they hold.

        Whatever interrupts it, nothing is lost: the next call lays out anew what differs in length by then.
        """
        if capacity <= self.capacity:
            return
        blocks, kept = -(-capacity // BLOCK), -(-used // BLOCK)
        self.capacity = 0
        self._row = []
        for layer, old in enumerate(self.records):
            new = self._room(blocks)
            new[:kept] = old[:kept]
            self.records[layer] = new
        self.capacity = blocks * BLOCK

    def copy_from(self, other: KeyValueCache, used: int) -> None:
        """Take over the first `used` positions of another cache of the same model."""
        self.reserve(used, 0)
        blocks = -(-used // BLOCK)
        for mine, theirs in zip(self.records, other.records, strict=True):
            mine[:blocks] = theirs[:blocks]

    def write(self, layer: int, positions: NDArray[np.int64], keys: Floats, values: Floats) -> None:
        """Store keys and values (T, Hkv, Dh) at their positions, in NumPy."""
        self.format.write(self.records[layer], positions, keys, values)

    def read(self, layer: int, length: int) -> tuple[Floats, Floats]:
        """The keys and values (length, Hkv, Dh) of the first positions, as they were rounded."""
        keys, values = self.format.read(self.records[layer], self._head_dim)
        return keys[:length], values[:length]

    def row(self) -> list[int]:
        """The row of `caches` that the attention kernels read: addresses layer by layer."""
        if not self._row:
            self._row = [records.ctypes.data for records in self.records]
        return self._row

    def room_bytes(self, length: int) -> int:
        """Bytes that a cache of these shapes holds with room for so many positions."""
        blocks = -(-length // BLOCK)
        return len(self.records) * blocks * self._heads * self.format.record_bytes(self._head_dim)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(records.nbytes for records in self.records)
