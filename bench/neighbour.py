"""What a busy neighbour costs: decoding on 1, 2, 4 threads, while another process keeps one core busy and while not.

    python bench/neighbour.py [MODEL] [--contestants "tinylm int8" "llama.cpp Q8_0"] [--threads 1 2 4]

A laptop is never idle. Every contestant on every number of threads is a process of its own, and they take turns,
with the neighbour and without. Each figure is held against the same contestant's own on one thread without a
neighbour, in the same round: who hands out half of the work to a thread that is not running falls below that. And
more threads than cores should not cost much. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from machine import Limits, describe
from turns import PAUSE
from worker import NotInstalledError, RemoteRunner

from tinylm.measuring import summary
from tinylm.sources.catalog import resolve

DEPTH, TOKENS = 16, 64
"""Tokens that are read before, and written in a sample."""

QUIET, BUSY = "quiet", "neighbour"

Seconds = dict[tuple[str, int, str], list[float]]
"""By contestant, threads, QUIET or BUSY; of round i in place i."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct", help="a name or a folder")
    parser.add_argument("--contestants", nargs="+", default=["tinylm int8", "llama.cpp Q8_0"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="keeps what is exported (default: a temporary folder)")
    arguments = parser.parse_args()
    if 1 not in arguments.threads:
        parser.error("--threads must hold 1, which the others are held against")
    with ExitStack() as stack:
        scratch = arguments.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scratch.mkdir(parents=True, exist_ok=True)
        found = measure(resolve(arguments.model), arguments, scratch, stack)
    print(json.dumps(found))


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure(folder: Path, arguments: argparse.Namespace, scratch: Path, stack: ExitStack) -> dict[str, Any]:
    """Everything that is asked for, as the JSON has it; printed too."""
    machine = describe(max(arguments.threads))
    print(f"{arguments.model}, {machine['processor']}, {machine['cores']} cores, {machine['system']}")
    runners = {}
    for name in arguments.contestants:
        for threads in arguments.threads:
            try:
                runner = RemoteRunner(name, sys.executable, folder, threads, scratch)
            except NotInstalledError as error:
                print(f"{name} is left out: {error}")
                break
            stack.callback(runner.close)
            runners[name, threads] = runner
            print(f"- {name}: {runner.settings}", flush=True)
    vocabulary = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    ids = np.random.default_rng(0).integers(3, vocabulary, DEPTH).tolist()
    for runner in runners.values():
        runner.decode(ids, 4)
    limits, bandwidths = Limits(max(1, machine["cores"] or 1)), []
    seconds: Seconds = {}
    for round_number in range(arguments.repeats):
        bandwidths.append(limits.bandwidth())
        # each state first as often as second
        for state in (QUIET, BUSY) if round_number % 2 else (BUSY, QUIET):
            with ExitStack() as busy:
                if state == BUSY:
                    busy.enter_context(neighbour())
                for (name, threads), runner in runners.items():
                    stage = (
                        f"round {round_number + 1} of {arguments.repeats}: {name}, {threads} threads, {state}"
                    )
                    print(f"\r{stage}\033[K", end="", file=sys.stderr)
                    time.sleep(PAUSE)
                    seconds.setdefault((name, threads, state), []).append(runner.decode(ids, TOKENS))
    print("\r\033[K", end="", file=sys.stderr, flush=True)
    records = [record(key, seconds) for key in seconds]
    low, high = min(bandwidths) / 1e9, max(bandwidths) / 1e9
    print(
        f"\nDecoding after {DEPTH} tokens, {arguments.repeats} rounds in turns, tokens/s: median (least to most)."
    )
    print(f"The memory gave {low:.0f} to {high:.0f} GB/s.\n")
    print("\n".join(table(records)))
    return {"bench": "neighbour", "model": arguments.model, "machine": machine, "depth": DEPTH, "tokens": TOKENS,
            "bandwidth": summary(bandwidths), "results": records}  # fmt: skip


def record(key: tuple[str, int, str], seconds: Seconds) -> dict[str, Any]:
    """The figures of a contestant on so many threads, beside and without a neighbour."""
    name, threads, state = key

    def times_as_fast(other: tuple[str, int, str]) -> float:
        return statistics.median(two / one for one, two in zip(seconds[key], seconds[other], strict=True))

    counts = [count for other, count, where in seconds if other == name and where == state]
    best = min(counts, key=lambda count: statistics.median(seconds[name, count, state]))
    return {
        "name": name, "threads": threads, "state": state,
        "tokens_per_second": summary([TOKENS / one for one in seconds[key]]),
        "to_one_quiet_thread": times_as_fast((name, 1, QUIET)),
        "to_best_threads": times_as_fast((name, best, state)),
    }  # fmt: skip


def table(records: list[dict[str, Any]]) -> Iterator[str]:
    """The figures as Markdown."""
    yield "| | threads | quiet | beside a neighbour | of one quiet thread | quiet, of the best number of threads |"
    yield "|---|---|---|---|---|---|"
    quiet = {(one["name"], one["threads"]): one for one in records if one["state"] == QUIET}
    busy = {(one["name"], one["threads"]): one for one in records if one["state"] == BUSY}
    for key, alone in quiet.items():
        yield (
            f"| {key[0]} | {key[1]} | {rates(alone)} | {rates(busy[key])} | {busy[key]['to_one_quiet_thread']:.2f} x |"
            f" {alone['to_best_threads']:.2f} x |"
        )


def rates(one: dict[str, Any]) -> str:
    """Median and spread of tokens a second."""
    rate = one["tokens_per_second"]
    return f"{rate['median']:.0f} ({rate['min']:.0f} to {rate['max']:.0f})"


if __name__ == "__main__":
    main()
