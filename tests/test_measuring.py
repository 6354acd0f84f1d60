"""What is counted as read and as computed, the share as a range, and the order of the turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinylm.checkpoint import Checkpoint
from tinylm.engine import Engine
from tinylm.kernels.bandwidth import Bandwidth
from tinylm.measuring import Case, Measurement, Sample, Subject, Work, record, share

STORIES = Path(__file__).resolve().parent.parent / "tinylm" / "stories260k"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(STORIES, threads=1)


def test_names_are_those_of_llama_bench() -> None:
    cases = [Case("prompt", 512), Case("generate", 128), Case("generate", 128, 1024)]
    assert [case.name for case in cases] == ["pp512", "tg128", "tg128 @ 1024"]


def test_bytes_are_those_of_the_file(engine: Engine) -> None:
    work = Work.of(engine.program)
    with Checkpoint(STORIES) as checkpoint:
        matrices = sum(info.nbytes for info in checkpoint.tensors.values() if len(info.shape) == 2)
    # The embedding is the head too, so every matrix of the file is read once a token.
    assert work.weights == matrices
    cache = engine.new_sequence().cache
    sizes = []
    for length in (96, 288):  # whole records
        cache.reserve(length, 0)
        sizes.append(cache.nbytes)
    assert work.position == (sizes[1] - sizes[0]) / 192
    assert work.read(Case("generate", 8, 100)) == matrices + 104 * work.position
    assert work.read(Case("prompt", 8)) == 0


def test_operations_are_those_of_every_product_and_of_causal_attention(engine: Engine) -> None:
    work = Work.of(engine.program)
    layers, width, vocabulary, D = 5, 64, 512, 64
    body = layers * (2 * D * D + 2 * D * D // 2 + 3 * D * 172)
    for tokens in (1, 7):
        attended = sum(range(1, tokens + 1))
        expected = 2 * (tokens * body + vocabulary * D) + 4 * layers * width * attended
        assert work.operations(Case("prompt", tokens)) == expected
    # one token behind six, as the seventh of seven, but for the head of the six
    alone = work.operations(Case("generate", 1, 6))
    assert (
        alone == work.operations(Case("prompt", 7)) - work.operations(Case("prompt", 6)) + 2 * vocabulary * D
    )


def test_the_share_is_a_range() -> None:
    samples = [Sample(1.0, 100.0, 50.0), Sample(0.5, 200.0, 400.0), Sample(2.0, 25.0, 100.0)]
    # of 40 bytes: 40 / 100 to 40 / 50, 80 / 400 to 80 / 200, 20 / 100 to 20 / 25
    assert share(40, samples) == {"low": pytest.approx(0.2), "high": pytest.approx(0.8)}


class Deaf:
    """Stands for a subject that remembers what it was asked."""

    def __init__(self, name: str, context: int, told: list[tuple[str, str, str]]) -> None:
        self.name, self.context, self.told = name, context, told

    def fits(self, case: Case) -> bool:
        return case.positions <= self.context

    def prepare(self, case: Case) -> None:
        self.told.append((self.name, "prepare", case.name))

    def sample(self, case: Case) -> Sample:
        self.told.append((self.name, "sample", case.name))
        return Sample(1.0, 1.0, 1.0)


def test_subjects_take_turns() -> None:
    told: list[tuple[str, str, str]] = []
    subjects: Any = [Deaf("a", 100, told), Deaf("b", 10, told)]
    measurement = Measurement(subjects, [Case("prompt", 10), Case("generate", 4, 20)], repeats=2)
    seen = []
    measurement.run(lambda number, rounds, subject, case: seen.append((number, rounds)))
    one_round = [("a", "pp10"), ("b", "pp10"), ("a", "tg4 @ 20")]
    assert [(name, case) for name, kind, case in told if kind == "prepare"] == one_round
    assert [(name, case) for name, kind, case in told if kind == "sample"] == 2 * one_round
    assert seen == [(0, 2)] * 3 + [(1, 2)] * 3 + [(2, 2)] * 3
    assert {key: len(found) for key, found in measurement.samples.items()} == {
        (0, Case("prompt", 10)): 2, (1, Case("prompt", 10)): 2, (0, Case("generate", 4, 20)): 2,
    }  # fmt: skip


def test_a_subject_writes_behind_what_it_read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(engine, "float32", Bandwidth(engine.executor.team, size=2**20))
    lengths: list[int] = []
    real = engine.decode

    def decode(sequences: Any, ids: Any) -> Any:
        lengths.append(len(sequences[0]))
        return real(sequences, ids)

    monkeypatch.setattr(engine, "decode", decode)
    case = Case("generate", 3, 20)
    subject.prepare(case)
    lengths.clear()
    samples = [subject.sample(case) for _ in range(2)]
    assert lengths == [20, 21, 22, 20, 21, 22]
    found = record(subject, case, samples)
    expected = np.median([3 / sample.seconds for sample in samples])
    assert found["tokens_per_second"]["median"] == pytest.approx(expected)
    assert found["bytes_per_second"] == pytest.approx(
        found["bytes_per_token"] * found["tokens_per_second"]["median"]
    )
