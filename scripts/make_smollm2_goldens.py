"""Writes tests/fixtures/smollm2/goldens.json: what transformers computes with the pulled SmolLM2-135M-Instruct.

    python scripts/make_smollm2_goldens.py

Needs torch, transformers and the model (`tinylm pull smollm2-135m-instruct`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tinylm.sources.catalog import resolve

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = (
    "Once upon a time, in a small village by the sea,",
    "This Agreement is entered into as of",
    "The three primary colors are",
    "def fibonacci(n):\n",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
)
NEW_TOKENS = 100
TEXT_TOKENS = 500
SMALLEST_MARGIN = 1e-3
"""Between the likeliest two tokens: below it, rounding alone could choose the other."""


def greedy(model: Any, ids: list[int]) -> tuple[list[int], float]:
    """The likeliest tokens after a prompt, one by one, and the smallest margin among their choices."""
    cache = transformers.DynamicCache(config=model.config)
    step, chosen, margin = ids, [], float("inf")
    for _ in range(NEW_TOKENS):
        logits = model(torch.tensor([step]), past_key_values=cache, use_cache=True).logits[0, -1]
        best = torch.topk(logits, 2).values
        margin = min(margin, float(best[0] - best[1]))
        chosen.append(int(logits.argmax()))
        step = chosen[-1:]
    return chosen, margin


def main() -> None:
    """Compute and write."""
    folder = resolve("smollm2-135m-instruct")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    record: dict[str, Any] = {
        "source": f"transformers {transformers.__version__}, torch {torch.__version__}, float32",
        "greedy": [],
    }
    with torch.inference_mode():
        for prompt in PROMPTS:
            ids = tokenizer(prompt, add_special_tokens=False).input_ids
            chosen, margin = greedy(model, ids)
            if margin < SMALLEST_MARGIN:
                raise SystemExit(f"{prompt!r}: two tokens are within {margin}: take another prompt")
            record["greedy"].append({"prompt": prompt, "prompt_ids": ids, "ids": chosen, "margin": margin})
        text = (ROOT / "LICENSE").read_text(encoding="utf-8")
        ids = tokenizer(text, add_special_tokens=False).input_ids[:TEXT_TOKENS]
        logits = model(torch.tensor([ids])).logits[0].numpy()
    columns = np.random.default_rng(0).choice(logits.shape[1], 8, replace=False)
    record["text"] = {
        "ids": ids,
        "columns": columns.tolist(),
        "logits": [
            [round(float(logits[row, column]), 5) for column in columns] for row in range(TEXT_TOKENS)
        ],
        "likeliest": logits.argmax(axis=1).tolist(),
        "largest": float(np.abs(logits).max()),
    }
    target = ROOT / "tests" / "fixtures" / "smollm2" / "goldens.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size} bytes; margins",
          [round(case["margin"], 4) for case in record["greedy"]])  # fmt: skip


if __name__ == "__main__":
    main()
