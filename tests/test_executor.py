"""The compiled executor against the reference: every operation, any order that the waits allow, any team."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import tinylm.storage
from tinylm import executor as executor_module
from tinylm.cache import KeyValueCache
from tinylm.executor import Executor
from tinylm.formats.key_values import KV_DTYPES, KeyValueFormat, key_value_format
from tinylm.formats.table import DTYPES
from tinylm.kernels.team import Team
from tinylm.kernels.walk import (
    AWAITED,
    CHUNK,
    FIRST,
    FUNCTION,
    NEEDED,
    OPERANDS,
    REGIONS,
    UNITS,
)
from tinylm.lowering import Address, Lowering
from tinylm.program import Buffer, Operation, Program
from tinylm.reference import run_reference
from tinylm.step import Step, make_step

FORMATS = DTYPES[1:]
V = 37
Programs = Callable[..., Program]


STEPS: dict[str, list[tuple[int, int]]] = {
    "one token": [(0, 1)],
    "a later token": [(14, 1)],
    "a prompt": [(0, 21)],
    "a chunk": [(9, 45)],
    "two texts decode": [(3, 1), (70, 1)],
    "texts come and go": [(0, 19), (30, 1), (5, 4)],
}
"""For each sequence: positions before the step, tokens in it."""


def step_of(
    program: Program,
    sequences: list[tuple[int, int]],
    logits: Any = "all",
    kv_format: KeyValueFormat | None = None,
) -> Step:
    """A step whose caches hold random keys and values before it; the same ones every time."""
    random = np.random.default_rng(5)
    parts = []
    for used, count in sequences:
        cache = KeyValueCache(program.layers, program.key_value_heads, program.head_dim, kv_format)
        cache.reserve(used + count, 0)
        shape = (used, program.key_value_heads, program.head_dim)
        for layer in range(program.layers):
            cache.write(layer, np.arange(used), *random.standard_normal((2, *shape), np.float32))
        parts.append((cache, used, random.integers(0, V, count)))
    return make_step(parts, program.heads // program.key_value_heads, logits)


def until(program: Program, operation: Operation) -> Program:
    """The program up to an operation, which is then its output."""
    short = copy.copy(program)
    short.operations = program.operations[: program.operations.index(operation) + 1]
    return short


@pytest.mark.parametrize("sequences", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("seed", range(3))
def test_every_operation_computes_what_its_reference_does(
    random_program: Programs, seed: int, sequences: list[tuple[int, int]]
) -> None:
    program = random_program(seed)
    expected = run_reference(program, step_of(program, sequences))
    for operation in program.operations:
        found = Executor(until(program, operation), Team(1)).run(step_of(program, sequences))
        reference = expected[operation.output.name]
        np.testing.assert_allclose(
            found, reference, rtol=0, atol=1e-5 * np.abs(reference).max(), err_msg=str(operation)
        )


def test_together_the_programs_have_every_kind_of_operation(random_program: Programs) -> None:
    kinds = {operation.kind for seed in range(3) for operation in random_program(seed).operations}
    assert kinds == {name.removeprefix("_lower_") for name in vars(Lowering) if name.startswith("_lower_")}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(6))
def test_logits_and_caches_are_those_of_the_reference(
    random_program: Programs, seed: int, format: str
) -> None:
    program = random_program(seed, format)
    executor = Executor(program, Team(2))
    for sequences in STEPS.values():
        step, other = (step_of(program, sequences) for _ in range(2))
        expected, found = run_reference(program, other)["logits"], executor.run(step)
        # where an activation has to be rounded in the middle between two integers, a last bit decides
        share = {"int8": 0.01, "int4": 0.02}.get(format, 1e-5)
        assert np.abs(found - expected).max() < share * np.abs(expected).max()
        for mine, theirs in zip(step.caches, other.caches, strict=True):
            for layer in range(program.layers):
                held = mine.read(layer, mine.capacity), theirs.read(layer, theirs.capacity)
                for one, two in zip(*held, strict=True):
                    np.testing.assert_allclose(one, two, atol=10 * share)


@pytest.mark.parametrize("name", KV_DTYPES)
@pytest.mark.parametrize("seed", range(6))
def test_keys_and_values_are_rounded_as_the_reference_does(
    random_program: Programs, seed: int, name: str
) -> None:
    program = random_program(seed)
    kv_format = key_value_format(name)
    executor = Executor(program, Team(2), kv_format)
    for sequences in STEPS.values():
        step, other = (step_of(program, sequences, kv_format=kv_format) for _ in range(2))
        expected, found = run_reference(program, other)["logits"], executor.run(step)
        # a last bit of a key may fall on the other side of a tie, in the layers after the first; and int8 rounds
        # what it meets keys and values with, to a byte where there is much of it
        share = {"float32": 1e-5, "bfloat16": 2e-3, "float16": 3e-4, "int8": 5e-2}[name]
        assert np.abs(found - expected).max() < share * np.abs(expected).max()


@pytest.mark.parametrize("logits", ["all", "last", [0], [4, 2, 2]], ids=str)
def test_only_the_chosen_tokens_have_logits(random_program: Programs, logits: Any) -> None:
    program = random_program(1)
    executor = Executor(program, Team(1))
    everything = executor.run(step_of(program, [(0, 3), (8, 2)])).copy()
    chosen = {"all": range(5), "last": [2, 4]}.get(str(logits), logits)
    found = executor.run(step_of(program, [(0, 3), (8, 2)], logits))
    np.testing.assert_allclose(found, everything[list(chosen)], atol=1e-5)


@pytest.mark.parametrize("chosen", [[], [0, 0, 0]])
def test_a_single_token_whose_logits_are_not_wanted_once(random_program: Programs, chosen: list[int]) -> None:
    program = random_program(1)
    executor = Executor(program, Team(1))
    expected = executor.run(step_of(program, [(8, 1)])).copy()
    found = executor.run(step_of(program, [(8, 1)], chosen))
    assert found.shape == (len(chosen), V)
    np.testing.assert_allclose(found, np.repeat(expected, len(chosen), axis=0), atol=1e-5)


# Waiting: in what order may things happen?


class ShuffledTeam:
    """Does the shares of a table in an order that a team might, given its waits; and the worst at that."""

    threads = 3
    helping = False

    def __init__(self, seed: int | None) -> None:
        self._random = np.random.default_rng(seed) if seed is not None else None
        self.storage: list[np.ndarray] = []

    def shares(self, table: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """(row, begin, end), group after group."""
        group: list[tuple[int, int, int]] = []
        units = 0
        for i, row in enumerate(table):
            assert row[CHUNK] > 0
            steps = range(0, int(row[UNITS]), int(row[CHUNK]))
            group += [(i, begin, min(begin + int(row[CHUNK]), int(row[UNITS]))) for begin in steps]
            units += int(row[UNITS])
            if row[AWAITED] or i == len(table) - 1:
                assert row[AWAITED] == units, "it waits for all of the group, or for ever"
                if self._random is not None:
                    self._random.shuffle(group)
                yield from group
                group, units = [], 0

    def run(self, table: np.ndarray, brief: bool = False, owner: object = None) -> None:
        for array in self.storage:
            array[:] = np.nan  # what is read before it is written shows
        operation = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        for i, begin, end in self.shares(table):
            address = table.ctypes.data + 8 * (table.shape[1] * i + OPERANDS)
            operation(int(table[i, FUNCTION]))(address, begin, end)


def run_shuffled(program: Program, sequences: list[tuple[int, int]], seed: int | None) -> np.ndarray:
    team = ShuffledTeam(seed)
    executor = Executor(program, team)  # type: ignore[arg-type]
    executor.run(step_of(program, sequences))  # reserves the storage
    team.storage = [table.storage._array for table in executor._tables]
    assert any(array.size for array in team.storage)
    return executor.run(step_of(program, sequences)).copy()


@pytest.mark.parametrize("sequences", [STEPS["a later token"], STEPS["texts come and go"], [(0, 60)]])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(6))
def test_any_order_that_the_waits_allow_gives_the_same_bits(
    random_program: Programs, seed: int, format: str, sequences: list[tuple[int, int]]
) -> None:
    program = random_program(seed, format)
    expected = run_shuffled(program, sequences, None)
    assert np.isfinite(expected).all()
    for order in range(5):
        np.testing.assert_array_equal(run_shuffled(program, sequences, order), expected)


@pytest.mark.parametrize("seed", range(8))
def test_the_end_of_a_group_asks_for_what_the_next_begins_with(random_program: Programs, seed: int) -> None:
    program = random_program(seed, FORMATS[seed % 4])
    table = executor_module._Table(program, True, 2, key_value_format("float32"))
    vectors = {
        vector.ctypes.data for operation in program.operations for vector in operation.vectors.values()
    }
    ends = np.flatnonzero(table._waits)
    begins_with = table.rows[: ends[0] + 1]
    asked = {vector.ctypes.data for row in begins_with for one in (row, *row.chain) for vector in one.vectors}
    for end, last in pairwise(ends):
        count = int(table.array[end, REGIONS])
        place = ctypes.cast(int(table.array[end, NEEDED]), ctypes.POINTER(ctypes.c_int64))
        regions = np.ctypeslib.as_array(place, (count, 2)).tolist()
        rows = [table.array[i:].ctypes.data for i in range(end + 1, last + 1)]
        for i, row in enumerate(table.rows[end + 1 : last + 1], end + 1):
            rows += [int(table.array[i, OPERANDS]) + table.array[0].nbytes * k for k in range(len(row.chain))]
        for row in rows:
            assert any(
                begin <= row and row + table.array[0].nbytes <= begin + size for begin, size in regions
            )
        asked |= {begin for begin, _ in regions}
    assert vectors <= asked


@pytest.mark.parametrize("single", [True, False])
def test_matrices_that_are_not_waited_for_one_by_one_are_taken_in_halves(
    random_program: Programs, single: bool
) -> None:
    program = random_program(0, "int8")
    table = executor_module._Table(program, single, 2, key_value_format("float32"))
    for row, first, waited in zip(table.rows, table._first, table._waits, strict=True):
        if isinstance(row.units, int) and not row.chain:
            whole = -(-row.units // row.grain)
            assert first == row.grain * (max(1, int(0.4 * whole)) if waited else -(-whole // 2))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_each_thread_first_takes_a_stretch_of_the_keys_and_values(
    random_program: Programs, threads: int
) -> None:
    program, kv_format = random_program(2), key_value_format("int8")
    executor = Executor(program, Team(threads), kv_format)
    executor.run(step_of(program, [(1500, 1)], kv_format=kv_format))
    table = executor._tables[True]
    found = [
        (row[UNITS], row[FIRST], row[CHUNK])
        for row, kernel in zip(table.array, table.rows, strict=True)
        if kernel.kernel is kv_format.attention
    ]
    units = 8 * program.key_value_heads
    assert found == [(units, int(0.8 * units / threads), 1)] * program.layers


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_no_two_rows_that_run_together_touch_the_same_memory(
    random_program: Programs, seed: int, single: bool
) -> None:
    program = random_program(seed, FORMATS[seed % 4])
    table = executor_module._Table(program, single, 4, key_value_format("float32"))
    room = {"T": 9, "packed T": 41, "L": 2, "packed L": 34, "parts": 7}
    begin, _ = table.storage._lay_out(room)

    def places(buffers: tuple[Buffer, ...]) -> set[int]:
        stretches = [(begin[one.name], room[one.rows] * one.width) for one in buffers if one.width]
        return {place for first, size in stretches for place in range(first, first + size)} | {
            -1 - int(one.name.split()[1]) for one in buffers if not one.width
        }

    group: list[tuple[set[int], set[int]]] = []
    for row, waits in zip(table.rows, table._waits, strict=True):
        operands = [part for one in row.chain or (row,) for part in one.operands]
        named = {part for part in operands if isinstance(part, Buffer)}
        named |= {part.buffer for part in operands if isinstance(part, Address)}
        declared = {buffer for buffer in (*row.reads, *row.writes) if buffer.width}
        assert named == declared, f"{row.kernel.name} says what it touches"
        reads, writes = places(row.reads), places(row.writes)
        for earlier_reads, earlier_writes in group:
            assert not earlier_writes & (reads | writes), "reads or writes what another writes"
            assert not earlier_reads & writes, "writes what another reads"
        group.append((reads, writes))
        if waits:
            group = []
    assert table._waits[-1]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(4))
def test_the_number_of_threads_changes_no_bit(random_program: Programs, seed: int, format: str) -> None:
    program = random_program(seed, format)
    executors = [Executor(program, Team(threads)) for threads in (1, 2, 3, 7)]
    for sequences in [*STEPS.values(), [(0, 100)]]:
        first, *others = [executor.run(step_of(program, sequences)).copy() for executor in executors]
        for other in others:
            np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(4))
def test_where_in_memory_the_buffers_lie_changes_no_bit(
    random_program: Programs, seed: int, format: str
) -> None:
    program = random_program(seed, format)
    sequences, random = STEPS["a later token"], np.random.default_rng(0)
    expected = Executor(program, Team(1)).run(step_of(program, sequences)).copy()
    kept: list[Any] = []
    for _ in range(20):
        kept += [np.empty(int(size), np.float32) for size in random.integers(1, 200, 20)]
        kept.append(Executor(program, Team(1)))
        np.testing.assert_array_equal(kept[-1].run(step_of(program, sequences)), expected)


# One executor, many steps


def test_steps_of_any_size_follow_each_other(random_program: Programs) -> None:
    program = random_program(2)
    executor = Executor(program, Team(2))
    for sequences in [*STEPS.values(), [(0, 130)], *STEPS.values(), [(0, 2)] * 5, [(300, 1)]]:
        expected = Executor(program, Team(1)).run(step_of(program, sequences))
        np.testing.assert_array_equal(executor.run(step_of(program, sequences)), expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize(
    ("place", "when"),
    [
        ("storage.aligned", 0),
        ("storage.Storage._lay_out", 0),
        ("storage.Storage.address", 0),
        ("storage.Storage.address", 3),
        ("executor._Table._share", 0),
    ],
)
def test_an_interrupted_preparation_leaves_nothing_half_done(
    random_program: Programs,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    place: str,
    when: int,
) -> None:
    program = random_program(2)
    executor = Executor(program, Team(2))
    small, large = [(0, 3)], [(0, 70), (0, 5)]
    expected = {len(one): executor.run(step_of(program, one)).copy() for one in (small, large)}
    executor = Executor(program, Team(2))
    executor.run(step_of(program, small))
    owner: Any = tinylm
    *path, name = place.split(".")
    for part in path:
        owner = getattr(owner, part)
    true = getattr(owner, name)
    calls = 0

    def fail(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > when:
            raise error
        return true(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        for _ in range(2):
            with pytest.raises(error):
                executor.run(step_of(program, large))
            calls = 0
            when = 0
    for one in (small, large, small):
        np.testing.assert_array_equal(executor.run(step_of(program, one)), expected[len(one)])
