"""How fast a model reads a prompt and writes on, beside what the memory delivers at that very moment.

Writing reads every weight once a token, and keys and values of all positions before it: the memory's bandwidth is
the limit. Machines are noisy (other work, heat, a shared memory), so everything that is to be compared is
measured in turns, and each sample stands between two measurements of the bandwidth.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinylm.engine import Engine, Sequence
from tinylm.formats.key_values import position_bytes
from tinylm.kernels.bandwidth import Bandwidth
from tinylm.program import Program

WARM_TOKENS = 4
"""Tokens that are written, and not counted, before anything is."""


@dataclass(frozen=True)
class Case:
    """What is timed: reading a prompt of `tokens`, or writing `tokens` behind `depth` others."""

    kind: str
    tokens: int
    depth: int = 0

    @property
    def name(self) -> str:
        """As llama.cpp's bench calls it: `pp512`, `tg128`, `tg128 @ 1024`."""
        if self.kind == "prompt":
            return f"pp{self.tokens}"
        return f"tg{self.tokens}" + (f" @ {self.depth}" if self.depth else "")

    @property
    def positions(self) -> int:
        """Positions that must fit into the model's context."""
        return self.depth + self.tokens


@dataclass(frozen=True)
class Work:
    """Bytes that a model reads and operations that it does.

    weights: bytes of matrices that a token's step reads (of an embedding that is no head, nearly nothing);
    position: bytes of keys and values, for each position before. numbers: of all matrices but the head; head: of that;
    layers, width: of attention, all query heads together.
    """

    weights: int
    position: float
    numbers: int
    head: int
    layers: int
    width: int

    @classmethod
    def of(cls, program: Program, kv_dtype: str = "float32") -> Work:
        """What the program of a model tells; kv_dtype: how keys and values are stored."""
        products = [one.matrix for one in program.operations if one.kind == "matmul"]
        matrices = [matrix for matrix in products if matrix is not None]
        return cls(
            weights=sum(matrix.nbytes for matrix in matrices),
            position=position_bytes(kv_dtype, program.layers, program.key_value_heads, program.head_dim),
            numbers=sum(math.prod(matrix.shape) for matrix in matrices[:-1]),
            head=math.prod(matrices[-1].shape),
            layers=program.layers,
            width=program.heads * program.head_dim,
        )

    def read(self, case: Case) -> float:
        """Bytes that a token of `case` reads, on average; a prompt reads the weights once in many tokens: 0."""
        return self.weights + self.position * (case.depth + case.tokens / 2) if case.kind == "generate" else 0

    def operations(self, case: Case) -> float:
        """Multiplications and additions of all tokens: attention is causal, a prompt's head is of its last."""
        first, last = case.depth, case.positions
        attention = 4 * self.layers * self.width * (last * (last + 1) - first * (first + 1)) / 2
        heads = case.tokens if case.kind == "generate" else 1
        return 2 * (case.tokens * self.numbers + heads * self.head) + attention


@dataclass(frozen=True)
class Sample:
    """One measurement: how long it took, and bytes a second that the memory gave right before and after."""

    seconds: float
    before: float
    after: float


@dataclass
class Subject:
    """A model in a format, on as many threads as its engine has. `bandwidth` is of as many threads."""

    engine: Engine
    format: str
    bandwidth: Bandwidth
    work: Work = field(init=False)

    def __post_init__(self) -> None:
        self.work = Work.of(self.engine.program, self.engine.kv_dtype)
        self._sequences: dict[int, tuple[Sequence, int]] = {}

    def fits(self, case: Case) -> bool:
        """Whether the model's context is long enough."""
        return case.positions <= self.engine.context_length

    def prepare(self, case: Case) -> None:
        """Read what stands before, and run once what will be timed, so that all is compiled and in memory."""
        if case.kind == "generate" and case.depth not in self._sequences:
            sequence, token = self.engine.new_sequence(), 0
            self.engine.reserve(sequence, case.positions)
            if case.depth:
                token = int(self.engine.prefill(sequence, self._ids(case.depth)).argmax())
            self._sequences[case.depth] = sequence, token
        tokens = case.tokens if case.kind == "prompt" else min(case.tokens, WARM_TOKENS)
        self._time(Case(case.kind, tokens, case.depth))

    def sample(self, case: Case) -> Sample:
        """One measurement of a case that was prepared."""
        before = self.bandwidth.measure()
        seconds = self._time(case)
        return Sample(seconds, before, self.bandwidth.measure())

    def _ids(self, count: int) -> list[int]:
        """Ids of no meaning, always the same."""
        ids: list[int] = np.random.default_rng(0).integers(0, self.engine.vocab_size, count).tolist()
        return ids

    def _time(self, case: Case) -> float:
        if case.kind == "prompt":
            sequence, ids = self.engine.new_sequence(), self._ids(case.tokens)
            started = time.perf_counter()
            self.engine.prefill(sequence, ids)
            return time.perf_counter() - started
        sequence, token = self._sequences[case.depth]
        sequence.truncate(case.depth)
        started = time.perf_counter()
        for _ in range(case.tokens):
            token = int(self.engine.decode([sequence], [token])[0].argmax())
        return time.perf_counter() - started


Progress = Callable[[int, int, Subject, Case], None]


@dataclass
class Measurement:
    """Samples of every subject and case, in the order in which they were asked for; it can be read at any time."""

    subjects: list[Subject]
    cases: list[Case]
    repeats: int
    samples: dict[tuple[int, Case], list[Sample]] = field(default_factory=dict)

    def pairs(self) -> Iterable[tuple[int, Case]]:
        """Every subject's place with every case that fits it: case by case, so that subjects take turns."""
        for case in self.cases:
            for place, subject in enumerate(self.subjects):
                if subject.fits(case):
                    yield place, case

    def run(self, progress: Progress | None = None) -> None:
        """Prepare everything, then `repeats` rounds. `progress(round, rounds, subject, case)`; round 0 prepares."""
        for round_number in range(self.repeats + 1):
            for place, case in self.pairs():
                subject = self.subjects[place]
                if progress is not None:
                    progress(round_number, self.repeats, subject, case)
                if not round_number:
                    subject.prepare(case)
                    continue
                self.samples.setdefault((place, case), []).append(subject.sample(case))

    def records(self) -> list[dict[str, Any]]:
        """What was found so far, such that JSON can hold it; see `record`."""
        order = [(place, case) for place in range(len(self.subjects)) for case in self.cases]
        return [
            record(self.subjects[key[0]], key[1], self.samples[key]) for key in order if key in self.samples
        ]


def record(subject: Subject, case: Case, samples: list[Sample]) -> dict[str, Any]:
    """The figures of one subject and case by their names; these stay.

    tokens_per_second, memory (bytes a second that could be read): median, min, max. bytes_per_token,
    bytes_per_second: what was read, null for a prompt. share: of the memory's bandwidth, the medians of the shares
    of the better and of the worse of the two measurements around each sample. operations_per_second: as arithmetic.
    """
    read = subject.work.read(case)
    rates = [case.tokens / sample.seconds for sample in samples]
    found: dict[str, Any] = {
        "format": subject.format,
        "kv_dtype": subject.engine.kv_dtype,
        "threads": subject.engine.threads,
        "test": case.name,
        "kind": case.kind,
        "tokens": case.tokens,
        "depth": case.depth,
        "tokens_per_second": summary(rates),
        "memory": summary([rate for sample in samples for rate in (sample.before, sample.after)]),
        "bytes_per_token": read or None,
        "bytes_per_second": read * statistics.median(rates) if read else None,
        "operations_per_second": subject.work.operations(case) / case.tokens * statistics.median(rates),
        "share": share(read * case.tokens, samples) if read else None,
        "samples": [
            {"seconds": sample.seconds, "memory_before": sample.before, "memory_after": sample.after}
            for sample in samples
        ],
    }
    return found


def share(nbytes: float, samples: list[Sample]) -> dict[str, float]:
    """Of the bandwidth, as a range: of the better and of the worse measurement beside each sample."""
    shares = [
        sorted(nbytes / sample.seconds / rate for rate in (sample.before, sample.after)) for sample in samples
    ]
    return {
        "low": statistics.median(low for low, _ in shares),
        "high": statistics.median(high for _, high in shares),
    }


def summary(values: list[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
