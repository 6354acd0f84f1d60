"""The team: N Python threads that walk one table of operations together, inside one call without the GIL.

Each operation's work is handed out in chunks from an atomic counter. Nobody waits for a *thread*: a thread
goes on when all *units* of an operation are done, whoever did them. So one that arrives late, or whose core
was taken away, holds nobody up unless it has a chunk in hand. Whoever waits spins for a bounded while and
then sleeps for moments, which gives its core to whom the system wants there (the one with that chunk).

A worker that comes out of a step looks for the next one for a bounded while before it sleeps: in a text's making
that comes within a fraction of a millisecond, and waking a thread through the system and the GIL takes as long.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylm.kernels.cores import default_threads
from tinylm.kernels.crowding import Crowding
from tinylm.kernels.jit import carray, njit, operation
from tinylm.kernels.simd import (
    CACHE_LINE,
    atomic_add,
    atomic_load,
    atomic_store,
    call_operation,
    call_system,
    memory,
    pause,
    prefetch,
)

FUNCTION, UNITS, FIRST, CHUNK, AWAITED, AHEAD, AHEAD_STRIDE, AHEAD_BYTES, NEEDED, REGIONS, OPERANDS = range(
    11
)
"""Places in a row of the table: address; units of work; units a chunk, for the first chunk of each thread and for
those after; units to wait for after it; what to fetch while waiting, how far apart for each thread, how much of it;
what the operations after it need at once, as an address and bytes for each of so many regions; operands."""

LINES_AT_A_TIME = 4


def single(address: int, units: int, chunk: int, operands: list[int]) -> NDArray[np.int64]:
    """The table of one operation alone."""
    return np.array([[address, units, chunk, chunk, units, 0, 0, 0, 0, 0, *operands]], np.int64)


LINE = 16
"""int64 a counter has to itself: two cache lines (M1's are 128 bytes), so that no two counters share one."""

DONE = 1
"""Place in the line of an operation's counters: units done of the operations since the last wait; chunks handed out
stand before it."""

GENERATION, ACTIVE = 0, LINE
"""Places in the state: the step that is open for work or 0, and how many threads are inside it."""

HERE, TABLE, ROWS, PLACES, COUNTERS, LATEST, INVITED, ASLEEP, LINGER, SLEEP, MICROSECONDS, THREADS, SPIN = (
    range(2 * LINE, 2 * LINE + 13)
)
"""Places in the state that only the caller writes, while no step is open: the address of the state; the table, its
shape, and the counters; the latest step; workers that may enter it; those of them asleep when it was opened; how often
a worker looks for the next step; what makes a thread sleep; threads; how often one that waits
looks before it sleeps."""

NAPS = 3 * LINE
"""Place in the state: how often a thread of this step has slept while it waited for another."""

AWAKE = 4 * LINE
"""For each worker a line: whether it will see a step that opens now."""

SPINS, MANY_SPINS = 10_000, 200_000
"""How often a thread that waits looks before it sleeps, in a step of one token and in others, whose pieces take longer:
about 10 and 200 microseconds, where a sleep takes 70."""

LOOKS = 20_000
"""How often a worker looks for the next step before it sleeps: about half a millisecond."""


@njit
def _wait(address, target, most_spins, naps, sleep, microseconds, ahead, ahead_bytes, line):
    """Until the int64 at `address` is `target`: ask for the weights that come next, spin, then sleep for moments.

    These are counted in the int64 at `naps`.

    `line`: how many of these bytes have been asked for; returns how many have been then.
    """
    spins = 0
    while atomic_load(address) != target:
        if line < ahead_bytes:  # a few at a time: what is waited for may be there at any moment
            for _ in range(LINES_AT_A_TIME):
                prefetch(ahead + line)
                line += CACHE_LINE
        else:
            spins += 1
            if spins > most_spins:
                atomic_add(naps, 1)
                call_system(sleep, microseconds)
    return line


@njit
def _fetch(regions, count):
    """Ask for `count` regions, the address and bytes of each one after the other at an address."""
    pairs = carray(memory(regions), (count, 2), np.int64)
    for i in range(count):
        address = pairs[i, 0]
        for offset in range(0, pairs[i, 1], CACHE_LINE):
            prefetch(address + offset)


@njit
def walk(here, generation, thread):
    """One thread's way through the table of the state at `here`, if `generation` is still the step that is open.

    Thread 0, the caller, returns when every operation is done, the others when nothing is left to be taken. The
    table is only looked at inside: whoever has opened the step keeps it until all have left.
    """
    atomic_add(here + 8 * ACTIVE, 1)
    if atomic_load(here + 8 * GENERATION) == generation:
        state = carray(memory(here), (AWAKE,), np.int64)
        rows, places, counters = state[ROWS], state[PLACES], state[COUNTERS]
        table = carray(memory(state[TABLE]), (rows, places), np.int64)
        sleep, microseconds, threads = state[SLEEP], state[MICROSECONDS], state[THREADS]
        group = 0
        expected = min(max(thread, 1), threads - 1)
        fetched, line = 0, 0
        for i in range(rows):
            units, first, chunk = table[i, UNITS], table[i, FIRST], table[i, CHUNK]
            following = counters + 8 * LINE * i
            done = counters + 8 * (LINE * group + DONE)
            completed, asked = 0, False
            while True:
                number = atomic_add(following, 1)
                begin, size = first * number, first
                if number >= threads:
                    if not asked:  # what is left is little: who is the first at its end goes on at once
                        _fetch(table[i, NEEDED], table[i, REGIONS])
                        asked = True
                    begin, size = first * threads + chunk * (number - threads), chunk
                if begin >= units:
                    break
                end = min(begin + size, units)
                call_operation(
                    table[i, FUNCTION], table.ctypes.data + 8 * (places * i + OPERANDS), begin, end
                )
                completed += end - begin
            if completed > 0:
                atomic_add(done, completed)
            if table[i, AWAITED] > 0:
                if thread == 0 or i + 1 < rows:
                    ahead = table[i, AHEAD] + table[i, AHEAD_STRIDE] * expected
                    if ahead != fetched:
                        fetched, line = ahead, 0
                    line = _wait(
                        done,
                        table[i, AWAITED],
                        state[SPIN],
                        here + 8 * NAPS,
                        sleep,
                        microseconds,
                        ahead,
                        table[i, AHEAD_BYTES],
                        line,
                    )
                group = i + 1
    atomic_add(here + 8 * ACTIVE, -1)


@njit
def close(state, here):
    """End the step: nobody can enter any more, and those inside have left when this returns."""
    atomic_store(here + 8 * GENERATION, 0)
    _wait(here + 8 * ACTIVE, 0, state[SPIN], here + 8 * NAPS, state[SLEEP], state[MICROSECONDS], 0, 0, 0)


@operation
def close_operation(state, begin, end):
    """`close` of a state."""
    close(state, state[HERE])


@operation
def open_operation(state, begin, end):
    """Open a step for the workers 0 to `end`, and count those of them that have to be woken."""
    here = state[HERE]
    close(state, here)
    state[INVITED], state[NAPS] = end, 0
    counters = carray(memory(state[COUNTERS]), (state[ROWS] * LINE,), np.int64)
    counters[:] = 0
    state[LATEST] += 1
    atomic_store(here + 8 * GENERATION, state[LATEST])
    asleep = 0
    for worker in range(end):
        asleep += 1 - atomic_load(here + 8 * (AWAKE + LINE * worker))
    state[ASLEEP] = asleep


@operation
def walk_operation(state, begin, end):
    """The caller's way through the step that is open; closes it."""
    here = state[HERE]
    walk(here, state[LATEST], 0)
    close(state, here)


@operation
def attend_operation(state, begin, end):
    """A worker's time awake: this step and those that open soon after. It is number `begin` of `end`."""
    here = state[HERE]
    awake = here + 8 * (AWAKE + LINE * begin)
    seen, looks = 0, 0
    atomic_store(awake, 1)
    while True:
        generation = atomic_load(here + 8 * GENERATION)
        if generation > seen and begin < state[INVITED]:
            walk(here, generation, begin + 1)
            seen, looks = generation, 0
        elif looks < state[LINGER]:
            looks += 1
            pause()
        else:
            # The caller opens a step and then looks who sleeps; a worker says so and then looks for a step.
            atomic_store(awake, 0)
            if atomic_load(here + 8 * GENERATION) <= seen or begin >= state[INVITED]:
                break
            atomic_store(awake, 1)


@operation
def chain_operation(operands, begin, end):
    """Address of rows of a table, their number and places (1 each): one after the other, whole, in this thread."""
    places = operands[2]
    for i in range(operands[1]):
        address = operands[0] + 8 * places * i
        row = carray(memory(address), (places,), np.int64)
        call_operation(row[FUNCTION], address + 8 * OPERANDS, 0, row[UNITS])


@operation
def by_tokens_operation(operands, begin, end):
    """Address of rows of a table, their number and places (1 each): one after the other, for tokens `begin` to `end`.

    In a row's places of chunks stand how many units so many tokens are.
    """
    places = operands[2]
    for i in range(operands[1]):
        address = operands[0] + 8 * places * i
        row = carray(memory(address), (places,), np.int64)
        units, tokens = row[FIRST], row[CHUNK]
        last = min(-(-end * units // tokens), row[UNITS])
        call_operation(row[FUNCTION], address + 8 * OPERANDS, begin * units // tokens, last)


def _system_sleep() -> tuple[int, int]:
    """The address of a C function that gives the core away for a moment, and its argument."""
    if sys.platform == "win32":
        return ctypes.cast(ctypes.windll.kernel32.Sleep, ctypes.c_void_p).value or 0, 0
    return ctypes.cast(ctypes.CDLL(None).usleep, ctypes.c_void_p).value or 0, 20


class _Workers:
    """The threads beside the caller: each sleeps at a lock of its own until that is released."""

    def __init__(self, state: NDArray[np.int64], count: int) -> None:
        self._state, self._count = state, count
        self.beds: list[threading.Lock] = []
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

    def wake(self, invited: int) -> None:
        """Wake those of the first `invited` who sleep; who is just getting up comes anyway."""
        for worker, bed in enumerate(self.beds[:invited]):
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
        self._state[[GENERATION, ACTIVE]] = 0
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
        self._counters = np.zeros((0, LINE), np.int64)
        self._state = np.zeros(AWAKE + LINE * self.threads, np.int64)
        self._here = self._state[HERE] = self._state.ctypes.data
        # where threads share a core, whoever looked for work would take it from those who have some
        self._alone = self.threads <= default_threads()
        self._state[LINGER] = LOOKS if self._alone else 0
        self._state[[SLEEP, MICROSECONDS]] = _system_sleep()
        self._state[THREADS] = self.threads
        self._workers = _Workers(self._state, self.threads - 1)
        self._crowding = Crowding(self.threads - 1)
        _all_workers.add(self._workers)
        weakref.finalize(self, self._workers.dismiss)

    def run(self, table: np.ndarray[Any, np.dtype[np.int64]], sparing: bool = False) -> None:
        """All operations of the table (operations, places) int64, in order. One caller at a time.

        `sparing`: with fewer workers while others keep their cores busy (`crowding`).
        """
        if table is not self._table:
            self._lay_out(table)
        workers = self._workers
        invited = self._crowding.invited if sparing else self.threads - 1
        self._state[SPIN] = MANY_SPINS if self._alone and not sparing else SPINS
        began = time.perf_counter()
        try:  # whatever interrupts the caller: when this returns, nobody is at the table any more
            if len(workers.beds) < self.threads - 1:
                workers.start()
            open_operation.callable(self._here, 0, invited)
            if self._state[ASLEEP]:
                workers.wake(invited)
            walk_operation.callable(self._here, 0, 1)
            if sparing:
                self._crowding.note(int(self._state[NAPS]), time.perf_counter() - began)
        except BaseException:
            close_operation.callable(self._here, 0, 1)
            raise

    def _lay_out(self, table: NDArray[np.int64]) -> None:
        """Write into the state what the threads have to know of a table."""
        self._table = np.zeros(
            (0, OPERANDS), np.int64
        )  # whatever interrupts this, the next call does it again
        close_operation(self._state)
        if len(self._counters) < len(table):
            self._counters = np.zeros((len(table), LINE), np.int64)
        places = self._state[TABLE : COUNTERS + 1]
        places[:] = table.ctypes.data, *table.shape, self._counters.ctypes.data
        self._table = table
