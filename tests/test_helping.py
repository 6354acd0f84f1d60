"""Pieces that are done again: the same bits, whoever does what again, and whenever."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinylm.cache import KeyValueCache
from tinylm.executor import Executor
from tinylm.formats.table import DTYPES
from tinylm.kernels.team import Team
from tinylm.kernels.walk import FUNCTION, HELPED, MOST_HELPED, OPERANDS, UNITS, piece_of
from tinylm.program import Program
from tinylm.step import Step, make_step

FORMATS = DTYPES[1:]
Programs = Callable[..., Program]


def steps_of(program: Program, count: int) -> list[Step]:
    """A text's first steps, of one token each."""
    cache = KeyValueCache(program.layers, program.key_value_heads, program.head_dim)
    cache.reserve(count, 0)
    ids = np.random.default_rng(count).integers(0, program.vocab_size, count).tolist()
    group = program.heads // program.key_value_heads
    return [make_step([(cache, i, [token])], group, "last") for i, token in enumerate(ids)]


def logits_of(executor: Executor, count: int) -> np.ndarray:
    """The logits after each of these steps."""
    return np.array([executor.run(step).copy() for step in steps_of(executor.program, count)])


def do(table: np.ndarray, i: int, begin: int, end: int) -> None:
    """Some units of a row."""
    operation = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    operation(int(table[i, FUNCTION]))(table.ctypes.data + 8 * (table.shape[1] * i + OPERANDS), begin, end)


class LateTeam:
    """Has every piece that may be helped done again, at any time until the step after next begins."""

    threads = 3
    helping = True

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._late: list[list[tuple[np.ndarray, int, int, int]]] = [[], []]
        self.repeated = 0

    def make_way(self) -> None:
        for share in self._late[0]:
            do(*share)

    def _do_some_late(self) -> None:
        for late in self._late:
            while late and self._random.random() < 0.3:
                do(*late.pop(self._random.integers(len(late))))
                self.repeated += 1

    def run(self, table: np.ndarray, brief: bool = False, owner: object = None) -> None:
        self.make_way()
        self._late = [self._late[1], []]
        for i, row in enumerate(table):
            for number in range(MOST_HELPED):
                begin, end = piece_of(row, number, self.threads)
                if begin >= end:
                    break
                do(table, i, begin, end)
                self._do_some_late()
                if row[HELPED] and brief:
                    self._late[1].append((table, i, begin, end))
            assert begin >= row[UNITS], "all of it is in pieces that can be told apart"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(6))
def test_pieces_done_again_later_change_nothing(random_program: Programs, seed: int, format: str) -> None:
    program = random_program(seed, format)
    team = LateTeam(seed)
    expected = logits_of(Executor(program, Team(1)), 12)
    np.testing.assert_array_equal(logits_of(Executor(program, team), 12), expected)  # type: ignore[arg-type]
    assert team.repeated > 50


@pytest.mark.parametrize("threads", [2, 7, MOST_HELPED // 2, MOST_HELPED])
@pytest.mark.parametrize("format", FORMATS)
def test_a_team_that_helps_gives_the_same_bits(random_program: Programs, format: str, threads: int) -> None:
    program = random_program(3, format)
    team = Team(threads)
    team._crowding.note = lambda naps, helps: None  # type: ignore[method-assign]
    expected = logits_of(Executor(program, team), 40)
    team._crowding.helping = True
    executor = Executor(program, team)
    np.testing.assert_array_equal(logits_of(executor, 40), expected)
    assert bool(executor._helped) == (threads < MOST_HELPED)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_a_piece_done_again_writes_nothing_else_meanwhile(
    random_program: Programs, meanwhile: Callable[..., Any], seed: int, format: str
) -> None:
    """What others read already is only ever overwritten by the same numbers."""
    program = random_program(seed, format)
    team = LateTeam(seed)
    executor = Executor(program, team)  # type: ignore[arg-type]
    executor.run(steps_of(program, 1)[0])
    (table,) = [one for one in executor._helped if one.storage.nbytes]
    memory = table.storage._array.view(np.uint32)
    before = memory.copy()

    def all_again() -> None:
        for i in np.flatnonzero(table.array[:, HELPED]).tolist():
            do(table.array, i, 0, int(table.array[i, UNITS]))

    with meanwhile(all_again):
        for _ in range(2000):
            np.testing.assert_array_equal(memory, before)


@pytest.mark.parametrize("format", FORMATS)
def test_a_step_that_follows_finds_its_caches_in_every_table(random_program: Programs, format: str) -> None:
    """Also while small memory that is given back is taken by the addresses of other caches."""
    program = random_program(1, format)
    expected = logits_of(Executor(program, Team(1)), 30)
    ids = np.random.default_rng(30).integers(0, program.vocab_size, 30).tolist()
    shape = program.layers, program.key_value_heads, program.head_dim
    cache, other = KeyValueCache(*shape), KeyValueCache(*shape)
    cache.reserve(30, 0)
    other.reserve(30, 0)
    team = Team(2)
    team._crowding.note = lambda naps, helps: None  # type: ignore[method-assign]
    executor = Executor(program, team)
    step = make_step([(cache, 0, ids[:1])], program.heads // program.key_value_heads, "last")
    kept = []
    for i, row in enumerate(expected):
        team._crowding.helping = i % 5 > 1
        assert i == 0 or step.follow([ids[i]])
        np.testing.assert_array_equal(executor.run(step)[0], row[0])
        kept += [np.array([other.row()], np.int64) for _ in range(20)]
