"""What is reported beside the text: figures, log-probabilities, and everything as JSON."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from tinylm.cli.terminal import size

if TYPE_CHECKING:
    from tinylm.completion import Completion
    from tinylm.engine import Engine
    from tinylm.language_model import LanguageModel
    from tinylm.measuring import Work


def as_json(model: LanguageModel, completions: list[Completion], facts: dict[str, Any]) -> str:
    """One line of JSON: the model, the prompt's ids, and each answer with its figures."""
    record = {
        **facts,
        "threads": model.engine.threads,
        "prompt_ids": completions[0].prompt_ids,
        "completions": [
            {key: value for key, value in completion.to_dict().items() if key != "prompt_ids"}
            for completion in completions
        ],
    }
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def logprob_table(model: LanguageModel, completions: list[Completion]) -> str:
    """Each token with its probability, and the likeliest in its place with theirs."""

    def cell(token: int, logprob: float) -> str:
        return (
            f"{model.tokenizer.decode([token], skip_special_tokens=False)!r} {100 * math.exp(logprob):.1f} %"
        )

    lines = []
    for completion in completions:
        for place, (token, logprob) in enumerate(zip(completion.ids, completion.logprobs or [], strict=True)):
            others = completion.top_logprobs[place] if completion.top_logprobs else []
            line = f"{cell(token, logprob):24} {' | '.join(cell(*other) for other in others)}"
            lines.append(line.rstrip())
    return "\n".join(lines)


def figures(model: LanguageModel, completions: list[Completion], load_seconds: float) -> str:
    """Speed in words, and its share of what the memory could deliver, measured right now."""
    first = completions[0].timings
    tokens = sum(completion.timings.generated_tokens for completion in completions)
    seconds = max(completion.timings.decode_seconds for completion in completions)
    lines = [
        f"load        {load_seconds:.2f} s, {size(work(model.engine).weights)} of weights a token,"
        f" {model.engine.threads} threads",
        f"prompt      {first.prompt_tokens} tokens, {first.prompt_tokens_per_second:.1f} tokens/s,"
        f" first token after {first.first_token_seconds:.3f} s",
    ]
    rate = (tokens - len(completions)) / seconds if seconds else 0.0
    lines.append(f"generation  {tokens} tokens, {rate:.1f} tokens/s")
    drafted = sum(completion.timings.drafted_tokens for completion in completions)
    if drafted:
        accepted = sum(completion.timings.accepted_tokens for completion in completions)
        lines.append(
            f"lookup      {drafted} tokens guessed, {accepted} of them right ({100 * accepted / drafted:.0f} %)"
        )
    if len(completions) == 1 and seconds:
        share, bandwidth = bandwidth_share(model.engine, completions[0])
        lines.append(
            f"memory      {100 * share:.0f} % of the {bandwidth / 1e9:.1f} GB/s that are measured now"
        )
    return "\n".join(lines)


def work(engine: Engine) -> Work:
    """What a step of this engine reads and computes."""
    from tinylm.measuring import Work

    return Work.of(engine.program, engine.kv_dtype)


def bandwidth_share(engine: Engine, completion: Completion) -> tuple[float, float]:
    """Bytes that decoding read over those that the memory can deliver in that time; and bytes a second it can."""
    from tinylm.kernels.bandwidth import Bandwidth

    timings = completion.timings
    steps = timings.generated_tokens - 1 - timings.accepted_tokens
    positions = timings.prompt_tokens + timings.generated_tokens / 2  # on average
    each = work(engine)
    read = steps * (each.weights + positions * each.position)
    bandwidth = Bandwidth(engine.executor.team).measure(passes=7)
    return read / timings.decode_seconds / bandwidth, bandwidth
