"""The compiled executor: a program becomes a table of integers, which a team of threads walks in one call.

There are two tables of each program: for steps of one token (`matvec`) and for steps of several (`matmul`, where
a format says so of packed tokens). What depends on the step, such as the number of tokens, is written into its
places in the table before each step, if it changed. Where other programs want the cores, two more tables for one
token take turns, whose matrices may be helped (`walk`): each has memory of its own, in which no buffer takes
another's place.
"""

from __future__ import annotations

import math
import operator

import numpy as np
from numpy.typing import NDArray

from tinylm.formats.key_values import KeyValueFormat, key_value_format
from tinylm.kernels.attention import plan
from tinylm.kernels.matmul_amx_bf16 import packed_length
from tinylm.kernels.rope import rope_table
from tinylm.kernels.team import Team
from tinylm.kernels.walk import (
    AHEAD,
    AHEAD_BYTES,
    AHEAD_STRIDE,
    AWAITED,
    CHUNK,
    FIRST,
    FUNCTION,
    HELPED,
    MOST_HELPED,
    NEEDED,
    OPERANDS,
    REGIONS,
    UNITS,
)
from tinylm.lowering import Address, Live, Lowering, Operand, Row, chained, chained_by_tokens
from tinylm.program import Buffer, Program
from tinylm.step import Step
from tinylm.storage import Facts, Storage

PLACES = OPERANDS + 20
FETCHED = 512 * 1024
"""Bytes of the next weights that a thread asks for while it waits, at most."""

FIRST_SHARE = 0.8
"""How much of a weight matrix, or of the keys and values that a token attends to, the threads take in one piece each:
every piece begins at the memory's own pace."""

PIECES, MATRIX_PIECES = 4, (8, 64)
"""Pieces of an operation for each thread. Those of a matrix are a quarter of the tokens, so that they last as long,
within these limits."""


def _parts(operand: Operand) -> tuple[Operand, ...]:
    """The places that an operand takes: a buffer is an array of two dimensions."""
    if isinstance(operand, Buffer):
        return Address(operand), Live(operand.rows), operand.width
    return (operand,)


class _Table:
    """The rows as integers, and which of them depend on what."""

    def __init__(
        self,
        program: Program,
        single: bool,
        threads: int,
        kv_format: KeyValueFormat,
        helped: bool = False,
    ) -> None:
        self._program, self.helped = program, helped  # its weights last as long as the table
        rows = Lowering(program, single, kv_format).rows
        self.rows = chained(rows) if single else chained_by_tokens(rows)
        self._waits = _waits(self.rows)
        self.storage = Storage(self.rows, self._waits, program.output, apart=helped)
        # the rows that the team walks, then those that stand in chains
        self._every = [*self.rows, *(inner for row in self.rows for inner in row.chain)]
        every = np.zeros((len(self._every), PLACES), np.int64)
        self.array, self._flat, self._functions = (
            every[: len(self.rows)],
            every.reshape(-1),
            every[:, FUNCTION],
        )
        self._live: dict[Live, list[int]] = {}
        self._addresses: list[tuple[int, Buffer]] = []
        first = len(self.rows)
        for i, row in enumerate(self._every):
            self._put(i, UNITS, row.units)
            if i >= len(self.rows) and isinstance(row.units, Live):
                every[i, [FIRST, CHUNK]] = row.units.factor, row.units.divisor
            place = OPERANDS
            if row.chain:
                every[i, place : place + 3] = every[first:].ctypes.data, len(row.chain), PLACES
                first += len(row.chain)
            for operand in row.operands:
                for part in _parts(operand):
                    self._put(i, place, part)
                    place += 1
            assert place <= PLACES
        # Each live operand with its places and whether it counts units; and what stands there now.
        self._places = [
            (live, np.array(places), any(place % PLACES == UNITS for place in places))
            for live, places in self._live.items()
        ]
        self._filled: list[int | None] = []
        self._held: list[object] = []
        self._output, self.output = program.output, np.zeros((0, 0), np.float32)
        self._grain = np.array([row.grain for row in self.rows])
        self._most = np.array([row.most for row in self.rows])
        self._threads = threads
        # what reads keys and values of one token: in a row, as weights
        self._streams = np.array([single and any(b.rows == "parts" for b in row.writes) for row in self.rows])
        self._matrices = np.array([isinstance(row.units, int) and not row.chain for row in self.rows])
        self._first = np.zeros(len(self.rows), np.int64)
        self._regions = self._fetch_early(every)
        following = (0, 0, 0)
        for i, row in reversed([*enumerate(self.rows)]):
            self.array[i, [AHEAD, AHEAD_STRIDE, AHEAD_BYTES]] = following
            address, size = row.weights
            if self._matrices[i]:
                assert isinstance(row.units, int)
                # of matrices that are not waited for one by one, the last makes the threads end together
                share = FIRST_SHARE if self._waits[i] else 1
                blocks = row.units * share / (threads * row.grain)
                self._first[i] = max(int(blocks) if self._waits[i] else math.ceil(blocks), 1) * row.grain
                stride = int(self._first[i]) * (size // row.units)
                following = (address, stride, min(stride, FETCHED)) if size else following

    def _fetch_early(self, every: NDArray[np.int64]) -> NDArray[np.int64]:
        """Have the end of each group ask for what the next begins with: its rows, those in chains, their vectors."""
        regions: list[tuple[int, int]] = []
        ends = np.flatnonzero(self._waits).tolist()
        chained, counts = len(self.rows), []
        for end, last in zip([-1, *ends], ends, strict=False):
            group, begun = self.rows[end + 1 : last + 1], len(regions)
            inner = sum(len(row.chain) for row in group)
            regions += [
                (every[first:].ctypes.data, every[0].nbytes * count)
                for first, count in ((end + 1, len(group)), (chained, inner))
                if count
            ]
            chained += inner
            vectors = [vector for row in group for one in (row, *row.chain) for vector in one.vectors]
            regions += [(vector.ctypes.data, vector.nbytes) for vector in vectors]
            counts.append((end, begun, len(regions) - begun))
        array = np.array(regions, np.int64)
        for end, begun, count in counts[1:]:
            self.array[end, [NEEDED, REGIONS]] = array[begun:].ctypes.data, count
        return array

    def _put(self, row: int, place: int, operand: Operand) -> None:
        if isinstance(operand, Live):
            self._live.setdefault(operand, []).append(row * PLACES + place)
        elif isinstance(operand, Address):
            self._addresses.append((row * PLACES + place, operand.buffer))
        else:
            assert isinstance(operand, int)
            self._flat[row * PLACES + place] = operand

    def compile(self) -> None:
        """Compile, or load from the cache, every kernel of the table."""
        self._functions[:] = [row.kernel.address for row in self._every]

    def holds(self, objects: list[object]) -> bool:
        """Whether the table was filled for these very objects, which may hold other numbers since.

        It keeps them, so that nothing else can be taken for one of them.
        """
        held = self._held
        return len(held) == len(objects) and all(map(operator.is_, held, objects))

    def fill(self, facts: Facts, objects: list[object]) -> None:
        """Make it the table of a step of these facts. What interrupts it leaves nothing half filled."""
        self._held = []
        try:
            self._fill(facts)
            self.output = self.storage.view(self._output, facts["L"])
        except BaseException:
            self._filled.clear()
            self.storage.drop()
            raise
        self._held = objects

    def _fill(self, facts: Facts) -> None:
        if not self._filled:
            self.compile()
            self._filled = [None] * len(self._places)
        if self.storage.reserve(facts):
            for place, buffer in self._addresses:
                self._flat[place] = self.storage.address(buffer)
        recount = False
        for i, (live, places, counts) in enumerate(self._places):
            value = live.value(facts)
            if self._filled[i] != value:
                self._flat[places] = self._filled[i] = value
                recount = recount or counts
        if recount:
            self._share(facts["T"])

    def _share(self, tokens: int) -> None:
        """Chunks small enough that the threads end together, and how many units each wait is for."""
        units, grain = self.array[:, UNITS], self._grain
        fewest, most = MATRIX_PIECES
        pieces = self._threads * np.where(self._matrices, min(max(tokens // 4, fewest), most), PIECES)
        fair = np.maximum(np.minimum(units // pieces, self._most) // grain, 1) * grain
        ends = np.full(len(units), np.iinfo(np.int64).max)
        for eighths in range(8, 3, -1):  # of these sizes, that with which equal threads end first
            chunk = np.maximum(fair * eighths // 8 // grain, 1) * grain
            end = chunk * -(-units // (chunk * self._threads))
            self.array[:, CHUNK] = np.where(end < ends, chunk, self.array[:, CHUNK])
            ends = np.minimum(end, ends)
        first = np.where(self._streams, (units * FIRST_SHARE / self._threads).astype(np.int64), self._first)
        self.array[:, FIRST] = np.maximum(self.array[:, CHUNK], first)
        if self.helped:
            self._make_helped(units)
        starts = np.concatenate([[0], np.flatnonzero(self._waits) + 1])[:-1]
        self.array[self._waits, AWAITED] = np.add.reduceat(units, starts)

    def _make_helped(self, units: NDArray[np.int64]) -> None:
        """No more pieces of a matrix than can be helped."""
        rest = np.maximum(units - self._threads * self.array[:, FIRST], 0)
        least = -(-rest // (MOST_HELPED - self._threads) // self._grain) * self._grain
        self.array[:, CHUNK] = np.maximum(self.array[:, CHUNK], least)
        self.array[:, HELPED] = self._matrices


def _waits(rows: list[Row]) -> NDArray[np.bool_]:
    """Which rows must be done before the next may begin: only those that a later one depends on."""
    waits = np.zeros(len(rows), np.bool_)
    read: set[Buffer] = set()
    written: set[Buffer] = set()
    for i, row in enumerate(rows):
        reads, writes = set(row.reads), set(row.writes)
        if (reads | writes) & written or writes & read:
            waits[i - 1] = True
            read, written = set(), set()
        read |= reads
        written |= writes
    waits[-1] = True
    return waits


class Executor:
    """Runs a program on a team of threads. One caller at a time; the engine sees to that."""

    def __init__(self, program: Program, team: Team, kv_format: KeyValueFormat | None = None) -> None:
        self.program = program
        self.team = team
        self.kv_format = kv_format or key_value_format("float32")
        self._tables = [
            _Table(program, single, self.team.threads, self.kv_format) for single in (False, True)
        ]
        self._helped: list[_Table] = []
        self._rope = np.zeros((0, 2 * len(program.inverse_frequencies)), np.float32)

    def compile(self) -> None:
        """Compile, or load from the cache, all that a step needs."""
        for table in self._tables:
            table.compile()

    def run(self, step: Step) -> NDArray[np.float32]:
        """The logits (L, V) of the chosen tokens. They are overwritten by the next step: copy what you keep."""
        self._reserve_positions(max(step.lengths))
        single = len(step.ids) == len(step.chosen) == 1
        helping = single and self.team.helping and 2 * self.team.threads <= MOST_HELPED
        table = self._next_helped() if helping else self._tables[single]
        objects = [step.ids, self._rope, step.cache_rows()]
        if not table.holds(objects):
            if table.helped:
                self.team.make_way()
            table.fill(self._facts(step), objects)
        self.team.run(table.array, brief=single, owner=table if table.helped else None)
        return table.output

    def _next_helped(self) -> _Table:
        """The tables whose matrices are helped, in turn."""
        threads = self.team.threads
        if not self._helped:
            self._helped = [
                _Table(self.program, True, threads, self.kv_format, helped=True) for _ in range(2)
            ]
        self._helped.reverse()
        return self._helped[0]

    def bytes_of(self, tokens: int) -> int:
        """Bytes of working memory of a step of so many tokens of one sequence."""
        heads = self.program.key_value_heads
        tasks, _ = plan([0], [tokens], [tokens], self.program.heads // heads)
        room = {"T": tokens, "packed T": packed_length(tokens), "parts": len(tasks) * heads}
        return self._tables[False].storage.bytes_of({**room, "L": 1, "packed L": packed_length(1)})

    def _facts(self, step: Step) -> Facts:
        """What is known of a step: how much of everything there is, and where it lies."""
        assert all(cache.format is self.kv_format for cache in step.caches)
        return {
            "T": len(step.ids),
            "L": len(step.chosen),
            "packed T": packed_length(len(step.ids)),
            "packed L": packed_length(len(step.chosen)),
            "parts": len(step.tasks) * self.program.key_value_heads,
            "none": 0,
            "ids": step.ids.ctypes.data,
            "positions": step.positions.ctypes.data,
            "rows": step.rows.ctypes.data,
            "chosen": step.chosen.ctypes.data,
            "tasks": step.tasks.ctypes.data,
            "task count": len(step.tasks),
            "tiles": step.tiles.ctypes.data,
            "tile count": len(step.tiles),
            "caches": step.cache_rows().ctypes.data,
            "sequences": len(step.caches),
            "rope table": self._rope.ctypes.data,
            "rope length": len(self._rope),
        }

    def _reserve_positions(self, positions: int) -> None:
        if positions > len(self._rope):
            room = max(positions, min(2 * len(self._rope), positions + 4096), 256)
            self._rope = rope_table(self.program.inverse_frequencies, room, self.program.rope_scale)

    @property
    def nbytes(self) -> int:
        """Bytes of working memory."""
        return self._rope.nbytes + sum(table.storage.nbytes for table in [*self._tables, *self._helped])
