"""The team: N Python threads that walk one table of operations together, inside one call without the GIL.

Each operation's work is handed out in chunks from an atomic counter. Nobody waits for a *thread*: a thread
goes on when all *units* of an operation are done, whoever did them. So one that arrives late, or whose core
was taken away, holds nobody up unless it has a chunk in hand. Whoever waits spins for a bounded while and
then sleeps for moments, which gives its core to whom the system wants there (the one with that chunk).
"""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylm.kernels.cores import default_threads
from tinylm.kernels.jit import carray, njit, operation
from tinylm.kernels.operands import array_operands, int64_1d, int64_2d
from tinylm.kernels.simd import (
    atomic_add,
    atomic_load,
    atomic_store,
    call_operation,
    call_system,
    memory,
    prefetch,
)

FUNCTION, UNITS, CHUNK, AWAITED, AHEAD, AHEAD_BYTES, OPERANDS = range(7)
"""Places in a row of the table: address, units of work, units a chunk, units to wait for after it, what to fetch
while waiting and how much of it, operands."""

CACHE_LINE = 64
LINES_AT_A_TIME = 4


def single(address: int, units: int, chunk: int, operands: list[int]) -> NDArray[np.int64]:
    """The table of one operation alone."""
    return np.array([[address, units, chunk, units, 0, 0, *operands]], np.int64)


LINE = 16
"""int64 a counter has to itself: two cache lines (M1's are 128 bytes), so that no two counters share one."""

GENERATION, ACTIVE = 0, LINE
"""Places in the shared state: the step that is open for work, and how many threads are inside it."""

SPINS = 4000


@njit
def _wait(address, target, sleep, microseconds, ahead, ahead_bytes):
    """Until the int64 at `address` is `target`: ask for the weights that come next, spin, then sleep for moments."""
    spins, line = 0, 0
    while atomic_load(address) != target:
        if line < ahead_bytes:  # a few at a time: what is waited for may be there at any moment
            for _ in range(LINES_AT_A_TIME):
                prefetch(ahead + line)
                line += CACHE_LINE
        else:
            spins += 1
            if spins > SPINS:
                call_system(sleep, microseconds)


@njit
def walk(table, counters, state, generation, sleep, microseconds):
    """One thread's way through the table (operations, places); returns when every operation is done.

    `counters` (operations + 1, 2 * LINE): for each operation, the next unit to hand out, and how many units
    are done of the operations since the last wait. The first caller owns the step: it opened `generation`.
    """
    active = state.ctypes.data + 8 * ACTIVE
    atomic_add(active, 1)
    if atomic_load(state.ctypes.data + 8 * GENERATION) == generation:
        group = 0
        for i in range(table.shape[0]):
            units, chunk = table[i, UNITS], table[i, CHUNK]
            following = counters.ctypes.data + 8 * 2 * LINE * i
            done = counters.ctypes.data + 8 * (2 * LINE * group + LINE)
            completed = 0
            while True:
                begin = atomic_add(following, chunk)
                if begin >= units:
                    break
                end = min(begin + chunk, units)
                call_operation(
                    table[i, FUNCTION], table.ctypes.data + 8 * (table.shape[1] * i + OPERANDS), begin, end
                )
                completed += end - begin
            if completed > 0:
                atomic_add(done, completed)
            if table[i, AWAITED] > 0:
                _wait(done, table[i, AWAITED], sleep, microseconds, table[i, AHEAD], table[i, AHEAD_BYTES])
                group = i + 1
    atomic_add(active, -1)


@njit
def close(state, sleep, microseconds):
    """End the step: nobody can enter any more, and those inside have left when this returns."""
    atomic_store(state.ctypes.data + 8 * GENERATION, 0)
    _wait(state.ctypes.data + 8 * ACTIVE, 0, sleep, microseconds, 0, 0)


@operation
def walk_operation(operands, begin, end):
    """table (3), counters (3), state (2), generation, sleep, microseconds (1 each)."""
    walk(
        int64_2d(operands, 0),
        int64_2d(operands, 3),
        int64_1d(operands, 6),
        operands[8],
        operands[9],
        operands[10],
    )


@operation
def close_operation(operands, begin, end):
    """state (2), sleep, microseconds (1 each)."""
    close(int64_1d(operands, 0), operands[2], operands[3])


@operation
def chain_operation(operands, begin, end):
    """Address of rows of a table, their number and places (1 each): one after the other, whole, in this thread."""
    places = operands[2]
    for i in range(operands[1]):
        address = operands[0] + 8 * places * i
        row = carray(memory(address), (places,), np.int64)
        call_operation(row[FUNCTION], address + 8 * OPERANDS, 0, row[UNITS])


def _system_sleep() -> tuple[int, int]:
    """The address of a C function that gives the core away for a moment, and its argument."""
    if sys.platform == "win32":
        return ctypes.cast(ctypes.windll.kernel32.Sleep, ctypes.c_void_p).value or 0, 0
    return ctypes.cast(ctypes.CDLL(None).usleep, ctypes.c_void_p).value or 0, 20


Job = tuple[NDArray[np.int64], ...]
"""The operands of `walk_operation`, and the arrays that they point to: who comes late still finds them."""


def _work(jobs: SimpleQueue[Job | None]) -> None:
    """A worker's life: sleep until there is a job, walk it, until the job is None."""
    while (job := jobs.get()) is not None:
        walk_operation(job[0])
        del job


def _dismiss(queues: list[SimpleQueue[Job | None]]) -> None:
    for jobs in queues:
        jobs.put(None)


class Team:
    """`threads` threads, the caller included; the others start with the first step and sleep between steps."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or default_threads()
        self._queues: list[SimpleQueue[Job | None]] = []
        self._state = np.zeros(2 * LINE, np.int64)
        self._counters = np.zeros((0, 2 * LINE), np.int64)
        self._generation = 0
        self._sleep = _system_sleep()
        self._closing = np.array([*array_operands(self._state), *self._sleep], np.int64)
        weakref.finalize(self, _dismiss, self._queues)

    def _start(self) -> None:
        for _ in range(self.threads - 1):
            jobs: SimpleQueue[Job | None] = SimpleQueue()
            self._queues.append(jobs)
            threading.Thread(target=_work, args=(jobs,), name="tinylm", daemon=True).start()

    def run(self, table: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """All operations of the table (operations, places) int64, in order. One caller at a time."""
        if len(self._queues) < self.threads - 1:
            self._start()
        if len(self._counters) < len(table):
            self._counters = np.zeros((len(table), 2 * LINE), np.int64)
        self._counters[: len(table)] = 0
        self._generation += 1
        self._state[GENERATION] = self._generation
        arrays = (table, self._counters, self._state)
        operands = [number for array in arrays for number in array_operands(array)]
        job = (np.array([*operands, self._generation, *self._sleep], np.int64), *arrays)
        try:  # whatever interrupts the caller: when this returns, nobody is at the table any more
            for jobs in self._queues:
                jobs.put(job)
            walk_operation(job[0])
        finally:
            close_operation(self._closing)
