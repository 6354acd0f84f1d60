"""Steps whose pieces are done again: they overlap, wait for nobody who was put aside, and give the same numbers."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tinylm.kernels.jit import operation
from tinylm.kernels.operands import array_operands, int64_1d
from tinylm.kernels.simd import ask_system, atomic_add, atomic_load
from tinylm.kernels.team import Team
from tinylm.kernels.walk import ACTIVE, AWAITED, FIRST, HELPED, LINE, MOVE, single

CELLS = 200


@operation
def follow(operands, begin, end):
    """source (2), target (2): one more than what lies at the other end."""
    source, target = int64_1d(operands, 0), int64_1d(operands, 2)
    for unit in range(begin, end):
        target[unit] = source[source.shape[0] - 1 - unit] + 1


class Chain:
    """Operations of which each needs all of the one before it, and has cells of its own."""

    def __init__(self, length: int = 40, chunk: int = 7, first: int = 30) -> None:
        self.cells = [np.zeros(CELLS, np.int64) for _ in range(length + 1)]
        pairs = [[*array_operands(one), *array_operands(other)] for one, other in pairwise(self.cells)]
        self.table = np.concatenate([single(follow.address, CELLS, chunk, operands) for operands in pairs])
        self.table[:, FIRST], self.table[:, HELPED] = first, 1

    def begin(self, number: int) -> None:
        """Let it start with a number, of which nothing is left from before."""
        for cells in self.cells:
            cells[:] = -1
        self.cells[0][:] = number

    def check(self, number: int) -> None:
        for i, cells in enumerate(self.cells):
            np.testing.assert_array_equal(cells, number + i)


@pytest.mark.parametrize("threads", [1, 2, 3, 7, 16])
@pytest.mark.parametrize(("chunk", "first"), [(5, 5), (7, 30), (CELLS, CELLS)])
def test_steps_that_overlap(threads: int, chunk: int, first: int) -> None:
    team, twins, plain = Team(threads), [Chain(40, chunk, first) for _ in range(2)], Chain(4, 9)
    for step in range(300):
        twin = twins[step % 2]
        team.make_way()
        twin.begin(step)
        team.run(twin.table, brief=True, owner=twin)
        twin.check(step)
        if step % 7 == 0:  # which nobody is at who came in before, or stays at
            plain.begin(step)
            team.run(plain.table, brief=bool(step % 2))
            plain.check(step)


@operation
def stall(operands, begin, end):
    """cells (2), memory (2): whether to stall, how often it did, whether to go on, what tells who runs, the caller.

    The first of the workers to come stalls. The caller takes its time, so that they come.
    """
    cells, asked = int64_1d(operands, 0), int64_1d(operands, 2)
    looks = 0
    if ask_system(asked[3], 0, 0, 0) == asked[4]:
        while atomic_load(asked.ctypes.data) == 1 and looks < 50_000:
            looks += 1
    elif atomic_add(asked.ctypes.data, -1) == 1:
        atomic_add(asked.ctypes.data + 8, 1)
        while atomic_load(asked.ctypes.data + 16) == 0 and looks < 1 << 36:
            looks += 1
    for unit in range(begin, end):
        cells[unit] = unit


def who_runs() -> list[int]:
    """The address of a C function that tells a thread from others, and its answer here, an int."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.GetCurrentThreadId
    else:
        function = ctypes.CDLL(None).pthread_self
    function.restype = ctypes.c_int
    return [ctypes.cast(function, ctypes.c_void_p).value or 0, function()]


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("stalls", [0, 1, 2])
def test_a_step_ends_while_a_worker_is_put_aside(threads: int, stalls: int) -> None:
    """In whichever of a few pieces, rows of one group: the others do it, and go on to the next step."""
    team, plain, late = Team(threads), Chain(), 0
    deadline = time.monotonic() + 60
    while late < 2 and time.monotonic() < deadline:
        asked = np.array([0, 0, 0, *who_runs()], np.int64)
        twins = []
        for _ in range(2):
            cells = [np.zeros(40, np.int64) for _ in range(3)]
            operands = [[*array_operands(one), *array_operands(asked)] for one in cells]
            table = np.concatenate([single(stall.address, 40, 4, one) for one in operands])
            table[:, AWAITED] = 0
            table[stalls, AWAITED] = 40 * (stalls + 1)
            table[2, AWAITED] += 40 * (2 - stalls)
            table[:, HELPED] = 1
            twins.append((table, cells))
        asked[0] = 1
        for table, cells in twins:
            team.run(table, brief=True, owner=(table, cells, asked))
            for one in cells:
                np.testing.assert_array_equal(one, range(40))
                one[:] = 0
        if asked[1]:
            late += 1  # two steps have ended, and somebody is in the first one still, or in the second
            while team._state[ACTIVE] + team._state[ACTIVE + LINE] > 1:  # others are on their way out
                assert time.monotonic() < deadline
            assert team._state[ACTIVE] + team._state[ACTIVE + LINE] == 1
        asked[2] = 1
        team.run(plain.table)
        assert team._state[ACTIVE] == team._state[ACTIVE + LINE] == 0
    assert late == 2


def test_what_a_late_worker_needs_is_kept_and_goes_with_the_team() -> None:
    team, twins = Team(2), [Chain(10, 5, 5) for _ in range(2)]
    known = [weakref.ref(twin) for twin in twins]
    for step in range(4):
        team.run(twins[step % 2].table, brief=True, owner=twins[step % 2])
    del twins
    assert all(one() is not None for one in known)
    del team
    gc.collect()
    deadline = time.monotonic() + 20
    while any(one() is not None for one in known) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(one() is None for one in known)


def cpus() -> set[int]:
    """Where this thread may run, where the system says so."""
    return os.sched_getaffinity(0) if sys.platform == "linux" else set()


@pytest.mark.skipif(
    not 1 < len(cpus()) < 100, reason="this system does not say where threads run, or they are many"
)
def test_workers_leave_the_caller_its_core_while_others_want_it_too() -> None:
    before = {thread.native_id for thread in threading.enumerate()}
    team, twins, plain = Team(len(cpus())), [Chain() for _ in range(2)], Chain()
    team.run(plain.table)
    workers = [thread.native_id for thread in threading.enumerate() if thread.native_id not in before]
    assert len(workers) == team.threads - 1

    def come(run: Any, is_so: Any) -> bool:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            run()
            if all(is_so(os.sched_getaffinity(worker or 0)) for worker in workers):
                return True
        return False

    def helped() -> None:
        team.run(twins[0].table, brief=True, owner=twins[0])
        twins.reverse()

    assert come(helped, lambda allowed: len(allowed) == len(cpus()) - 1 and allowed < cpus())
    assert come(lambda: team.run(plain.table), lambda allowed: allowed == cpus())


def test_the_system_places_threads_that_are_not_as_many_as_cores() -> None:
    assert Team(1)._state[MOVE] == 0
    assert Team(len(cpus()) + 1)._state[MOVE] == 0
