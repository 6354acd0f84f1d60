"""What prompt lookup gains where a text is quoted, and what it costs where nothing is: alternating, in one run.

    python bench/prompt_lookup.py [MODEL] [--dtype int8] [--threads 2] [--repeats 5] [--lookup 10] [--tokens 160]

The prompts ask for parts of the Constitution of the United States and of a court opinion; two ask for a story.
Each answer is written without and with guesses, in turns, and the ratio is that of neighbours. Before that: what
a step of several tokens costs beside one of one token, which bounds what a guess may gain. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

import tinylm
from tinylm.completion import Completion
from tinylm.language_model import LanguageModel

TEXTS = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "text"
COUNTS = (1, 2, 3, 4, 6, 8, 11, 16)
"""Tokens of a step."""

PAUSE = 0.2
"""Seconds before each sample, in which the threads of the one before fall asleep."""


def text(name: str, begin: int, end: int) -> str:
    """A part of a text of the fixtures, in characters."""
    return gzip.decompress((TEXTS / f"{name}.txt.gz").read_bytes()).decode("utf-8")[begin:end]


def prompts(model: LanguageModel) -> dict[str, tuple[list[int], float]]:
    """Names, ids, and how warm the answer is drawn: from much to copy to nothing."""

    def asked(message: str) -> list[int]:
        messages = [{"role": "user", "content": message}]
        rendered = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return model.prompt_ids(rendered, add_special_tokens=False)

    articles, opinion = text("us_constitution", 0, 4200), " ".join(text("scotus_opinion", 6000, 8500).split())
    paragraph = " ".join(articles[:900].split())
    questions = (
        '\n\nQuestion: Quote the sentence about when Congress assembles.\nAnswer: "The Congress shall assemble at '
        'least once in every Year"\nQuestion: Quote the section about the Senate.\nAnswer: "The Senate of the United '
        "States shall be composed"
    )
    repeat = asked(f'Repeat this text:\n\n"{paragraph}"')
    return {
        "repeat a paragraph": (repeat, 0.0),
        "the same, drawn": (repeat, 0.7),
        "quote two sections": (model.prompt_ids(articles + questions), 0.0),
        "quote an opinion": (
            model.prompt_ids(f'Original:\n{opinion}\n\nQuotation from the original:\n"{opinion[:90]}'),
            0.0,
        ),
        "answer about a text": (
            asked(f"{articles}\n\nQuote the sentences about the House of Representatives."),
            0.0,
        ),
        "a greedy story": (asked("Write a story about a comet."), 0.0),
        "a drawn story": (asked("Write a story about a comet."), 1.0),
    }


def step_costs(model: LanguageModel, depth: int, repeats: int) -> dict[int, float]:
    """Steps of several tokens after `depth` positions over the step of one token, alternating."""
    engine, random = model.engine, np.random.default_rng(0)
    sequence = engine.new_sequence()
    engine.reserve(sequence, depth + max(COUNTS))
    engine.prefill(sequence, random.integers(0, engine.vocab_size, depth))
    ids = random.integers(0, engine.vocab_size, max(COUNTS))
    found: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(repeats + 1):
        for count in COUNTS:
            seconds = []
            for _ in range(4):
                started = time.perf_counter()
                engine.advance([sequence], [ids[:count]])
                seconds.append(time.perf_counter() - started)
                sequence.truncate(depth)
            found[count].append(statistics.median(seconds[1:]))
    return {
        count: statistics.median(mine / one for mine, one in zip(times[1:], found[1][1:], strict=True))
        for count, times in found.items()
    }


def answer(model: LanguageModel, ids: list[int], temperature: float, lookup: int, tokens: int) -> Completion:
    """One answer, to its last token."""
    time.sleep(PAUSE)
    return model.generate(
        ids, max_new_tokens=tokens, eos_token_ids=[], prompt_lookup_num_tokens=lookup, temperature=temperature,
        top_k=0, seed=1,
    )  # fmt: skip


def measure(
    model: LanguageModel, name: str, ids: list[int], temperature: float, arguments: argparse.Namespace
) -> dict[str, Any]:
    """An answer without and with guesses, in turns; printed in a line."""
    plain, guessed, ratios = [], [], []
    for _ in range(arguments.repeats):
        one, other = (
            answer(model, ids, temperature, lookup, arguments.tokens) for lookup in (0, arguments.lookup)
        )
        plain.append(one.timings.tokens_per_second)
        guessed.append(other.timings.tokens_per_second)
        ratios.append(guessed[-1] / plain[-1])
    times = other.timings
    result = {
        "prompt_tokens": times.prompt_tokens,
        "plain": statistics.median(plain),
        "lookup": statistics.median(guessed),
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "drafted": times.drafted_tokens,
        "accepted": times.accepted_tokens,
        "same": one.ids == other.ids,
    }
    print(
        f"{name:20} {times.prompt_tokens:5} tokens  {result['plain']:6.1f} -> {result['lookup']:6.1f} tokens/s, "
        f"x {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}); {times.drafted_tokens} guessed, "
        f"{times.accepted_tokens} right; {'same text' if result['same'] else 'another text'}"
    )
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", nargs="?", default="smollm2-135m-instruct", help="a chat model, or its folder"
    )
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lookup", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=160)
    arguments = parser.parse_args()
    model = tinylm.load(arguments.model, dtype=arguments.dtype, threads=arguments.threads)
    model.engine.compile()
    machine = describe(model.engine.threads)
    print(f"{machine['processor']}, {machine['threads']} threads; {arguments.model}, {arguments.dtype}")
    costs = {depth: step_costs(model, depth, arguments.repeats) for depth in (16, 1024)}
    for depth, of_counts in costs.items():
        shown = "  ".join(f"{count}: {cost:.2f}" for count, cost in of_counts.items())
        print(f"a step of so many tokens after {depth}, over one of one token:  {shown}")
    answers = {
        name: measure(model, name, ids, temperature, arguments)
        for name, (ids, temperature) in prompts(model).items()
    }
    settings = {name: value for name, value in vars(arguments).items() if name != "model"}
    print(json.dumps({"machine": machine, "settings": settings, "steps": costs, "answers": answers}))


if __name__ == "__main__":
    main()
