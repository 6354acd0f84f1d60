"""The memory of a text: the keys and values of its positions, for every layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinylm.kernels.attention import FIRST_LAYER, PADDING

GROWTH = 64
"""Capacities are multiples of this, so that an answer does not move its cache at every token."""


class KeyValueCache:
    """Keys and values of one sequence, (Hkv, capacity + PADDING, Dh) float32 for each layer.

    It grows to what is asked for, layer by layer, so that only one layer is held twice meanwhile.
    """

    def __init__(self, layers: int, key_value_heads: int, head_dim: int) -> None:
        self.capacity = 0
        self._shape = (key_value_heads, head_dim)
        self.keys = [self._room(0) for _ in range(layers)]
        self.values = [self._room(0) for _ in range(layers)]
        self._row: list[int] = []

    def _room(self, capacity: int) -> NDArray[np.float32]:
        heads, head_dim = self._shape
        # zeros, not empty: the tiles read past the last position, and what they read there must be numbers
        return np.zeros((heads, capacity + PADDING, head_dim), np.float32)

    def reserve(self, capacity: int, used: int) -> None:
        """Make room for `capacity` positions; the first `used` keep what they hold.

        Whatever interrupts it, nothing is lost: the next call lays out anew what differs in length by then.
        """
        if capacity <= self.capacity:
            return
        capacity = -(-capacity // GROWTH) * GROWTH
        self.capacity = 0
        self._row = []
        for arrays in (self.keys, self.values):
            for layer, old in enumerate(arrays):
                new = self._room(capacity)
                new[:, :used] = old[:, :used]
                arrays[layer] = new
        self.capacity = capacity

    def copy_from(self, other: KeyValueCache, used: int) -> None:
        """Take over the first `used` positions of another cache of the same model."""
        self.reserve(used, 0)
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for layer, array in enumerate(theirs):
                mine[layer][:, :used] = array[:, :used]

    def row(self) -> list[int]:
        """The row of `caches` that the attention kernels read: capacity, then addresses layer by layer."""
        if not self._row:
            row = [0] * (FIRST_LAYER + 2 * len(self.keys))
            row[0] = self.capacity
            row[FIRST_LAYER::2] = [array.ctypes.data for array in self.keys]
            row[FIRST_LAYER + 1 :: 2] = [array.ctypes.data for array in self.values]
            self._row = row
        return self._row

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in (*self.keys, *self.values))
