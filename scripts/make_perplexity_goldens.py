#!/usr/bin/env python3
"""Makes tests/fixtures/perplexity/goldens.json: the sliding-window recipe of transformers on the story model.

The recipe is that of https://huggingface.co/docs/transformers/perplexity, kept to the letter: its loss is a mean
over the labels of a window, and each window weighs one token less than it has labels. Beside it stands the sum of
the same windows' losses over every token that has one.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "fixtures" / "perplexity"
TEXT, GOLDENS = FOLDER / "constitution.txt", FOLDER / "goldens.json"
MODEL = ROOT / "tinylm" / "stories260k"
PROTOCOLS = [(512, 256), (512, 512), (128, 64), (128, 100), (100, 100), (64, 7), (37, 36)]


def recipe(model: Any, ids: list[int], context: int, stride: int) -> dict[str, float]:
    """(perplexity of the recipe, nll of all scored tokens and how many they are)."""
    import torch

    all_ids = torch.tensor([ids])
    nll_sum, n_tokens, exact, scored, previous_end = 0.0, 0, 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        target_length = end - previous_end
        input_ids = all_ids[:, begin:end]
        target_ids = input_ids.clone()
        target_ids[:, :-target_length] = -100
        labels = int((target_ids[:, 1:] != -100).sum())
        if labels:
            with torch.no_grad():
                loss = float(model(input_ids, labels=target_ids).loss)
            counted = int((target_ids != -100).sum()) - 1
            nll_sum, n_tokens = nll_sum + loss * counted, n_tokens + counted
            exact, scored = exact + loss * labels, scored + labels
        previous_end = end
        if end == len(ids):
            break
    return {"recipe": math.exp(nll_sum / n_tokens), "nll": exact, "scored_tokens": scored}


def main() -> int:
    """Write the goldens."""
    import transformers

    import tinylm

    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL).eval()
    ids = tinylm.Tokenizer.from_folder(MODEL).encode(TEXT.read_text(encoding="utf-8"))
    cases = []
    for context, stride in PROTOCOLS:
        cases.append({"context": context, "stride": stride, **recipe(model, ids, context, stride)})
        print(cases[-1])
    GOLDENS.write_text(json.dumps({"ids": ids, "cases": cases}) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
