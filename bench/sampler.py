"""How long one choice of a token takes, against full sorts of the vocabulary.

    python bench/sampler.py [--vocabulary 131072] [--repeats 100]

The limit is one reading of the logits, at the rate of a maximum over them measured in the same run:
they were written a moment ago and are in the cache. Everything runs on one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tinylm import candidates
from tinylm.parameters import GenerationParameters
from tinylm.sampler import LogProbabilities, RandomStream, Sampler

CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, repetition_penalty 1.15": {"repetition_penalty": 1.15},
    "temperature (top_k 0)": {"top_k": 0},
    "top_k 50 (default)": {},
    "top_p 0.95, top_k 50": {"top_p": 0.95},
    "top_p 0.95 (top_k 0)": {"top_p": 0.95, "top_k": 0},
    "min_p 0.05 (top_k 0)": {"min_p": 0.05, "top_k": 0},
    "typical_p 0.9 (top_k 0)": {"typical_p": 0.9, "top_k": 0},
    "all of them": {
        "temperature": 0.7, "top_k": 50, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.95,
        "repetition_penalty": 1.15, "frequency_penalty": 0.1, "no_repeat_ngram_size": 3,
    },
}  # fmt: skip


def microseconds(work: Callable[[], object], repeats: int) -> list[float]:
    """How long each call took, in microseconds, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1e6)
    return times


def by_full_sort(parameters: GenerationParameters, logits: np.ndarray, uniform: float) -> int:
    """One draw with every cut by its definition."""
    depths = (logits.max() - logits) / np.float32(parameters.temperature)
    ids = np.arange(depths.size)
    if parameters.top_k:
        ids = candidates.top_k_places_reference(-depths, parameters.top_k)
    if parameters.top_p < 1:
        ids = ids[candidates.top_p_places_reference(depths[ids], np.exp(-depths[ids]), parameters.top_p)]
    if parameters.min_p > 0:
        ids = ids[candidates.min_p_places(depths[ids], parameters.min_p)]
    if parameters.typical_p < 1:
        ids = ids[
            candidates.typical_p_places_reference(depths[ids], np.exp(-depths[ids]), parameters.typical_p)
        ]
    sums = np.cumsum(np.exp(-depths[ids], dtype=np.float64))
    return int(ids[min(np.searchsorted(sums, uniform * sums[-1], side="right"), ids.size - 1)])


def spread(times: list[float]) -> str:
    """A median and the tenth and ninetieth percentiles."""
    tenths = statistics.quantiles(times, n=10)
    return f"{statistics.median(times):8.0f} us ({tenths[0]:.0f}-{tenths[-1]:.0f})"


def main() -> None:
    """Measure and print; JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=131_072)
    parser.add_argument("--repeats", type=int, default=100)
    arguments = parser.parse_args()
    V = arguments.vocabulary
    generator = np.random.default_rng(0)
    flat = (generator.standard_normal(V) * 2).astype(np.float32)
    peaked = flat.copy()
    peaked[generator.permutation(V)[:40]] += np.linspace(18, 6, 40, dtype=np.float32)
    prompt = generator.integers(0, V, 1000).tolist()
    limit = statistics.median(microseconds(peaked.max, arguments.repeats))
    print(f"{platform.machine()}, {platform.system()}, NumPy {np.__version__}, 1 thread, V = {V:,}")
    print(f"one reading of the logits: {limit:.0f} us, {V * 4 / limit / 1e3:.1f} GB/s from the cache\n")
    results = []
    for shape, logits in (("peaked", peaked), ("flat", flat)):
        for name, given in CASES.items():
            greedy = name.startswith("greedy")
            parameters = GenerationParameters(**{"do_sample": not greedy, **given})
            sampler = Sampler(parameters, V, prompt, RandomStream(0))
            times = microseconds(lambda sampler=sampler, logits=logits: sampler(logits), arguments.repeats)
            median = statistics.median(times)
            line = f"{shape:7} {name:32} {spread(times)}, limit {limit / median:4.0%}"
            record = {"logits": shape, "case": name, "us": median, "limit": limit / median}
            if not greedy:
                sorts = microseconds(
                    lambda parameters=parameters, logits=logits: by_full_sort(parameters, logits, 0.5),
                    max(5, arguments.repeats // 10),
                )
                record["full_sort_us"] = statistics.median(sorts)
                line += (
                    f"; full sorts {record['full_sort_us']:.0f} us, {record['full_sort_us'] / median:.0f} x"
                )
            print(line)
            results.append(record)
        times = microseconds(lambda logits=logits: LogProbabilities(logits).top(5), arguments.repeats)
        print(f"{shape:7} {'top_logprobs 5':32} {spread(times)}")
        results.append({"logits": shape, "case": "top_logprobs 5", "us": statistics.median(times)})
    print(json.dumps({"bench": "sampler", "vocabulary": V, "limit_us": limit, "results": results}))


if __name__ == "__main__":
    main()
