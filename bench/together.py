"""Many sequences at once: tokens a second of all together beside one alone, and of a queue longer than the batch.

    python bench/together.py [MODEL] [--dtype int8] [--threads 2] [--repeats 7]

A step reads the weights once for all sequences; keys and values are each sequence's own, so depth costs more
here. One sequence and several take turns, and the ratio is that of neighbours. The queue is of prompts of
different lengths, whose answers end at different times; the next joins when one ends. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
from machine import describe

import tinylm
from tinylm.engine import Engine, Sequence
from tinylm.language_model import LanguageModel

COUNTS = (1, 2, 4, 8, 16)
DEPTHS = (16, 1024)
STEPS = 12
QUEUE = 24
BATCHES = (1, 8)


def sequences_at(engine: Engine, depth: int) -> list[Sequence]:
    """As many sequences as the largest count, all with the same `depth` positions."""
    first = engine.new_sequence()
    room = depth + STEPS
    engine.reserve(first, room)
    engine.prefill(first, np.random.default_rng(0).integers(0, engine.vocab_size, depth))
    return [first, *(engine.fork(first, room) for _ in range(max(COUNTS) - 1))]


def together(engine: Engine, depth: int, repeats: int) -> dict[int, dict[str, float]]:
    """Tokens a second of so many sequences, and how many times those of one."""
    sequences = sequences_at(engine, depth)
    rates: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(repeats + 1):
        for count in COUNTS:
            writing = sequences[:count]
            started = time.perf_counter()
            for _ in range(STEPS):
                engine.decode(writing, [7] * count)
            rates[count].append(count * STEPS / (time.perf_counter() - started))
            for sequence in writing:
                sequence.truncate(depth)
    found = {}
    for count, of_count in rates.items():
        ratios = [mine / one for mine, one in zip(of_count[1:], rates[1][1:], strict=True)]
        found[count] = {
            "tokens_per_second": statistics.median(of_count[1:]),
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
    return found


def queue(model: LanguageModel, repeats: int) -> dict[int, float]:
    """Seconds for a queue of prompts with this many written at a time, prompts read included."""
    random = np.random.default_rng(1)
    prompts = [
        random.integers(0, model.engine.vocab_size, 8 + 7 * (place % 9)).tolist() for place in range(QUEUE)
    ]
    ends = list(range(0, model.engine.vocab_size, 40))  # answers of 40 tokens on average
    seconds: dict[int, list[float]] = {size: [] for size in BATCHES}
    for _ in range(repeats):
        for size in BATCHES:
            started = time.perf_counter()
            model.generate_batch(
                prompts, batch_size=size, max_new_tokens=64, temperature=1.5, top_k=0, seed=3, eos_token_ids=ends
            )  # fmt: skip
            seconds[size].append(time.perf_counter() - started)
    return {size: statistics.median(of_size) for size, of_size in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct", help="a name or a folder")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    model = tinylm.load(arguments.model, dtype=arguments.dtype, threads=arguments.threads)
    model.engine.compile()
    machine = describe(model.engine.threads)
    print(f"{machine['processor']}, {machine['threads']} threads; {arguments.model}, {arguments.dtype}")
    result: dict[str, Any] = {"machine": machine, "settings": vars(arguments), "decode": {}}
    for depth in DEPTHS:
        if depth + STEPS > model.engine.context_length:
            continue
        found = result["decode"][depth] = together(model.engine, depth, arguments.repeats)
        print(f"after {depth} positions:")
        for count, of_count in found.items():
            print(
                f"  {count:3} together {of_count['tokens_per_second']:8.1f} tokens/s,"
                f" x {of_count['ratio']:.2f} ({of_count['least']:.2f}-{of_count['most']:.2f}) of one"
            )
    seconds = result["queue"] = queue(model, max(1, arguments.repeats // 3))
    one, many = (seconds[size] for size in BATCHES)
    print(f"{QUEUE} prompts: {one:.2f} s one by one, {many:.2f} s {BATCHES[1]} at a time, x {one / many:.2f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
