"""Makes tests/fixtures/sampler/goldens.json: what transformers' logits processors make of some logits.

Needs torch and transformers. The processors are chosen and ordered by transformers itself, from the
same parameters that a call of `generate` takes.

    python scripts/make_sampler_goldens.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

GOLDENS = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "sampler" / "goldens.json"
VOCABULARY = 89
EOS = [3, 7]

# One by one, then together.
CASES: list[dict[str, Any]] = [
    {"do_sample": False},
    {"do_sample": False, "repetition_penalty": 1.3},
    {"do_sample": False, "repetition_penalty": 0.8},
    {"do_sample": False, "no_repeat_ngram_size": 1},
    {"do_sample": False, "no_repeat_ngram_size": 2},
    {"do_sample": False, "no_repeat_ngram_size": 3},
    {"do_sample": False, "min_new_tokens": 9},
    {"do_sample": False, "min_new_tokens": 2},
    {"do_sample": False, "logit_bias": {3: -2.5, 40: 4.0, 41: -100.0}},
    {"do_sample": True, "top_k": 0},
    {"do_sample": True},
    {"do_sample": True, "top_k": 0, "temperature": 0.5},
    {"do_sample": True, "top_k": 0, "temperature": 1.7},
    {"do_sample": True, "top_k": 1},
    {"do_sample": True, "top_k": 7},
    {"do_sample": True, "top_k": 500},
    {"do_sample": True, "top_k": 0, "top_p": 0.9},
    {"do_sample": True, "top_k": 0, "top_p": 0.5},
    {"do_sample": True, "top_k": 0, "top_p": 0.001},
    {"do_sample": True, "top_k": 0, "min_p": 0.05},
    {"do_sample": True, "top_k": 0, "min_p": 1.0},
    {"do_sample": True, "top_k": 0, "typical_p": 0.9},
    {"do_sample": True, "top_k": 0, "typical_p": 0.2},
    {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "repetition_penalty": 1.15},
    {"do_sample": True, "temperature": 0.8, "top_p": 0.95},
    {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1},
    {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95},
    {
        "do_sample": True, "temperature": 1.4, "top_k": 40, "top_p": 0.8, "min_p": 0.01, "typical_p": 0.9,
        "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "min_new_tokens": 9,
        "logit_bias": {5: 3.0, 6: -1.0},
    },
]  # fmt: skip


def random_logits(generator: random.Random) -> list[float]:
    """Logits (VOCABULARY,) that float32 holds exactly: some likely, many alike, a few equal."""
    spread = generator.choice([0.3, 2.0, 6.0])
    values = [round(generator.gauss(0, spread) * 64) / 64 for _ in range(VOCABULARY)]
    for token in EOS:
        values[token] = max(values)
    return values


def processors_of_transformers(parameters: dict[str, Any], prompt_length: int, vocab_size: int) -> Any:
    """The processors that transformers would apply, in its order."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = LlamaForCausalLM(config)
    named = dict(parameters)
    if "logit_bias" in named:
        named["sequence_bias"] = [[[token], bias] for token, bias in named.pop("logit_bias").items()]
    generation_config, _ = model._prepare_generation_config(None, eos_token_id=EOS, **named)
    model._prepare_special_tokens(generation_config, device="cpu")
    return model._get_logits_processor(generation_config, input_ids_seq_length=prompt_length)


def oracle(
    parameters: dict[str, Any], prompt: list[int], answer: list[int], logits: list[float]
) -> list[float]:
    """The logits after transformers' processors."""
    import torch

    processors = processors_of_transformers(parameters, len(prompt), len(logits))
    scores = processors(torch.tensor([prompt + answer]), torch.tensor([logits], dtype=torch.float32))
    return [float(score) for score in scores[0]]


def main() -> None:
    """Write the golden file."""
    import transformers

    generator = random.Random(7)
    cases = []
    for parameters in CASES:
        for _ in range(3):
            prompt = [generator.randrange(12) for _ in range(9)]
            answer = [generator.randrange(12) for _ in range(4)]
            logits = random_logits(generator)
            scores = oracle(parameters, prompt, answer, logits)
            cases.append(
                {
                    "parameters": parameters,
                    "prompt": prompt,
                    "answer": answer,
                    "logits": logits,
                    "scores": [None if score == float("-inf") else round(score, 6) for score in scores],
                }
            )
    source = f"transformers {transformers.__version__}, scripts/make_sampler_goldens.py"
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    GOLDENS.parent.mkdir(parents=True, exist_ok=True)
    GOLDENS.write_text(f'{{"source":"{source}","eos":{EOS},"cases":[\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
