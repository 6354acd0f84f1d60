"""Generation against transformers itself: processors on random logits, whole texts, draws step by step."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tinylm
from tinylm.generation_config import resolve_parameters
from tinylm.parameters import GenerationParameters
from tinylm.sampler import RandomStream, Sampler

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parent.parent.parent
STORIES = ROOT / "tinylm" / "stories260k"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("goldens", ROOT / "scripts" / "make_sampler_goldens.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()


def test_the_committed_goldens_are_what_transformers_says() -> None:
    goldens = json.loads(SCRIPT.GOLDENS.read_text(encoding="utf-8"))
    for case in goldens["cases"][::5]:
        parameters = dict(case["parameters"])
        if "logit_bias" in parameters:
            parameters["logit_bias"] = {int(token): bias for token, bias in parameters["logit_bias"].items()}
        scores = SCRIPT.oracle(parameters, case["prompt"], case["answer"], case["logits"])
        expected = [float("-inf") if score is None else score for score in case["scores"]]
        assert np.allclose(scores, expected, atol=1e-6)


def random_parameters(generator: random.Random) -> dict[str, Any]:
    """Any mixture of the parameters that transformers has too."""
    choices: dict[str, list[Any]] = {
        "temperature": [0.3, 0.7, 1.0, 1.5],
        "top_k": [0, 1, 5, 40],
        "top_p": [0.3, 0.9, 0.99],
        "min_p": [0.01, 0.2],
        "typical_p": [0.3, 0.95],
        "repetition_penalty": [0.7, 1.1, 2.0],
        "no_repeat_ngram_size": [2, 3],
        "min_new_tokens": [1, 8],
        "logit_bias": [{2: 3.0, 9: -4.0}],
    }
    taken = [name for name in choices if generator.random() < 0.45]
    return {"do_sample": True} | {name: generator.choice(choices[name]) for name in taken}


@pytest.mark.parametrize("seed", range(60))
def test_processors_in_any_mixture(seed: int) -> None:
    generator = random.Random(seed)
    parameters = random_parameters(generator)
    prompt = [generator.randrange(20) for _ in range(generator.randrange(1, 12))]
    answer = [generator.randrange(20) for _ in range(generator.randrange(9))]
    # Without ties, of which transformers drops any at top_p's border.
    logits = (np.random.default_rng(seed).standard_normal(311) * 3).astype(np.float32)
    scores = np.array(SCRIPT.oracle(parameters, prompt, answer, logits.tolist()))
    ours = GenerationParameters(**parameters, eos_token_ids=tuple(SCRIPT.EOS))
    sampler = Sampler(ours, logits.size, prompt, RandomStream(0))
    for token in answer:
        sampler.accept(token)
    ids, probabilities = sampler.probabilities(logits)
    weights = np.exp(scores - scores.max())
    assert ids.tolist() == np.flatnonzero(weights).tolist()
    np.testing.assert_allclose(probabilities, (weights / weights.sum())[ids], atol=1e-6)


@pytest.fixture(scope="module")
def models() -> tuple[tinylm.LanguageModel, Any]:
    theirs = transformers.LlamaForCausalLM.from_pretrained(STORIES, dtype=torch.float32)
    return tinylm.load(STORIES), theirs.eval()


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 3},
        {"min_new_tokens": 90, "repetition_penalty": 1.05},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2},
        {"max_length": 60},
        {"eos_token_id": 426},
    ],
    ids=str,
)
@pytest.mark.parametrize("prompt", ["Once upon a time", "Lily and Tom", "The little dog was"])
def test_greedy_texts(models: tuple[tinylm.LanguageModel, Any], prompt: str, given: dict[str, Any]) -> None:
    ours, theirs = models
    given = given if "max_length" in given else {"max_new_tokens": 120, **given}
    ids = ours.tokenizer.encode(prompt)
    with torch.no_grad():
        out = theirs.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), pad_token_id=0, **given
        )
    completion = ours.generate(prompt, **given)
    assert completion.prompt_ids == ids
    assert completion.ids == out[0, len(ids) :].tolist()


@pytest.mark.parametrize(
    "given",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.8, "top_p": 0.95},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "repetition_penalty": 1.15},
        {"do_sample": True, "temperature": 1.3, "top_k": 0, "min_p": 0.05, "typical_p": 0.95},
    ],
    ids=str,
)
def test_the_odds_of_every_draw_of_a_text(
    models: tuple[tinylm.LanguageModel, Any], given: dict[str, Any]
) -> None:
    ours, theirs = models
    ids = ours.tokenizer.encode("Once upon a time")
    torch.manual_seed(3)
    with torch.no_grad():
        out = theirs.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), pad_token_id=0, max_new_tokens=60,
            return_dict_in_generate=True, output_scores=True, **given,
        )  # fmt: skip
    text = out.sequences[0].tolist()
    parameters = resolve_parameters(given, ours.generation_config, ours.eos_token_ids)
    sampler = Sampler(parameters, ours.engine.vocab_size, ids, RandomStream(0))
    logits = ours.logits(text)
    for step, scores in enumerate(out.scores):
        theirs_now = torch.softmax(scores[0].double(), dim=-1).numpy()
        mine = np.zeros_like(theirs_now)
        found, probabilities = sampler.probabilities(logits[len(ids) + step - 1])
        mine[found] = probabilities
        np.testing.assert_allclose(mine, theirs_now, atol=2e-5)
        sampler.accept(text[len(ids) + step])


def test_a_prompt_without_ids_begins_with_the_same_token(models: tuple[tinylm.LanguageModel, Any]) -> None:
    ours, theirs = models
    with torch.no_grad():
        out = theirs.generate(max_new_tokens=20, pad_token_id=0)
    completion = ours.generate([], max_new_tokens=20)
    assert completion.prompt_ids + completion.ids == out[0].tolist()
