"""Tiny models that cross the options of every architecture give transformers' logits, however they are run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tinylm.engine import Engine

ROOT = Path(__file__).resolve().parent.parent.parent


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("model_goldens", ROOT / "scripts" / "make_model_goldens.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()
VARIANTS: dict[str, dict[str, Any]] = SCRIPT.VARIANTS
STORED = json.loads(SCRIPT.VARIANTS_FILE.read_text(encoding="utf-8"))
LOGITS = dict(np.load(SCRIPT.LOGITS_FILE))


def write(folder: Path, name: str, changes: dict[str, Any] | None = None) -> Path:
    """The folder of a variant, with some keys of its config.json changed."""
    path: Path = SCRIPT.write_folder(folder, {**VARIANTS[name], **(changes or {})}, STORED[name]["shapes"])
    return path


def distance(found: np.ndarray, name: str) -> float:
    """The largest difference of logits, as a share of the largest logit."""
    expected = LOGITS[name][-len(found) :]
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


TOLERANCE = 1e-5  # rounding comes to 2e-6, a tanh GELU in the place of an exact one to 1.6e-4


def test_there_are_variants_and_goldens_of_each() -> None:
    assert len(VARIANTS) >= 40
    assert LOGITS.keys() == VARIANTS.keys() == STORED.keys() - {"made by"}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    engine = Engine.load(write(tmp_path, name), threads=1, kv_dtype="float32")
    ids = SCRIPT.text_ids(engine.vocab_size)
    assert distance(engine.logits(ids), name) < TOLERANCE
    assert distance(engine.trace(ids)["logits"], name) < TOLERANCE
    sequence = engine.new_sequence()
    one_by_one = [engine.prefill(sequence, ids[:17])]
    one_by_one += [engine.decode([sequence], [token])[0] for token in ids[17:]]
    assert distance(np.stack(one_by_one), name) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"rope_theta": 20_000.0}),
        ("llama", {"rms_norm_eps": 1e-4}),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 1.01}}),
        ("llama, exact gelu inside", {"hidden_act": "gelu_new"}),
        ("llama, tanh gelu inside", {"hidden_act": "gelu"}),
        ("llama, llama3 rope", {"rope_parameters": {**SCRIPT.LLAMA3_ROPE, "rope_theta": 1e3, "factor": 4.1}}),
        ("gpt_neox", {"hidden_act": "gelu_new"}),
        ("gpt_neox, tanh gelu", {"hidden_act": "gelu"}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("gpt_neox, sequential residual", {"use_parallel_residual": True}),
        ("gpt_neox", {"rotary_pct": 0.5}),
        ("gpt_neox, whole heads turn", {"rotary_emb_base": 20_000}),
        ("gpt_neox", {"layer_norm_eps": 1e-4}),
        ("qwen3", {"qk_norm_after_rope": True}),
        ("qwen3, norm after rope", {"qk_norm_after_rope": False}),
        ("qwen3", {"rms_norm_eps": 1e-4}),
    ],
)
def test_every_option_shows(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """A config misread in one number or name would be seen at the tolerance of the tests above."""
    engine = Engine.load(write(tmp_path, name, changes), threads=1, kv_dtype="float32")
    assert distance(engine.logits(SCRIPT.text_ids(engine.vocab_size)), name) > 2 * TOLERANCE
