"""How fast a model writes, beside its limits and its peers: all in one run that alternates.

    python bench/generate.py [MODEL] [--threads 2] [--repeats 5] [--peers llama.cpp transformers]

Decoding is limited by reading the weights and the cache once a token, so each sample stands between two
measurements of the memory's bandwidth; reading a prompt is limited by multiplication, so each sample stands
between two of NumPy's float32 matrix product. Shares are of the mean of those two. A peer that is not
installed is left out. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import Limits, describe
from runners import Runner, Tinylm, installed_runners
from start_and_memory import PEERS_IN_A_PROCESS, measure_peak, measure_start

from tinylm.sources.catalog import resolve

DEPTHS = (16, 1024)
PROMPTS = (512, 2048)
TOKENS = 32
PAUSE = 0.3
"""Seconds before each sample, in which the threads of the one before fall asleep."""


class Work:
    """Bytes read and operations done, from the program of the model."""

    def __init__(self, runner: Tinylm) -> None:
        program = runner.engine.program
        products = [one for one in program.operations if one.kind == "matmul" and one.matrix is not None]
        matrices = [one.matrix for one in products if one.matrix is not None]
        self.weights = sum(matrix.nbytes for matrix in matrices)
        self.numbers = sum(matrix.shape[0] * matrix.shape[1] for matrix in matrices[:-1])
        self.head = matrices[-1].shape[0] * matrices[-1].shape[1]
        self.layers, self.width = program.layers, program.heads * program.head_dim
        self.position = 2 * 4 * program.layers * program.key_value_heads * program.head_dim

    def decode_bytes(self, depth: int) -> float:
        """Bytes that a token reads: weights, and keys and values of the positions before it (on average)."""
        return self.weights + self.position * (depth + TOKENS / 2)

    def prefill_operations(self, length: int) -> float:
        """Multiplications and additions of a prompt: the head for the last token only, attention causal."""
        attention = 4 * self.layers * self.width * length * (length + 1) / 2
        return 2 * (length * self.numbers + self.head) + attention


def main() -> None:
    """Measure and print."""
    arguments = parse()
    folder = resolve(arguments.model)
    with tempfile.TemporaryDirectory() as scratch:
        runners = installed_runners(
            ["tinylm", *arguments.peers], folder, arguments.threads, arguments.dtype, Path(scratch)
        )
        ours = runners[0]
        assert isinstance(ours, Tinylm)
        result: dict[str, Any] = {
            "model": arguments.model,
            "machine": describe(ours.engine.threads),
            "settings": {runner.name: runner.settings for runner in runners},
        }
        for key, value in result["machine"].items():
            print(f"{key:10} {value}")
        for runner in runners:
            print(f"{runner.name:13} {runner.settings}")
        result["speed"] = measure_speed(runners, Work(ours), arguments, Limits(ours.engine.threads))
        if not arguments.speed_only:
            result["start"] = measure_start(folder, ours.engine.threads, arguments.dtype)
            names = [runner.name for runner in runners if runner.name in PEERS_IN_A_PROCESS]
            result["peak_memory"] = measure_peak(
                names, folder, ours.engine.threads, arguments.dtype, Work(ours)
            )
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct", help="a name or a folder")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", nargs="*", default=["llama.cpp", "transformers"])
    parser.add_argument("--speed-only", action="store_true", help="no figures of start and memory")
    arguments = parser.parse_args()
    if arguments.threads is None:
        from tinylm.kernels.cores import default_threads

        arguments.threads = default_threads()
    return arguments


def measure_speed(
    runners: list[Runner], work: Work, arguments: argparse.Namespace, limits: Limits
) -> dict[str, dict[str, Any]]:
    """Every case, every runner, in turns; tokens a second and the share of the limit."""
    vocabulary = runners[0].engine.vocab_size  # type: ignore[attr-defined]
    context = runners[0].engine.context_length  # type: ignore[attr-defined]
    ids = np.random.default_rng(0).integers(3, vocabulary, max(PROMPTS)).tolist()
    cases = [("decode", depth) for depth in DEPTHS] + [("prefill", length) for length in PROMPTS]
    cases = [(kind, length) for kind, length in cases if length + TOKENS <= context]
    samples: dict[tuple[str, int, str], list[tuple[float, float, float]]] = {}
    for round_number in range(arguments.repeats + 1):  # the first warms up and is thrown away
        for kind, length in cases:
            for runner in runners:
                time.sleep(PAUSE)
                sample = one_sample(runner, kind, ids[:length], work, limits)
                if round_number:
                    samples.setdefault((kind, length, runner.name), []).append(sample)
    chosen = {runner.name: (runner.decode(ids[: DEPTHS[0]], TOKENS), runner.token)[1] for runner in runners}
    print(f"\ntoken {DEPTHS[0] + TOKENS}, which should be the same: {chosen}")
    result: dict[str, dict[str, Any]] = {}
    for kind, length in cases:
        print(f"\n{kind} {'after' if kind == 'decode' else 'of'} {length} tokens")
        for runner in runners:
            rates, shares, measured = (
                list(column) for column in zip(*samples[kind, length, runner.name], strict=True)
            )
            ours = [rate for rate, _, _ in samples[kind, length, "tinylm"]]
            ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, rates, strict=True))
            unit, scale = ("GB/s", 1e9) if kind == "decode" else ("GFLOP/s", 1e9)
            print(
                f"  {runner.name:13} {spread(rates, '8.1f')} tokens/s, {spread(shares, '5.2f')} of"
                f" {statistics.median(measured) / scale:.0f} {unit}"
                + ("" if runner.name == "tinylm" else f"; tinylm is {ratio:.2f} x this")
            )
            result.setdefault(f"{kind} {length}", {})[runner.name] = {
                "tokens_per_second": summary(rates),
                "share_of_limit": summary(shares),
                "limit": summary(measured),
            }
    return result


def one_sample(
    runner: Runner, kind: str, ids: list[int], work: Work, limits: Limits
) -> tuple[float, float, float]:
    """Tokens a second, the share of the limit, and that limit as measured just before and after."""
    measure = limits.bandwidth if kind == "decode" else limits.multiplication
    if kind == "decode":
        runner.decode(ids, 1)  # reads the prompt, where it has not been read yet
    before = measure()
    seconds = runner.decode(ids, TOKENS) if kind == "decode" else runner.prefill(ids)
    limit = (before + measure()) / 2
    if kind == "decode":
        return TOKENS / seconds, TOKENS * work.decode_bytes(len(ids)) / seconds / limit, limit
    return len(ids) / seconds, work.prefill_operations(len(ids)) / seconds / limit, limit


def summary(values: list[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def spread(values: list[float], form: str) -> str:
    """`median (min to max)`."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):{form}} ({low:{form}} to {high:{form}})".replace("( ", "(")


if __name__ == "__main__":
    main()
