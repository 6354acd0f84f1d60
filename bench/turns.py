"""Runners take turns at the same cases, and each sample stands between two measurements of its limit.

Decoding is limited by reading the weights and the cache once a token: its limit is the memory's bandwidth.
Reading a prompt is limited by multiplication: its limit is NumPy's float32 matrix product.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from machine import Limits

from tinylm import measuring
from tinylm.measuring import Sample, Work, summary

TOKENS = 32
"""Tokens that are written in a sample."""

DEPTH_TOGETHER = 16
"""Tokens before those that several texts write together."""

PAUSE = 0.3
"""Seconds before each sample, in which the threads of the one before fall asleep."""

ENOUGH = 2.0
"""Seconds of reading that make a sample of prompts: cores of a shared machine change their speed within one."""

KINDS = ("decode", "prefill", "together")


@dataclass(frozen=True)
class Case:
    """`decode` after so many tokens, `prefill` of so many, `together` so many texts."""

    kind: str
    length: int

    @property
    def name(self) -> str:
        """`decode 16`."""
        return f"{self.kind} {self.length}"

    @property
    def title(self) -> str:
        """The name in words."""
        if self.kind == "together":
            return f"{self.length} texts together, after {DEPTH_TOGETHER} tokens"
        return f"{self.kind} {'after' if self.kind == 'decode' else 'of'} {self.length:,} tokens"

    @property
    def prompt(self) -> int:
        """Tokens that are read."""
        return DEPTH_TOGETHER if self.kind == "together" else self.length

    @property
    def positions(self) -> int:
        """Positions that must fit into the model's context."""
        return self.prompt + (0 if self.kind == "prefill" else TOKENS)

    @property
    def tokens(self) -> int:
        """Tokens whose rate is told."""
        return {"decode": TOKENS, "prefill": self.length, "together": TOKENS * self.length}[self.kind]

    def amount(self, work: Work) -> float:
        """Bytes that a sample reads, or operations that a prompt takes."""
        if self.kind == "prefill":
            return work.operations(measuring.Case("prompt", self.length))
        positions = TOKENS * (self.prompt + TOKENS / 2) * (self.length if self.kind == "together" else 1)
        return TOKENS * work.weights + work.position * positions


Samples = dict[tuple[str, str], list[Sample]]
"""By the names of case and runner; of round i in place i."""


def take_turns(
    runners: Sequence[Any], cases: Sequence[Case], repeats: int, limits: Limits, vocabulary: int
) -> tuple[Samples, dict[str, int]]:
    """(samples, the last token that each runner wrote in the first decoding); a round before them warms up."""
    samples: Samples = {}
    last: dict[str, int] = {}
    same = np.random.default_rng(0)
    written = same.integers(3, vocabulary, max(case.prompt for case in cases)).tolist()
    for round_number in range(repeats + 1):
        for number, case in enumerate(cases):
            # in the other direction each time, so that nobody always follows the same
            for runner in runners if round_number % 2 else reversed(runners):
                if case.kind == "together" and not can_together(runner):
                    continue
                print(
                    f"\rround {round_number} of {repeats}: {case.name}, {runner.name}\033[K",
                    end="",
                    file=sys.stderr,
                )
                time.sleep(PAUSE)
                if case.kind == "prefill":
                    prompts = new_prompts((round_number, number), vocabulary, case.prompt)
                    sample = sample_of_prompts(runner, prompts, limits)
                else:
                    sample = sample_of_tokens(runner, case, written[: case.prompt], limits)
                if round_number:
                    samples.setdefault((case.name, runner.name), []).append(sample)
                elif case.kind == "decode":
                    last.setdefault(runner.name, runner.token)
    print("\r\033[K", end="", file=sys.stderr, flush=True)
    return samples, last


def can_together(runner: Any) -> bool:
    """Whether a runner writes several texts at once."""
    return bool(getattr(runner, "many", hasattr(runner, "together")))


def new_prompts(seed: tuple[int, ...], vocabulary: int, length: int) -> Iterator[list[int]]:
    """The same for each runner, and new from the first token on: there are peers that remember how one began."""
    for number in count():
        yield np.random.default_rng((*seed, number)).integers(3, vocabulary, length).tolist()


def sample_of_prompts(runner: Any, prompts: Iterator[list[int]], limits: Limits) -> Sample:
    """How long a prompt took, of as many as take `ENOUGH`, and the limit right before and after."""
    before, seconds, read = limits.multiplication(), 0.0, 0
    while seconds < ENOUGH:
        seconds += runner.prefill(next(prompts))
        read += 1
    return Sample(seconds / read, before, limits.multiplication())


def sample_of_tokens(runner: Any, case: Case, ids: list[int], limits: Limits) -> Sample:
    """How long TOKENS took, and the limit right before and after."""
    if case.kind == "decode":
        runner.decode(ids, 1)  # reads the prompt, where it has not been read yet
    else:
        runner.together(ids, 1, case.length)
    before = limits.bandwidth()
    seconds = (
        runner.decode(ids, TOKENS) if case.kind == "decode" else runner.together(ids, TOKENS, case.length)
    )
    return Sample(seconds, before, limits.bandwidth())


def figures(case: Case, samples: list[Sample], work: Work | None) -> dict[str, Any]:
    """Tokens a second and the limit: median, min, max; the share of the limit, where the work is known, as a range."""
    found: dict[str, Any] = {
        "tokens_per_second": summary([case.tokens / sample.seconds for sample in samples]),
        "limit": summary([limit for sample in samples for limit in (sample.before, sample.after)]),
    }
    if work is not None:
        found["share_of_limit"] = measuring.share(case.amount(work), samples)
    return found


def ratio(ours: list[Sample], theirs: list[Sample]) -> float:
    """How many times as fast the first are: the median over the rounds."""
    return statistics.median(two.seconds / one.seconds for one, two in zip(ours, theirs, strict=True))


def line(name: str, case: Case, found: dict[str, Any]) -> str:
    """A line for people."""
    rates, limit = found["tokens_per_second"], found["limit"]
    unit = "GFLOP/s" if case.kind == "prefill" else "GB/s"
    text = (
        f"  {name:22} {rates['median']:8.1f} ({rates['min']:.1f} to {rates['max']:.1f}) tokens/s,"
        f" limit {limit['min'] / 1e9:.0f} to {limit['max'] / 1e9:.0f} {unit}"
    )
    if "share_of_limit" in found:
        share = found["share_of_limit"]
        text += f", of which {100 * share['low']:.0f} to {100 * share['high']:.0f} %"
    return text
