"""Folders of unknown types and names: loaded by saying what they are, and explained where nothing fits."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tinylm.engine import Engine
from tinylm.errors import CheckpointError
from tinylm.tensor_names import TensorNames

ROOT = Path(__file__).resolve().parent.parent.parent


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("model_goldens", ROOT / "scripts" / "make_model_goldens.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()
STORED = json.loads(SCRIPT.VARIANTS_FILE.read_text(encoding="utf-8"))
LOGITS = dict(np.load(SCRIPT.LOGITS_FILE))

HUNYUAN = {
    "model.layers.{}.self_attn.q_norm.weight": "model.layers.{}.self_attn.query_layernorm.weight",
    "model.layers.{}.self_attn.k_norm.weight": "model.layers.{}.self_attn.key_layernorm.weight",
}


def write(folder: Path, name: str, **changes: Any) -> Path:
    """The folder of a variant of the goldens, with some keys of its config.json changed."""
    path: Path = SCRIPT.write_folder(folder, {**SCRIPT.VARIANTS[name], **changes}, STORED[name]["shapes"])
    return path


def edit(folder: Path, rename: dict[str, str | None], **added: np.ndarray) -> Path:
    """Rename the tensors of a folder whose names hold a key; None drops them."""
    tensors = {}
    for name, values in load_file(folder / "model.safetensors").items():
        new: str | None = name
        for old, other in rename.items():
            if old in name:
                new = None if other is None else name.replace(old, other)
        if new is not None:
            tensors[new] = values
    save_file({**tensors, **added}, folder / "model.safetensors")
    return folder


def check(engine: Engine, name: str) -> None:
    found = engine.logits(SCRIPT.text_ids(engine.vocab_size))
    assert np.abs(found - LOGITS[name]).max() < 1e-5 * np.abs(LOGITS[name]).max()


def error(folder: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        Engine.load(folder, threads=1, **options)
    return str(caught.value)


def test_an_unknown_type_is_explained_and_loads_by_saying_what_it_is(tmp_path: Path) -> None:
    folder = write(tmp_path, "qwen3", model_type="keylm")
    message = error(folder)
    assert "'model_type' 'keylm', which is unknown; known are llama, qwen3, gpt_neox" in message
    assert "The closest known layout is qwen3: all 25 tensors fit" in message
    assert "--architecture qwen3" in message
    check(Engine.load(folder, threads=1, architecture="qwen3"), "qwen3")


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "llama, tied with its head beside"])
def test_every_layout_is_recognized(name: str, tmp_path: Path) -> None:
    known = name.partition(",")[0]
    assert f"closest known layout is {known}: all" in error(write(tmp_path, name, model_type="other"))


def test_tensors_that_fit_and_keys_that_do_not(tmp_path: Path) -> None:
    folder = write(tmp_path, "llama", model_type="granite", logits_scaling=16.0)
    refused = "config.json: 'logits_scaling' is 16.0, which is not supported"
    assert f"The closest known layout is llama: but {refused}" in error(folder)
    assert "--architecture" not in error(folder)
    assert refused in error(folder, architecture="llama")


def test_an_unknown_architecture_that_was_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path, "qwen3")
    assert "architecture 'bert' is unknown; known are llama" in error(folder, architecture="bert")


def test_other_names_by_a_mapping(tmp_path: Path) -> None:
    name = "qwen3, norm after rope"
    folder = edit(
        write(tmp_path, name), {"q_norm": "query_layernorm", "k_norm": "key_layernorm", "embed_tokens": "wte"}
    )
    mapping = {**HUNYUAN, "model.embed_tokens.weight": "model.wte.weight"}
    check(Engine.load(folder, threads=1, tensor_names=TensorNames(mapping)), name)
    (tmp_path / "map.json").write_text(json.dumps(mapping))
    check(Engine.load(folder, threads=1, tensor_names=TensorNames.read(tmp_path / "map.json")), name)


def test_other_names_without_a_mapping_are_explained(tmp_path: Path) -> None:
    folder = edit(write(tmp_path, "qwen3"), {"q_norm": "query_layernorm", "k_norm": "key_layernorm"})
    message = error(folder)
    assert "lacks the tensor 'model.layers.0.self_attn.q_norm.weight' (8,)" in message
    assert "As qwen3: 21 of 25 tensors fit, 4 are extra" in message
    for ours, theirs in HUNYUAN.items():
        assert f"missing    {ours} (8,), 2 times; {theirs}?" in message
    assert "--tensor-names" in message
    assert "closest known layout" not in message
    folder = edit(
        write(tmp_path, "qwen3", model_type="other"), {"q_norm": "query_layernorm", "k_norm": "k_ln"}
    )
    assert "The closest known layout is qwen3: 21 of 25" in error(folder)


def test_a_mapping_without_a_meaning(tmp_path: Path) -> None:
    folder = write(tmp_path, "qwen3")
    wrong = TensorNames({"model.layers.{}.self_attn.norm_q.weight": "q.{}"})
    message = error(folder, tensor_names=wrong)
    assert "'model.layers.{}.self_attn.norm_q.weight' is no name that this architecture" in message


def test_a_misshapen_tensor(tmp_path: Path) -> None:
    message = error(write(tmp_path, "llama", intermediate_size=52))
    assert (
        "'model.layers.0.mlp.gate_proj.weight' has shape (48, 32), where the config asks for (52, 32)"
        in message
    )
    assert "misshapen  model.layers.{}.mlp.gate_proj.weight (52, 32), found (48, 32), 2 times" in message
    assert "misshapen  model.layers.{}.mlp.down_proj.weight (32, 52), found (32, 48), 2 times" in message
    assert "As llama: 15 of 21 tensors fit" in message


def test_an_extra_tensor(tmp_path: Path) -> None:
    folder = edit(write(tmp_path, "llama"), {}, surprise=np.zeros(3, np.float32))
    message = error(folder)
    assert "the checkpoint holds 'surprise'" in message
    assert "extra      surprise (3,)" in message


def test_a_type_whose_tensors_are_anothers(tmp_path: Path) -> None:
    message = error(write(tmp_path, "qwen3", model_type="llama"))
    assert "As llama: 21 of 21 tensors fit, 4 are extra" in message
    assert "The closest known layout is qwen3: all 25 tensors fit" in message


def test_a_head_that_differs_from_the_tie(tmp_path: Path) -> None:
    folder = write(tmp_path, "llama", tie_word_embeddings=True)
    assert "'lm_head.weight' differs from 'model.embed_tokens.weight'" in error(folder)


def test_more_layers_than_any_model_has(tmp_path: Path) -> None:
    message = error(write(tmp_path, "llama", num_hidden_layers=10_000_000))
    assert "lacks the tensor 'model.layers.2.input_layernorm.weight'" in message
    assert "over 10000 tensors" in message


def test_a_config_without_the_keys(tmp_path: Path) -> None:
    folder = write(tmp_path, "llama", model_type="mine", hidden_size=None)
    assert "config.json lacks 'hidden_size'" in error(folder)


@pytest.mark.parametrize("mapping", [{"a.{}.b": "c"}, {"a": 3}, {"a": "b.{}"}])
def test_entries_that_are_no_names(mapping: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="tensor_names: 'a"):
        TensorNames(mapping)


def test_names_with_digits_and_several_numbers() -> None:
    names = TensorNames({"h.{}.e.{}.dense_4h.weight": "x.{}.y_{}.z", "h.3.bias": "special"})
    assert names.unused == ["h.3.bias", "h.{}.e.{}.dense_4h.weight"]
    assert names.stored("h.12.e.7.dense_4h.weight") == "x.12.y_7.z"
    assert names.stored("h.3.bias") == "special"
    assert names.stored("h.4.bias") == "h.4.bias"
    assert names.unused == []
