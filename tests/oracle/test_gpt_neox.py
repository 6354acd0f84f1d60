"""GPT-NeoX against transformers: random mixtures of its options, and texts longer than a step."""

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
    heads, half_width = generator.choice([(1, 16), (2, 8), (4, 4), (5, 4), (3, 10)])
    width = heads * half_width * 2
    choices: dict[str, list[Any]] = {
        "num_hidden_layers": [1, 2, 3],
        "intermediate_size": [width, 4 * width, 43, 172],
        "vocab_size": [64, 97, 130],
        "rotary_pct": [0.25, 0.5, 1.0],
        "rotary_emb_base": [100, 10_000],
        "use_parallel_residual": [True, False],
        "hidden_act": ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"],
        "attention_bias": [True, False],
        "tie_word_embeddings": [True, False],
        "layer_norm_eps": [1e-5, 1e-3],
        "rope_scaling": [None, {"type": "linear", "factor": 2.0}],
        "stored": ["F32", "F32", "BF16"],
    }
    picked = {name: generator.choice(values) for name, values in choices.items()}
    # transformers tells the width of what turns as int(share * head width), which must be even here
    return {**SCRIPT.NEOX, "hidden_size": width, "num_attention_heads": heads, **picked} | (
        {"rotary_pct": 1.0} if int(2 * half_width * picked["rotary_pct"]) % 2 else {}
    )


@pytest.mark.parametrize("seed", range(24))
def test_mixtures(seed: int, tmp_path: Path) -> None:
    variant = mixture(random.Random(seed))
    _, expected = SCRIPT.oracle(tmp_path, variant)
    engine = Engine.load(tmp_path / "ours", threads=1, kv_dtype="float32")
    found = engine.logits(SCRIPT.text_ids(engine.vocab_size))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max(), variant


def test_a_text_longer_than_a_step(tmp_path: Path) -> None:
    ids = [int(i) for i in np.random.RandomState(1).randint(0, 97, CHUNK + 45)]
    _, expected = SCRIPT.oracle(tmp_path, {**SCRIPT.NEOX, "max_position_embeddings": 512}, ids)
    engine = Engine.load(tmp_path / "ours", threads=2, kv_dtype="float32")
    assert np.abs(engine.logits(ids) - expected).max() < 1e-5 * np.abs(expected).max()
    last = engine.prefill(engine.new_sequence(), ids)
    assert np.abs(last - expected[-1]).max() < 1e-5 * np.abs(expected).max()
