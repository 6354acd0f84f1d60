"""How threads walk a table of operations: who takes which piece, who waits for whom, how a step begins and ends.

Each operation's work is handed out in pieces from an atomic counter. Nobody waits for a *thread*: a thread
goes on when all *units* of an operation are done, whoever did them. So one that arrives late, or whose core
was taken away, holds nobody up unless it has a piece in hand. Whoever waits for that spins for a bounded while. Then,
where the operation may be *helped*, it does the piece again itself: a piece gives the same numbers whoever makes it,
and a bit of a word, set by who is first at its end, says that it is counted. Elsewhere it sleeps for moments,
which gives its core to whom the system wants there (the one with that piece).

A step has one of two *doors*, and counts who has come in by it. One whose operations are helped may end while somebody
who was put aside is still inside, for the next opens the other door. Its table must share no memory with that one's:
what the late one still writes stands there already, as long as nothing else has been put there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinylm.kernels.jit import carray, njit, operation
from tinylm.kernels.simd import (
    CACHE_LINE,
    ask_system,
    atomic_add,
    atomic_load,
    atomic_or,
    atomic_store,
    call_operation,
    call_system,
    memory,
    pause,
    prefetch,
    scratch,
)

(
    FUNCTION,
    UNITS,
    FIRST,
    CHUNK,
    AWAITED,
    HELPED,
    AHEAD,
    AHEAD_STRIDE,
    AHEAD_BYTES,
    NEEDED,
    REGIONS,
    OPERANDS,
) = range(12)
"""Places in a row of the table: address; units of work; units a piece, for the first piece of each thread and for
those after; units to wait for after it; whether who waits may do its pieces again; what to fetch while waiting, how
far apart for each thread, how much of it; what the operations after it need at once, as an address and bytes for each
of so many regions; operands."""

MOST_HELPED = 63
"""Pieces of an operation that is helped, at most: one for each bit of a word but the sign."""

LINES_AT_A_TIME = 4


def single(address: int, units: int, chunk: int, operands: list[int]) -> NDArray[np.int64]:
    """The table of one operation alone."""
    row = np.zeros((1, OPERANDS + len(operands)), np.int64)
    row[0, [FUNCTION, UNITS, FIRST, CHUNK, AWAITED]] = address, units, chunk, chunk, units
    row[0, OPERANDS:] = operands
    return row


LINE = 16
"""int64 a counter has to itself: two cache lines (M1's are 128 bytes), so that no two counters share one."""

DONE, FINISHED = 1, 2
"""Places in the line of an operation's counters: units done of the operations since the last wait; a bit for each piece
that is done, where it is helped. Pieces handed out stand before them."""

GENERATION, ACTIVE = 0, LINE
"""Places in the state: the step that is open for work or 0; for each door a line: how many threads are inside."""

DOOR, DOOR_PLACES = 3 * LINE, 3
"""Places in the state, for each door: the address of a table, its rows, its places. They are written while nobody who
has come in by it is inside."""

(
    HERE,
    TABLE,
    ROWS,
    PLACES,
    COUNTERS,
    OTHER_COUNTERS,
    LATEST,
    ASLEEP,
    LINGER,
    SLEEP,
    MICROSECONDS,
    THREADS,
    SPIN,
    WHERE,
    MOVE,
    CPUS,
) = range(4 * LINE, 4 * LINE + 16)
"""Places in the state that only the caller writes: the address of the state; the table of the next step; the addresses
of the counters, for one door and the other; the latest step; workers who were asleep when it was opened; how often a
worker looks for the next step; what makes a thread sleep; threads; how often one that waits looks before it helps or
sleeps; functions of the system that tell where a thread runs and say where it may, or 0; the address of CPUS_BYTES that
say where all may."""

CPUS_BYTES = 128
"""A bit for each of 1,024 CPUs."""

NAPS, HELPS, APART = range(5 * LINE, 5 * LINE + 3)
"""Places in the state: how often a thread of this step has slept while it waited for another, and how often it has done
a piece again; the CPU that workers leave to the caller, and 1, or 0."""

AWAKE, KEPT_OFF = 6 * LINE, 1
"""For each worker a line: whether it will see a step that opens now; then the CPU that it is kept off, and 1, or 0."""


@njit
def piece_of(row, number, threads):
    """The units `begin` to `end` of a piece of an operation; `end` is no more than `begin` after the last one, and
    before it where threads have no first piece.
    """
    units, first, chunk = row[UNITS], row[FIRST], row[CHUNK]
    begin, size = first * number, first
    if number >= threads:
        begin, size = first * threads + chunk * (number - threads), chunk
    return begin, min(begin + size, units)


@njit
def _do(table, i, begin, end):
    """Units of the operation in row `i` of a table."""
    operands = table.ctypes.data + 8 * (table.shape[1] * i + OPERANDS)
    call_operation(table[i, FUNCTION], operands, begin, end)


@njit
def _finish(line, done, number, units):
    """Count the units of a piece that is done, unless somebody has: `line` and `done` are where its row's counters
    begin, and the address of those of its group.
    """
    bit = 1 << number
    if atomic_or(line + 8 * FINISHED, bit) & bit == 0:
        atomic_add(done, units)


@njit
def _help(table, counters, first, last, threads, done):
    """Do one piece again that somebody has taken in rows `first` to `last`; False if there is none to be helped."""
    for i in range(first, last + 1):
        if table[i, HELPED] == 0:
            continue
        line = counters + 8 * LINE * i
        finished = atomic_load(line + 8 * FINISHED)
        for number in range(MOST_HELPED):
            begin, end = piece_of(table[i], number, threads)
            if begin >= table[i, UNITS]:
                break
            if finished & (1 << number) == 0:
                _do(table, i, begin, end)
                _finish(line, done, number, end - begin)
                return True
    return False


@njit
def _look(address, target, most_spins, ahead, ahead_bytes, line):
    """Look whether the int64 at `address` is `target`, a bounded while, and ask for the weights that come next.

    `line`: how many of these bytes have been asked for; returns how many have been then.
    """
    spins = 0
    while spins <= most_spins and atomic_load(address) != target:
        if line < ahead_bytes:  # a few at a time: what is waited for may be there at any moment
            for _ in range(LINES_AT_A_TIME):
                prefetch(ahead + line)
                line += CACHE_LINE
        else:
            spins += 1
    return line


@njit
def _nap(here):
    """Give the core away for a moment, and count it."""
    state = carray(memory(here), (AWAKE,), np.int64)
    atomic_add(here + 8 * NAPS, 1)
    call_system(state[SLEEP], state[MICROSECONDS])


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
    """One thread's way through the table of a step, if `generation` is still the one that is open at the state `here`.

    Thread 0, the caller, returns when every operation is done, the others when nothing is left to be taken. The
    table is only looked at inside: whoever has opened the step keeps it until all have left.
    """
    door = generation & 1
    active = here + 8 * (ACTIVE + LINE * door)
    atomic_add(active, 1)
    if atomic_load(here + 8 * GENERATION) == generation:
        state = carray(memory(here), (AWAKE,), np.int64)
        inside = DOOR + DOOR_PLACES * door
        table = carray(memory(state[inside]), (state[inside + 1], state[inside + 2]), np.int64)
        counters, threads, most_spins = state[COUNTERS + door], state[THREADS], state[SPIN]
        rows = table.shape[0]
        group = 0
        expected = min(max(thread, 1), threads - 1)
        fetched, line = 0, 0
        for i in range(rows):
            following = counters + 8 * LINE * i
            done = counters + 8 * (LINE * group + DONE)
            completed, asked = 0, False
            while True:
                number = atomic_add(following, 1)
                if number >= threads and not asked:  # what is left is little: who ends first goes on at once
                    _fetch(table[i, NEEDED], table[i, REGIONS])
                    asked = True
                begin, end = piece_of(table[i], number, threads)
                if begin >= table[i, UNITS]:
                    break
                _do(table, i, begin, end)
                if table[i, HELPED]:
                    _finish(following, done, number, end - begin)
                else:
                    completed += end - begin
            if completed > 0:
                atomic_add(done, completed)
            if table[i, AWAITED] > 0:
                if thread == 0 or i + 1 < rows:
                    ahead, ahead_bytes = (
                        table[i, AHEAD] + table[i, AHEAD_STRIDE] * expected,
                        table[i, AHEAD_BYTES],
                    )
                    if ahead != fetched:
                        fetched, line = ahead, 0
                    line = _look(done, table[i, AWAITED], most_spins, ahead, ahead_bytes, line)
                    while atomic_load(done) != table[i, AWAITED]:
                        if _help(table, counters, group, i, threads, done):
                            atomic_add(here + 8 * HELPS, 1)
                            _look(done, table[i, AWAITED], most_spins, 0, 0, 0)
                        else:
                            _nap(here)
                group = i + 1
    atomic_add(active, -1)


@njit
def _wait_until_left(state, here, door):
    """Until nobody is inside who has come in by a door."""
    active = here + 8 * (ACTIVE + LINE * door)
    _look(active, 0, state[SPIN], 0, 0, 0)
    while atomic_load(active) != 0:
        _nap(here)


@njit
def close(state, here):
    """End the step: nobody can enter any more, and those inside have left when this returns."""
    atomic_store(here + 8 * GENERATION, 0)
    _wait_until_left(state, here, 0)
    _wait_until_left(state, here, 1)


@njit
def _leave_to_caller(state, cpu, worker):
    """Keep a worker, this thread, off a CPU (and 1), or off none (0)."""
    of_worker = carray(memory(state[HERE] + 8 * (AWAKE + LINE * worker)), (LINE,), np.int64)
    of_worker[KEPT_OFF] = cpu
    allowed = carray(memory(state[CPUS]), (CPUS_BYTES,), np.uint8)
    cpus = carray(memory(scratch(CPUS_BYTES)), (CPUS_BYTES,), np.uint8)
    for i in range(CPUS_BYTES):
        cpus[i] = allowed[i]
    if cpu > 0:
        cpus[(cpu - 1) // 8] &= np.uint8(255 - (1 << ((cpu - 1) % 8)))
    ask_system(state[MOVE], 0, CPUS_BYTES, cpus.ctypes.data)


@operation
def close_operation(state, begin, end):
    """`close` of a state."""
    close(state, state[HERE])


@operation
def make_way_operation(state, begin, end):
    """Wait until those have left who came in by the next door."""
    _wait_until_left(state, state[HERE], (state[LATEST] + 1) & 1)


@operation
def open_operation(state, begin, end):
    """Open a step, and count those of `end` workers that have to be woken.

    `begin`: 1 where some may still be at the latest step, 0 where they must have left it. Where it is 1 others want
    the cores too, and workers are kept off the caller's: two on one core, while another program has one alone, are even
    to a system.
    """
    here = state[HERE]
    generation = state[LATEST] + 1
    if begin == 0:
        close(state, here)
        generation += generation & 1  # always by the same door, so that the same counters stay in the caches
    door = generation & 1
    _wait_until_left(state, here, door)
    inside = DOOR + DOOR_PLACES * door
    state[inside], state[inside + 1], state[inside + 2] = state[TABLE], state[ROWS], state[PLACES]
    state[NAPS], state[HELPS] = 0, 0
    state[APART] = ask_system(state[WHERE], 0, 0, 0) + 1 if begin == 1 and state[MOVE] != 0 else 0
    counters = carray(memory(state[COUNTERS + door]), (state[ROWS] * LINE,), np.int64)
    counters[:] = 0
    state[LATEST] = generation
    atomic_store(here + 8 * GENERATION, generation)
    asleep = 0
    for worker in range(end):
        asleep += 1 - atomic_load(here + 8 * (AWAKE + LINE * worker))
    state[ASLEEP] = asleep


@operation
def walk_operation(state, begin, end):
    """The caller's way through the step that is open. `begin`: 1 where some may still be at it when this returns."""
    here = state[HERE]
    walk(here, state[LATEST], 0)
    if begin == 0:
        close(state, here)
    else:
        atomic_store(here + 8 * GENERATION, 0)


@operation
def attend_operation(state, begin, end):
    """A worker's time awake: this step and those that open soon after. It is number `begin` of `end`."""
    here = state[HERE]
    awake = here + 8 * (AWAKE + LINE * begin)
    seen, looks = 0, 0
    atomic_store(awake, 1)
    while True:
        generation = atomic_load(here + 8 * GENERATION)
        if generation > seen:
            if state[APART] != state[AWAKE + LINE * begin + KEPT_OFF]:
                _leave_to_caller(state, state[APART], begin)
            walk(here, generation, begin + 1)
            seen, looks = generation, 0
        elif looks < state[LINGER]:
            looks += 1
            pause()
        else:
            # The caller opens a step and then looks who sleeps; a worker says so and then looks for a step.
            atomic_store(awake, 0)
            if atomic_load(here + 8 * GENERATION) <= seen:
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
