"""Kernels on a team beside the machine's limits: taken in turns, medians with their spread, JSON at the end.

A bench of `bench/kernels` makes a `Bench`, adds cases and calls `run`. What a case is held against is measured in
the same round as the case, for a shared machine is twice as fast in one second as in the next:

- "read": a team that only reads as many bytes, from memory or from a cache as the case does
- "multiply": NumPy's float32 matrix product
- "empty": operations that do nothing, as many
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.machine import Limits, describe
from tinylm.kernels.bandwidth import BLOCK, block_sums_operation
from tinylm.kernels.jit import Operation, operation
from tinylm.kernels.team import Team
from tinylm.kernels.walk import AWAITED, CHUNK, FUNCTION, OPERANDS, UNITS

PLACES = OPERANDS + 20
SHORTEST = 2e-3
"""Seconds: work is repeated within a run until it takes as long, so that waking the threads does not count."""

LARGEST_READ = 2**28


@operation
def nothing(operands: Any, begin: int, end: int) -> None:
    """No operands."""
    return


def float_bits(number: float) -> int:
    """A float32 as the integer of its bits, as operations take it."""
    return int(np.float32(number).view(np.int32))


def row(kernel: Operation, units: int, chunk: int, *operands: Any) -> list[int]:
    """A row of a table: `units` of work in chunks; arrays become address and shape, floats their bits."""
    values: list[int] = []
    for operand in operands:
        if isinstance(operand, np.ndarray):
            values += [operand.ctypes.data, *operand.shape]
        else:
            values.append(float_bits(operand) if isinstance(operand, float) else int(operand))
    places = np.zeros(PLACES, np.int64)
    places[[FUNCTION, UNITS, CHUNK, AWAITED]] = kernel.address, units, max(1, chunk), units
    places[OPERANDS : OPERANDS + len(values)] = values
    return places.tolist()


@dataclass
class Case:
    """Something to be timed: `work(times)` does it so many times. `amount` is bytes or float operations."""

    name: str
    work: Callable[[int], None]
    against: str
    amount: float
    times: int = 1


class Bench:
    """Cases on a team, and what they are held against."""

    def __init__(self, name: str, description: str, argv: Sequence[str] | None = None) -> None:
        parser = argparse.ArgumentParser(description=description.splitlines()[0])
        parser.add_argument("--threads", type=int, help="default: as many as are worth having")
        parser.add_argument("--rounds", type=int, default=15)
        parser.add_argument("--quick", action="store_true", help="small and short, to see that it runs")
        arguments = parser.parse_args(argv)
        self.name, self.quick = name, arguments.quick
        self.rounds = 2 if self.quick else arguments.rounds
        self.team = Team(arguments.threads)
        self.random = np.random.default_rng(0)
        self._limits = Limits(self.team.threads)
        self._cases: list[Case] = []
        self._kept: list[Any] = []

    def size(self, large: int) -> int:
        """A number of rows, or few of them in a quick run."""
        return max(96, large // 96 // 64 * 96) if self.quick else large

    def numbers(self, *shape: int) -> np.ndarray:
        """Random float32, kept as long as the bench."""
        found = self.random.standard_normal(shape, np.float32)
        self._kept.append(found)
        return found

    def keep(self, array: np.ndarray) -> np.ndarray:
        """An array whose address stands in a table."""
        self._kept.append(array)
        return array

    def add(self, name: str, rows: list[list[int]], *, read: float = 0, multiply: float = 0) -> None:
        """A case of the rows of a table; `read` bytes or `multiply` float operations, else it is nearly empty."""
        against = "read" if read else "multiply" if multiply else "empty"
        self._cases.append(Case(name, self._walk(rows), against, read or multiply or len(rows)))

    def _walk(self, rows: list[list[int]]) -> Callable[[int], None]:
        """Rows of a table, so many times in one step; the tables are made once."""
        one = np.array(rows, np.int64)
        tables: dict[int, np.ndarray] = {}

        def work(times: int) -> None:
            if times not in tables:
                tables[times] = np.tile(one, (times, 1))
            self.team.run(tables[times])

        return work

    def add_call(
        self, name: str, call: Callable[[], object], *, read: float = 0, multiply: float = 0
    ) -> None:
        """A case of any call, such as NumPy's way of doing the same."""

        def work(times: int) -> None:
            for _ in range(times):
                call()

        against = "read" if read else "multiply" if multiply else "empty"
        self._cases.append(Case(name, work, against, read or multiply or 1))

    def _reader(self, size: float) -> Callable[[int], None]:
        blocks = max(1, int(min(size, LARGEST_READ)) // (8 * BLOCK))
        words, sums = self.keep(np.ones(blocks * BLOCK, np.int64)), self.keep(np.zeros(blocks, np.int64))
        return self._walk([row(block_sums_operation, blocks, 1, words, sums)])

    def _limit(self, case: Case, readers: dict[int, Callable[[int], None]]) -> float:
        """Seconds that the case would take at its limit, right now."""
        if case.against == "multiply":
            return case.amount / self._limits.multiplication()
        if case.against == "read":
            size = max(8 * BLOCK, int(min(case.amount, LARGEST_READ)) // (8 * BLOCK) * 8 * BLOCK)
            if size not in readers:
                readers[size] = self._reader(size)
            times = max(1, int(SHORTEST * 2e10 / size))
            readers[size](1)
            return seconds(readers[size], times) * case.amount / size
        if 0 not in readers:
            readers[0] = self._walk([row(nothing, 0, 1)])
        return seconds(readers[0], int(case.amount) * case.times) * case.amount

    def run(self) -> None:
        """Measure all cases in turns, and print them."""
        machine = describe(self.team.threads)
        print(
            f"{self.name}: {machine['processor']}, {machine['threads']} threads of {machine['cores']} cores"
        )
        for case in self._cases:
            case.work(1)
            once = seconds(case.work, 1)
            case.times = max(1, int((SHORTEST / 8 if self.quick else SHORTEST) / max(once, 1e-7)))
            case.work(case.times)
        bandwidths, readers = [], {}
        times: dict[str, list[float]] = {case.name: [] for case in self._cases}
        limits: dict[str, list[float]] = {case.name: [] for case in self._cases}
        for _ in range(self.rounds):
            bandwidths.append(self._limits.bandwidth())
            for case in self._cases:
                before = self._limit(case, readers)
                times[case.name].append(seconds(case.work, case.times))
                limits[case.name].append((before + self._limit(case, readers)) / 2)
        low, middle, high = spread(bandwidths)
        print(f"memory reads {middle / 1e9:.1f} GB/s ({low / 1e9:.1f}-{high / 1e9:.1f})\n")
        records = [self._report(case, times[case.name], limits[case.name]) for case in self._cases]
        record = {"bench": self.name, "machine": machine, "bandwidth": middle, "cases": records}
        print(json.dumps(record))

    def _report(self, case: Case, times: list[float], limits: list[float]) -> dict[str, Any]:
        low, middle, high = spread(times)
        shares = spread([limit / taken for limit, taken in zip(limits, times, strict=True)])
        unit = {"read": "GB/s", "multiply": "GFLOP/s"}.get(case.against, "")
        rate = f"{case.amount / middle / 1e9:8.1f} {unit:7}" if unit else " " * 16
        print(
            f"{case.name:38} {middle * 1e6:10.2f} us ({low * 1e6:.2f}-{high * 1e6:.2f}) {rate} "
            f"{shares[1]:6.0%} of {case.against} ({shares[0]:.0%}-{shares[2]:.0%})"
        )
        return {
            "case": case.name,
            "seconds": {"low": low, "median": middle, "high": high},
            "amount": case.amount,
            "against": case.against,
            "share": {"low": shares[0], "median": shares[1], "high": shares[2]},
        }


def seconds(work: Callable[[int], None], times: int) -> float:
    """How long one of so many takes."""
    started = time.perf_counter()
    work(times)
    return (time.perf_counter() - started) / times


def spread(values: list[float]) -> tuple[float, float, float]:
    """The tenth part from below, the median, the tenth from above."""
    ordered = sorted(values)
    tenth = len(ordered) // 10
    return ordered[tenth], statistics.median(ordered), ordered[-1 - tenth]
