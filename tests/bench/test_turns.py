"""Who takes turns meets the same prompts, and none that it can remember."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


class Remembers:
    """A runner that keeps every prompt it was given."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.token, self.prompts = name, 5, list[list[int]]()
        self.seconds = seconds

    def prefill(self, ids: list[int]) -> float:
        self.prompts.append(ids)
        return self.seconds

    def decode(self, ids: list[int], count: int) -> float:
        return 1.0


class Limits:
    """Ones."""

    def bandwidth(self) -> float:
        return 1.0

    multiplication = bandwidth


def test_no_prompt_begins_as_another_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    import turns

    monkeypatch.setattr(turns, "PAUSE", 0)
    runners = [Remembers("one", turns.ENOUGH / 2), Remembers("other", turns.ENOUGH / 2)]
    runners.append(Remembers("slow", turns.ENOUGH + 1))
    cases = [turns.Case("prefill", 20), turns.Case("decode", 16), turns.Case("prefill", 50)]
    limits: Any = Limits()
    samples, last = turns.take_turns(runners, cases, 2, limits, 1000)
    assert {key: len(found) for key, found in samples.items()} == {
        (case.name, runner.name): 2 for case in cases for runner in runners
    }
    assert {one.seconds for one in samples["prefill 20", "one"]} == {turns.ENOUGH / 2}
    assert last == {"one": 5, "other": 5, "slow": 5}
    one, other, slow = (runner.prompts for runner in runners)
    assert one == other
    assert slow == one[::2]
    assert [len(ids) for ids in one] == [20, 20, 50, 50] * 3
    for first, second in itertools.combinations(one, 2):
        assert first[:4] != second[:4]
    sys.modules.pop("turns")
