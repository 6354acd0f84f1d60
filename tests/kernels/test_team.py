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

from tinylm.kernels import machine_code
from tinylm.kernels.cores import default_threads
from tinylm.kernels.jit import operation
from tinylm.kernels.operands import int64_1d
from tinylm.kernels.team import OPERATIONS, Team
from tinylm.kernels.walk import (
    ACTIVE,
    AWAITED,
    CHUNK,
    FIRST,
    FUNCTION,
    GENERATION,
    LATEST,
    LINE,
    LINGER,
    NEEDED,
    OPERANDS,
    REGIONS,
    UNITS,
    walk,
)

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
    places = [0] * (OPERANDS + 4)
    places[FUNCTION], places[FIRST], places[CHUNK], places[AWAITED] = kernel.address, chunk, chunk, awaited
    places[UNITS] = len(arrays[-1]) if units is None else units
    places[OPERANDS : OPERANDS + len(operands)] = operands
    return places


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


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_what_is_asked_for_early_changes_nothing(threads: int) -> None:
    regions = np.array([[0, 4096], [8, 1], [-64, 200], [np.zeros(64).ctypes.data, 512]], np.int64)
    chain = Mirrors(20, 7)
    chain.table[::2, [NEEDED, REGIONS]] = regions.ctypes.data, len(regions)
    Team(threads).run(chain.table)
    chain.check(1)


def test_tables_of_different_length_take_turns() -> None:
    team, long, short = Team(3), Mirrors(30, 5), Mirrors(2, 50)
    for step in range(1, 30):
        team.run(long.table)
        team.run(short.table)
        long.check(step)
        short.check(step)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("first", [0, 1, 30, 99, CELLS, 3 * CELLS])
def test_the_first_chunk_of_each_thread_may_be_larger(threads: int, first: int) -> None:
    team, chain = Team(threads), Mirrors(40, 7)
    chain.table[:, FIRST] = first
    for step in range(1, 11):
        team.run(chain.table)
        chain.check(step)


def test_who_comes_after_the_step_finds_it_closed() -> None:
    team, chain = Team(1), Mirrors(10, 5)
    team.run(chain.table)
    team._counters[:] = 0
    walk(team._here, int(team._state[LATEST]), 1)
    chain.check(1)


def test_stragglers_of_old_steps_do_no_harm() -> None:
    team, chain = Team(2), Mirrors(10, 3)
    team.run(chain.table)
    team.run(chain.table)
    over = threading.Event()

    def straggle() -> None:
        while not over.is_set():
            walk(team._here, int(team._state[LATEST]) - 1, 1)

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


# From one step to the next


def lingering(threads: int, looks: int) -> Team:
    """A team whose workers look so often for the next step before they sleep, cores or none."""
    team = Team(threads)
    team._state[LINGER] = looks
    return team


@pytest.mark.parametrize("threads", range(2, 9))
@pytest.mark.parametrize("looks", [0, 1, 40, 1000])
def test_steps_at_odd_times_while_workers_fall_asleep(threads: int, looks: int) -> None:
    random = np.random.default_rng(threads + looks)
    team, chain, small = lingering(threads, looks), Mirrors(4, 13), Mirrors(2, CELLS)
    small.table[:, FIRST] = 50
    for step in range(1, 400):
        for table in (chain.table, small.table):
            team.run(table)
            pause = random.integers(4)  # nothing, some of Python, a moment of sleep
            if pause == 1:
                sum(range(int(random.integers(20_000))))
            elif pause == 2 and step % 4 == 0:
                time.sleep(float(random.random()) * 1e-3)
        chain.check(step)
        small.check(step)


def test_many_teams_take_turns_and_run_at_once() -> None:
    teams = [lingering(threads, looks) for threads in (2, 3, 5) for looks in (0, 500, 20_000)]
    chains = [Mirrors(6, 9) for _ in teams]
    for step in range(1, 60):
        for team, chain in zip(teams, chains, strict=True):
            team.run(chain.table)
            chain.check(step)

    def work(team: Team, chain: Mirrors) -> None:
        for step in range(60, 160):
            team.run(chain.table)
            chain.check(step)

    callers = [threading.Thread(target=work, args=pair) for pair in zip(teams, chains, strict=True)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for chain in chains:
        chain.check(159)


def test_what_is_needed_beside_other_programs_is_compiled_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the compiler in the middle of a text, when helping begins."""
    asked: list[str] = []
    own = machine_code.address_of
    monkeypatch.setattr(
        machine_code, "address_of", lambda function: asked.append(function.__name__) or own(function)
    )
    for one in OPERATIONS:
        monkeypatch.setattr(one, "_address", None)
        monkeypatch.setattr(one, "_call", None)
    cells = np.zeros(CELLS, np.int64)
    table, team = np.array([row(count, 1, CELLS, cells)], np.int64), Team(2)
    team.run(table)
    assert "make_way_operation" in asked
    asked.clear()
    team.run(table, brief=True, owner=table)
    team.make_way()
    team.run(table)
    assert not asked
    assert (cells == 3).all()


def test_what_a_step_worked_on_may_go_at_once() -> None:
    """Workers that linger look at nothing of the step before, and take the next one's table and counters."""
    team = lingering(4, 20_000)
    for step in range(300):
        chain = Mirrors(2 * (1 + step % 7), 11)
        team.run(chain.table)
        chain.check(1)
        chain.table[:] = -1
        for cells in chain.cells:
            cells[:] = -1


def test_a_worker_that_was_asleep_helps_again() -> None:
    team = lingering(2, 100_000)  # long enough to be seen awake after a step
    slow, seen = Mirrors(20_000, 10), set()
    for _ in range(30):
        team.run(slow.table)
        seen.add(awake(team))
        if seen == {True}:
            break
        time.sleep(0.01)
    deadline = time.monotonic() + 20
    while awake(team) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not awake(team), "it looks for a step for a bounded while"
    helped = False
    while not helped and time.monotonic() < deadline:
        team.run(slow.table)
        helped = awake(team)  # it may sleep again at any moment
    assert helped


def awake(team: Team) -> bool:
    return any(team._workers.awake(worker) for worker in range(team.threads - 1))


def test_who_shares_a_core_does_not_look_for_work() -> None:
    assert Team(default_threads())._state[LINGER] > 0
    assert Team(default_threads() + 1)._state[LINGER] == 0


class InterruptedLock:
    """Ctrl-C just as a worker is being called."""

    def locked(self) -> bool:
        raise KeyboardInterrupt


def interrupted(team: Team, table: np.ndarray, worker: int) -> bool:
    """A step in which the call of a worker is interrupted; False if it had just got up and was not called."""
    beds = team._workers.beds
    true_bed, beds[worker] = beds[worker], InterruptedLock()  # type: ignore[call-overload]
    try:
        team.run(table)
    except KeyboardInterrupt:
        return True
    finally:
        beds[worker] = true_bed
    return False


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_an_interrupt_ends_the_step_before_it_is_passed_on(worker: int) -> None:
    team, chain = Team(4), Mirrors(20, 2)
    team.run(chain.table)
    deadline = time.monotonic() + 60
    interrupts = 0
    while interrupts < 20 and time.monotonic() < deadline:
        while awake(team):
            time.sleep(0.001)
        if not interrupted(team, chain.table, worker):
            continue
        interrupts += 1
        # The caller may now change the table and what it works on: nobody may be at it any more.
        assert team._state[GENERATION] == team._state[ACTIVE] == team._state[ACTIVE + LINE] == 0
        for cells in chain.cells:
            cells[:] = 0
        time.sleep(0.001)
        assert not np.any(chain.cells)
        team.run(chain.table)
        chain.check(1)
    assert interrupts == 20


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
for _ in range(20):  # while workers still look for the next step
    engine.logits([1, 2, 3])
    child = os.fork()
    if child == 0:
        import threading
        same = np.array_equal(engine.logits([1, 2, 3]), before)
        os._exit(0 if same and threading.active_count() == 3 else 7)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_workers_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_row_has_places_for_its_operands() -> None:
    assert len(row(mirror, 1, 0, np.zeros(1, np.int64), np.zeros(1, np.int64))) == OPERANDS + 4
