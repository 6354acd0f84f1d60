"""Qwen3 against transformers: random mixtures of its options, and texts longer than a step."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tinylm.engine import CHUNK, Engine

pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parent.parent.parent


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("model_goldens", ROOT / "scripts" / "make_model_goldens.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()


def mixture(generator: random.Random) -> dict[str, Any]:
    heads, key_value_heads = generator.choice([(1, 1), (4, 1), (4, 2), (4, 4), (6, 3), (9, 3), (8, 2)])
    choices: dict[str, list[Any]] = {
        "hidden_size": [heads * 4, heads * 8, heads * 11],
        "head_dim": [4, 8, 10, 16],
        "num_hidden_layers": [1, 2, 3],
        "intermediate_size": [43, 64, 172],
        "vocab_size": [64, 97, 130],
        "rope_theta": [100.0, 10_000.0, 1_000_000.0],
        "attention_bias": [True, False],
        "tie_word_embeddings": [True, False],
        "rms_norm_eps": [1e-6, 1e-3],
        "rope_scaling": [None, {"rope_type": "linear", "factor": 2.0}, SCRIPT.LLAMA3_ROPE],
        "stored": ["F32", "F32", "BF16"],
        "qk_norm_after_rope": [False, False, True],
    }
    picked = {name: generator.choice(values) for name, values in choices.items()}
    return {**SCRIPT.QWEN3, "num_attention_heads": heads, "num_key_value_heads": key_value_heads, **picked}


@pytest.mark.parametrize("seed", range(24))
def test_mixtures(seed: int, tmp_path: Path) -> None:
    variant = mixture(random.Random(seed))
    _, expected = SCRIPT.oracle(tmp_path, variant)
    engine = Engine.load(tmp_path / "ours", threads=1, kv_dtype="float32")
    found = engine.logits(SCRIPT.text_ids(engine.vocab_size))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max(), variant


def test_a_text_longer_than_a_step(tmp_path: Path) -> None:
    ids = [int(i) for i in np.random.RandomState(1).randint(0, 97, CHUNK + 45)]
    _, expected = SCRIPT.oracle(tmp_path, {**SCRIPT.QWEN3, "max_position_embeddings": 512}, ids)
    engine = Engine.load(tmp_path / "ours", threads=2, kv_dtype="float32")
    assert np.abs(engine.logits(ids) - expected).max() < 1e-5 * np.abs(expected).max()
    last = engine.prefill(engine.new_sequence(), ids)
    assert np.abs(last - expected[-1]).max() < 1e-5 * np.abs(expected).max()
