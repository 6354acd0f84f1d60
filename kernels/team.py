"""The team: N Python threads that walk one table of operations together, inside one call without the GIL.

A worker that comes out of a step looks for the next one for a bounded while before it sleeps: in a text's making
that comes within a fraction of a millisecond, and waking a thread through the system and the GIL takes as long.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylm.kernels.cores import default_threads
from tinylm.kernels.crowding import Crowding
from tinylm.kernels.walk import (
    ACTIVE,
    ASLEEP,
    AWAKE,
    COUNTERS,
    CPUS,
    CPUS_BYTES,
    GENERATION,
    HELPS,
    HERE,
    LATEST,
    LINE,
    LINGER,
    MICROSECONDS,
    MOVE,
    NAPS,
    OPERANDS,
    OTHER_COUNTERS,
    PLACES,
    SLEEP,
    SPIN,
    TABLE,
    THREADS,
    WHERE,
    attend_operation,
    close_operation,
    make_way_operation,
    open_operation,
    walk_operation,
)

SPINS, MANY_SPINS = 10_000, 200_000
"""How often a thread that waits looks before it helps or sleeps, in a step of one token and in others, whose pieces
take longer: about 10 and 200 microseconds, where a sleep takes 70."""

OPERATIONS = (open_operation, walk_operation, attend_operation, close_operation, make_way_operation)
"""What a team itself runs."""

LOOKS = 20_000
"""How often a worker looks for the next step before it sleeps: about half a millisecond."""


def _system_sleep() -> tuple[int, int]:
    """The address of a C function that gives the core away for a moment, and its argument."""
    if sys.platform == "win32":
        return ctypes.cast(ctypes.windll.kernel32.Sleep, ctypes.c_void_p).value or 0, 0
    return ctypes.cast(ctypes.CDLL(None).usleep, ctypes.c_void_p).value or 0, 20


def _cpus(threads: int) -> tuple[int, int, NDArray[np.uint8]]:
    """Addresses of C functions that tell where a thread runs and say where it may, and the CPUs where it may now.

    Zeros where the system has none such, or as many CPUs as threads are not there: then it does better alone.
    """
    cpus = np.zeros(8 * CPUS_BYTES, np.uint8)
    where = move = 0
    if sys.platform == "linux":
        allowed = [cpu for cpu in os.sched_getaffinity(0) if cpu < len(cpus)]
        cpus[allowed] = 1
        system = ctypes.CDLL(None)
        if len(allowed) == threads > 1 and hasattr(system, "sched_getcpu"):
            where = ctypes.cast(system.sched_getcpu, ctypes.c_void_p).value or 0
            move = ctypes.cast(system.sched_setaffinity, ctypes.c_void_p).value or 0
    return where, move, np.packbits(cpus, bitorder="little")


class _Workers:
    """The threads beside the caller: each sleeps at a lock of its own until that is released."""

    def __init__(self, state: NDArray[np.int64], count: int) -> None:
        self._state, self._count = state, count
        self.beds: list[threading.Lock] = []
        self.kept: list[object] = [None, None]
        """For each door what a worker may still be at that came in by it; it goes with the last of the workers."""
        self._dismissed = False

    def start(self) -> None:
        """Have all threads that are wanted."""
        while len(self.beds) < self._count:
            bed = threading.Lock()
            bed.acquire()
            arguments = bed, len(self.beds)
            threading.Thread(target=self._live, args=arguments, name="tinylm", daemon=True).start()
            self.beds.append(bed)

    def _live(self, bed: threading.Lock, worker: int) -> None:
        while True:
            bed.acquire()
            if self._dismissed:
                return
            attend_operation(self._state, worker, self._count)

    def awake(self, worker: int) -> bool:
        """Whether a worker will see a step that opens now."""
        return bool(self._state[AWAKE + LINE * worker])

    def wake(self) -> None:
        """Wake those who sleep; who is just getting up comes anyway."""
        for worker, bed in enumerate(self.beds):
            if not self.awake(worker) and bed.locked():
                bed.release()

    def dismiss(self) -> None:
        """Let the threads end."""
        self._dismissed = True
        for bed in self.beds:
            if bed.locked():
                bed.release()

    def forget(self) -> None:
        """A child process has none of its parent's threads."""
        self.beds.clear()
        self._state[[GENERATION, ACTIVE, ACTIVE + LINE]] = 0
        self._state[AWAKE:] = 0


_all_workers: weakref.WeakSet[_Workers] = weakref.WeakSet()


def _forget() -> None:
    for workers in _all_workers:
        workers.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class Team:
    """`threads` threads, the caller included; the others start with the first step and sleep when there is no next."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or default_threads()
        self._table: NDArray[np.int64] = np.zeros((0, OPERANDS), np.int64)
        self._counters = np.zeros((2, 0, LINE), np.int64)
        self._state = np.zeros(AWAKE + LINE * self.threads, np.int64)
        self._here = self._state[HERE] = self._state.ctypes.data
        # where threads share a core, whoever looked for work would take it from those who have some
        self._alone = self.threads <= default_threads()
        self._state[LINGER] = LOOKS if self._alone else 0
        self._state[[SLEEP, MICROSECONDS]] = _system_sleep()
        self._state[THREADS] = self.threads
        where, move, self._cpus = _cpus(self.threads)
        self._state[[WHERE, MOVE, CPUS]] = where, move, self._cpus.ctypes.data
        self._workers = _Workers(self._state, self.threads - 1)
        self._crowding = Crowding()
        _all_workers.add(self._workers)
        weakref.finalize(self, self._workers.dismiss)

    @property
    def helping(self) -> bool:
        """Whether the next step of one token should have an `owner`, for threads wait for one that does not run."""
        return self._crowding.helping

    def make_way(self) -> None:
        """Wait until nobody is any more at the step before the latest, or what had the same `owner`."""
        make_way_operation.callable(self._here, 0, 1)

    def run(
        self, table: np.ndarray[Any, np.dtype[np.int64]], brief: bool = False, owner: object = None
    ) -> None:
        """All operations of the table (operations, places) int64, in order. One caller at a time.

        `brief`: a step of one token, in which nobody waits for long but for a thread that does not run.
        `owner`: keeps alive the table and all that its helped operations read and write, which is not what those of
        the step before have: a worker that was put aside may be at it until `make_way` before the step after next.
        """
        if table is not self._table:
            self._lay_out(table)
        workers = self._workers
        self._state[SPIN] = MANY_SPINS if self._alone and not brief else SPINS
        overlapping = int(owner is not None)
        try:  # whatever interrupts the caller: when this returns, nobody is at the table any more
            if len(workers.beds) < self.threads - 1:
                workers.start()
            open_operation.callable(self._here, overlapping, self.threads - 1)
            workers.kept[self._state[LATEST] & 1] = owner
            if self._state[ASLEEP]:
                workers.wake()
            walk_operation.callable(self._here, overlapping, 1)
            if brief:
                self._crowding.note(int(self._state[NAPS]), int(self._state[HELPS]))
        except BaseException:
            close_operation.callable(self._here, 0, 1)
            raise

    def _lay_out(self, table: NDArray[np.int64]) -> None:
        """Write into the state what the threads have to know of a table."""
        self._table = np.zeros(
            (0, OPERANDS), np.int64
        )  # whatever interrupts this, the next call does it again
        if self._counters.shape[1] < len(table):
            for one in OPERATIONS:  # now, and not when other programs want the cores
                one.compile()
            close_operation(self._state)
            self._counters = np.zeros((2, len(table), LINE), np.int64)
            self._state[[COUNTERS, OTHER_COUNTERS]] = [of_door.ctypes.data for of_door in self._counters]
        self._state[TABLE : PLACES + 1] = table.ctypes.data, *table.shape
        self._table = table
