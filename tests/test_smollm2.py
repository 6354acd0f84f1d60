"""A real model, SmolLM2-135M-Instruct: everything together against what transformers computes with it.

Needs `tinylm pull smollm2-135m-instruct`, which `python3 check.py` does; without it these tests are skipped.
The goldens are written by scripts/make_smollm2_goldens.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinylm
from tinylm.cli import main
from tinylm.sources.catalog import folder_of

ROOT = Path(__file__).resolve().parent.parent
NAME = "smollm2-135m-instruct"
GOLDENS = json.loads((ROOT / "tests" / "fixtures" / "smollm2" / "goldens.json").read_text(encoding="utf-8"))

pytestmark = pytest.mark.skipif(folder_of(NAME) is None, reason=f"needs a network once: tinylm pull {NAME}")


@pytest.fixture(scope="module")
def lm() -> tinylm.LanguageModel:
    return tinylm.load(NAME)


@pytest.mark.parametrize("case", GOLDENS["greedy"], ids=lambda case: case["prompt"][:12].strip())
def test_a_hundred_greedy_tokens_are_those_of_transformers(
    lm: tinylm.LanguageModel, case: dict[str, Any]
) -> None:
    answer = lm.generate(case["prompt"], max_new_tokens=100, do_sample=False, eos_token_ids=[])
    assert answer.prompt_ids == case["prompt_ids"]
    assert answer.ids == case["ids"]


def test_logits_over_500_tokens(lm: tinylm.LanguageModel) -> None:
    text = GOLDENS["text"]
    ids = lm.tokenizer.encode((ROOT / "LICENSE").read_text(encoding="utf-8"))[: len(text["ids"])]
    assert ids == text["ids"]
    logits = lm.logits(ids)
    found = logits[:, text["columns"]]
    assert np.abs(found - np.array(text["logits"], np.float32)).max() <= 1e-4 * text["largest"]
    assert logits.argmax(axis=1).tolist() == text["likeliest"]


def test_token_by_token_equals_the_whole_prompt(lm: tinylm.LanguageModel) -> None:
    ids = GOLDENS["text"]["ids"][:48]
    whole = lm.logits(ids)
    sequence = lm.engine.new_sequence()
    steps = [lm.engine.prefill(sequence, ids[:1])]
    steps += [lm.engine.decode([sequence], [token])[0] for token in ids[1:]]
    assert np.abs(np.array(steps) - whole).max() <= 1e-4 * np.abs(whole).max()


def test_the_reference_equals_the_compiled(lm: tinylm.LanguageModel) -> None:
    ids = GOLDENS["text"]["ids"][:32]
    compiled = lm.logits(ids)
    reference = lm.engine.trace(ids)[lm.engine.program.output.name]
    assert np.abs(reference - compiled).max() <= 1e-4 * np.abs(compiled).max()


def test_the_command_writes_fluent_english(
    lm: tinylm.LanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    case = GOLDENS["greedy"][0]
    assert main(["generate", case["prompt"], "--model", NAME, "-n", "100", "-q", "--ignore-eos"]) == 0
    assert capsys.readouterr().out == lm.tokenizer.decode(case["ids"]) + "\n"
