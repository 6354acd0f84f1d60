"""Llama against transformers: random mixtures of its options, long texts, and the ids that it chooses."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tinylm.engine import CHUNK, Engine
from tinylm.kernels.attention import SPLIT

pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parent.parent.parent

TOLERANCE = 1e-5
"""Of the largest logit. Rounding comes to a tenth of it, a GELU of the wrong kind to ten times."""

CLEAR = 1e-3
"""A choice counts where the next best logit is further off than this share of the largest."""


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("model_goldens", ROOT / "scripts" / "make_model_goldens.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()

LINEAR = {"factor": 2.5}


def mixture(generator: random.Random) -> dict[str, Any]:
    heads, key_value_heads = generator.choice(
        [(1, 1), (4, None), (4, 1), (4, 2), (4, 4), (6, 2), (9, 3), (8, 1), (15, 5), (24, 8)]
    )
    theta = generator.choice([100.0, 10_000.0, 500_000.0])
    llama3 = {**SCRIPT.LLAMA3_ROPE, "factor": generator.choice([4.0, 32.0])}
    rope: dict[str, Any] = generator.choice(
        [
            {},
            {"rope_theta": theta},
            {"rope_theta": theta, "rope_scaling": None},
            {"rope_theta": theta, "rope_scaling": {"type": "linear", **LINEAR}},
            {"rope_theta": theta, "rope_scaling": {"rope_type": "linear", **LINEAR}},
            {"rope_theta": theta, "rope_scaling": llama3},
            {"rope_parameters": {"rope_theta": theta, "rope_type": "default"}},
            {"rope_parameters": {"rope_theta": theta, "rope_type": "linear", **LINEAR}},
            {"rope_parameters": {"rope_theta": theta, **llama3}},
        ]
    )
    choices: dict[str, list[Any]] = {
        "hidden_size": [heads * 16, heads * 8 if heads > 1 else 24, heads * 20],
        "head_dim": [None, 8, 16, 20, 64, 128],
        "num_hidden_layers": [1, 2, 3],
        "intermediate_size": [7, 43, 64, 172],
        "vocab_size": [64, 97, 130],
        "hidden_act": ["silu", "silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu"],
        "attention_bias": [True, False],
        "mlp_bias": [True, False],
        "tie_word_embeddings": [True, False],
        "rms_norm_eps": [1e-6, 1e-5, 1e-2],
        "stored": ["F32", "F32", "F16", "BF16"],
    }
    picked = {name: generator.choice(values) for name, values in choices.items()}
    shape = {"num_attention_heads": heads, "num_key_value_heads": key_value_heads}
    return {**SCRIPT.LLAMA, **shape, **picked, **rope}


def check(found: np.ndarray, expected: np.ndarray, what: Any) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max(), what


@pytest.mark.parametrize("seed", range(40))
def test_mixtures(seed: int, tmp_path: Path) -> None:
    variant = mixture(random.Random(seed))
    _, expected = SCRIPT.oracle(tmp_path, variant)
    engine = Engine.load(tmp_path / "ours", threads=1 + seed % 3, kv_dtype="float32")
    ids = SCRIPT.text_ids(engine.vocab_size)
    check(engine.logits(ids), expected, variant)
    check(engine.trace(ids)["logits"], expected, variant)
    sequence = engine.new_sequence()
    engine.prefill(sequence, ids[:-3])
    check(np.concatenate([engine.decode([sequence], [id]) for id in ids[-3:]]), expected[-3:], variant)


@pytest.mark.parametrize("name", ["llama", "llama, nine heads on three", "llama, llama3 rope, old spelling"])
def test_a_text_longer_than_a_step(name: str, tmp_path: Path) -> None:
    length = SPLIT + CHUNK + 45
    variant = {**SCRIPT.VARIANTS[name], "max_position_embeddings": length}
    ids = [int(i) for i in np.random.RandomState(1).randint(0, 97, length)]
    _, expected = SCRIPT.oracle(tmp_path, variant, ids)
    engine = Engine.load(tmp_path / "ours", threads=2, kv_dtype="float32")
    check(engine.logits(ids), expected, variant)
    sequence = engine.new_sequence()
    check(engine.prefill(sequence, ids[:-5]), expected[-6], variant)
    check(np.concatenate([engine.decode([sequence], [id]) for id in ids[-5:]]), expected[-5:], variant)


@pytest.mark.parametrize("seed", range(100, 106))
def test_the_ids_that_it_chooses(seed: int, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    SCRIPT.oracle(tmp_path, variant := mixture(random.Random(seed)))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    engine = Engine.load(tmp_path / "ours", threads=2, kv_dtype="float32")
    ids = SCRIPT.text_ids(engine.vocab_size)[:5]
    sequence = engine.new_sequence()
    logits = engine.prefill(sequence, ids)
    for _ in range(40):
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits[0, -1].numpy()
        second, first = np.sort(expected)[-2:]
        if first - second < CLEAR * np.abs(expected).max():
            break  # a tie: either may be chosen, and the texts part
        assert logits.argmax() == expected.argmax(), (variant, len(ids))
        ids.append(int(expected.argmax()))
        logits = engine.decode([sequence], ids[-1:])[0]
    assert len(ids) > 5
