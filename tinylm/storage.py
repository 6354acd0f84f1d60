"""Memory for the buffers of a program: those that are never needed at the same time stand in the same place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from tinylm.kernels.operands import aligned
from tinylm.kernels.simd import CACHE_LINE, GUARD
from tinylm.lowering import Row
from tinylm.program import Buffer

FREE = GUARD // 4
"""float32 that stay free around a buffer."""

NOTHING: NDArray[np.float32] = np.zeros(0, np.float32)

Facts = dict[str, int]


def groups_of(waits: NDArray[np.bool_]) -> list[int]:
    """For each row the number of its group: rows that run side by side, without a wait between them."""
    return [0, *np.cumsum(waits)[:-1].tolist()]


class Storage:
    """One stretch of memory for the buffers of some rows, each in its place from its first group to its last.

    Where a buffer stands adds no wait to those that follow from what rows read and write: in a group nothing takes
    the place of another. `apart`: nowhere, from the first group to the last.
    """

    def __init__(
        self, rows: Sequence[Row], waits: NDArray[np.bool_], output: Buffer, apart: bool = False
    ) -> None:
        first: dict[Buffer, int] = {}
        last: dict[Buffer, int] = {}
        groups = groups_of(waits)
        for row, group in zip(rows, groups, strict=True):
            for buffer in (*row.reads, *row.writes):
                first.setdefault(buffer, group)
                last[buffer] = group
        last[output] = groups[-1]
        self.lives = {buffer: (first[buffer], last[buffer]) for buffer in first if buffer.width}
        self._apart = apart
        self._kinds = {buffer.rows for buffer in self.lives}
        self._room: Facts = {}
        self._begin: dict[str, int] = {}
        self._array = NOTHING

    def reserve(self, facts: Facts) -> bool:
        """Make every place large enough; True if any has moved."""
        if all(facts[kind] <= self._room.get(kind, -1) for kind in self._kinds):
            return False
        room = {kind: max(facts[kind], self._room.get(kind, 0)) for kind in self._kinds}
        self.drop()  # the old memory goes before the new comes
        begin, size = self._lay_out(room)
        self._array = aligned((size,), np.float32)
        self._begin, self._room = begin, room
        return True

    def _lay_out(self, room: Facts) -> tuple[dict[str, int], int]:
        """Where each buffer begins, and how many float32 all take: the largest first, each as low as it can be."""
        unit = CACHE_LINE // 4
        sizes = {buffer: -(-room[buffer.rows] * buffer.width // unit) * unit + FREE for buffer in self.lives}
        if self._apart:
            ends = [*accumulate(sizes.values(), initial=FREE)]
            return dict(zip((buffer.name for buffer in sizes), ends, strict=False)), ends[-1]
        taken: list[list[tuple[int, int]]] = [
            [] for _ in range(max(last for _, last in self.lives.values()) + 1)
        ]
        begin, end = {}, FREE
        for buffer in sorted(sizes, key=lambda one: -sizes[one]):
            first, last = self.lives[buffer]
            place = FREE
            for there, until in sorted({one for group in taken[first : last + 1] for one in group}):
                if there - place >= sizes[buffer]:
                    break
                place = max(place, until)
            begin[buffer.name] = place
            stretch = place, place + sizes[buffer]
            end = max(end, stretch[1])
            for group in taken[first : last + 1]:
                group.append(stretch)
        return begin, end

    def bytes_of(self, room: Facts) -> int:
        """Bytes that would be held."""
        return 4 * self._lay_out(room)[1]

    def drop(self) -> None:
        """Give the memory back; the next `reserve` moves every buffer."""
        self._room, self._begin, self._array = {}, {}, NOTHING

    def address(self, buffer: Buffer) -> int:
        """Where a buffer begins."""
        return self._array.ctypes.data + 4 * self._begin[buffer.name]

    def view(self, buffer: Buffer, rows: int) -> NDArray[np.float32]:
        """The first rows of a buffer, (rows, width)."""
        begin = self._begin[buffer.name]
        return self._array[begin : begin + rows * buffer.width].reshape(rows, buffer.width)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._array.nbytes
