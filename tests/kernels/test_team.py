"""The team does every unit once, in the order of its operations, whoever comes late or is interrupted."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinylm.kernels.jit import operation
from tinylm.kernels.operands import int64_1d
from tinylm.kernels.team import AWAITED, GENERATION, OPERANDS, Team, walk

ROOT = Path(__file__).resolve().parent.parent.parent
CELLS = 200


@operation
def count(operands, begin, end):
    """cells (2): one more for each unit."""
    cells = int64_1d(operands, 0)
    for unit in range(begin, end):
        cells[unit] += 1


@operation
def mirror(operands, begin, end):
    """source (2), target (2): what lies at the other end, and one."""
    source, target = int64_1d(operands, 0), int64_1d(operands, 2)
    for unit in range(begin, end):
        target[unit] = source[source.shape[0] - 1 - unit] + 1


def row(kernel: Any, chunk: int, awaited: int, *arrays: np.ndarray, units: int | None = None) -> list[int]:
    """A row of a table; the units are the cells of the last array."""
    operands = [place for array in arrays for place in (array.ctypes.data, len(array))]
    operands += [0] * (4 - len(operands))
    return [kernel.address, len(arrays[-1]) if units is None else units, chunk, awaited, 0, 0, *operands]


class Mirrors:
    """A long chain of operations of which each needs all of the one before it."""

    def __init__(self, length: int, chunk: int) -> None:
        self.length = length
        self.cells = [np.zeros(CELLS, np.int64) for _ in range(2)]
        pairs = [(self.cells[i % 2], self.cells[1 - i % 2]) for i in range(length)]
        self.table = np.array([row(mirror, chunk, CELLS, *pair) for pair in pairs], np.int64)

    def check(self, steps: int) -> None:
        """A chain of even length begins where the one before it ended."""
        np.testing.assert_array_equal(self.cells[0], steps * self.length)


@pytest.mark.parametrize("threads", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("chunk", [1, 7, CELLS, 10 * CELLS])
def test_an_operation_waits_for_all_of_the_one_before(threads: int, chunk: int) -> None:
    team, chain = Team(threads), Mirrors(40, chunk)
    for step in range(1, 11):
        team.run(chain.table)
        chain.check(step)


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("chunk", [3, 50])
def test_long_steps_that_all_threads_walk_together(threads: int, chunk: int) -> None:
    team, chain = Team(threads), Mirrors(3000, chunk)  # long enough for the others to wake up
    for step in range(1, 8):
        team.run(chain.table)
        chain.check(step)


@pytest.mark.parametrize("threads", [2, 16])
def test_many_short_steps(threads: int) -> None:
    team, chain = Team(threads), Mirrors(2, 13)
    for _ in range(1000):
        team.run(chain.table)
    chain.check(1000)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_operations_that_do_not_wait_for_each_other(threads: int) -> None:
    random = np.random.default_rng(threads)
    team = Team(threads)
    for _ in range(30):
        arrays, rows, group = [], [], 0
        for i in range(12):
            arrays.append(np.zeros(int(random.choice([0, 1, 3, 50, 400])), np.int64))
            rows.append(row(count, int(random.integers(1, 60)), 0, arrays[-1]))
            group += len(arrays[-1])
            if random.random() < 0.4 or i == 11:
                rows[-1][AWAITED], group = group, 0
        team.run(np.array(rows, np.int64))
        for array in arrays:
            np.testing.assert_array_equal(array, 1)


def test_tables_of_different_length_take_turns() -> None:
    team, long, short = Team(3), Mirrors(30, 5), Mirrors(2, 50)
    for step in range(1, 30):
        team.run(long.table)
        team.run(short.table)
        long.check(step)
        short.check(step)


def test_who_comes_after_the_step_finds_it_closed() -> None:
    team, chain = Team(1), Mirrors(10, 5)
    team.run(chain.table)
    late = (chain.table, team._counters, team._state, team._generation, *team._sleep)
    team._counters[:] = 0
    walk(*late)
    chain.check(1)


def test_stragglers_of_old_steps_do_no_harm() -> None:
    team, chain = Team(2), Mirrors(10, 3)
    team.run(chain.table)
    team.run(chain.table)
    over = threading.Event()

    def straggle() -> None:
        while not over.is_set():
            walk(chain.table, team._counters, team._state, team._generation - 1, *team._sleep)

    others = [threading.Thread(target=straggle) for _ in range(2)]
    for other in others:
        other.start()
    try:
        for step in range(3, 100):
            team.run(chain.table)
            chain.check(step)
    finally:
        over.set()
        for other in others:
            other.join()


class InterruptedQueue:
    """Ctrl-C just as a worker is being called."""

    def put(self, job: Any) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_an_interrupt_ends_the_step_before_it_is_passed_on(worker: int) -> None:
    team, chain = Team(4), Mirrors(20, 2)
    team.run(chain.table)
    true_queue = team._queues[worker]
    for _ in range(20):
        team._queues[worker] = InterruptedQueue()  # type: ignore[call-overload]
        with pytest.raises(KeyboardInterrupt):
            team.run(chain.table)
        team._queues[worker] = true_queue
        # The caller may now change the table and what it works on: nobody may be at it any more.
        assert team._state[GENERATION] == 0
        for cells in chain.cells:
            cells[:] = 0
        time.sleep(0.001)
        assert not np.any(chain.cells)
        team.run(chain.table)
        chain.check(1)


def threads_named(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


def test_the_workers_go_when_the_team_does() -> None:
    gc.collect()
    time.sleep(0.05)
    before = threads_named("tinylm")
    team, chain = Team(4), Mirrors(2, 5)
    assert threads_named("tinylm") == before, "they start with the first step"
    team.run(chain.table)
    assert threads_named("tinylm") == before + 3
    del team
    gc.collect()
    deadline = time.monotonic() + 20
    while threads_named("tinylm") > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads_named("tinylm") == before


def test_the_table_is_not_kept_by_a_worker() -> None:
    team, chain = Team(2), Mirrors(2, 5)
    team.run(chain.table)
    del chain
    other = Mirrors(2, 5)
    team.run(other.table)
    other.check(1)


UNTOUCHED = """
import sys
import numba
from tinylm.engine import Engine
engine = Engine.load("tinylm/stories260k", threads=3)
engine.prefill(engine.new_sequence(), list(range(40)))
engine.decode([engine.new_sequence()], [1])
try:
    print(numba.threading_layer())
except ValueError:
    print("none")
print([name for name in sys.modules if name.rpartition(".")[2] in ("omppool", "tbbpool", "workqueue")])
try:
    maps = open("/proc/self/maps").read()
except OSError:
    maps = ""
print([name for name in ("libgomp", "libiomp", "libtbb", "libomp.") if name in maps])
"""


def test_numba_s_own_threads_are_never_touched() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNTOUCHED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n")[:3] == ["none", "[]", "[]"], done.stderr


FORKED = """
import os, sys, warnings
import numpy as np
from tinylm.engine import Engine
warnings.simplefilter("ignore")
engine = Engine.load("tinylm/stories260k", threads=3)
before = engine.logits([1, 2, 3])
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(engine.logits([1, 2, 3]), before) else 7)
sys.exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_works_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_row_has_places_for_its_operands() -> None:
    assert len(row(mirror, 1, 0, np.zeros(1, np.int64), np.zeros(1, np.int64))) == OPERANDS + 4
