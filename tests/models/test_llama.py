"""Llama: what its config.json means, what is refused, and which tensors belong to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tinylm.engine import Engine
from tinylm.errors import CheckpointError
from tinylm.models.llama import read_config
from tinylm.program import Program
from tinylm.sources.catalog import BUNDLED

STORIES = BUNDLED["stories260k"]
CONFIG: dict[str, Any] = json.loads((STORIES / "config.json").read_text(encoding="utf-8"))
TENSORS = load_file(STORIES / "model.safetensors")
ATTENTION = "model.layers.3.self_attn"


def folder(path: Path, changes: dict[str, Any] | None = None, **tensors: np.ndarray | None) -> Path:
    """The story model with some keys of its config and some tensors changed; None takes one away."""
    path.mkdir(exist_ok=True)
    config = {**CONFIG, **(changes or {})}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    held = {name: value for name, value in {**TENSORS, **tensors}.items() if value is not None}
    save_file(held, path / "model.safetensors")
    return path


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Engine.load(path, threads=1)
    return str(caught.value)


def test_absent_keys_mean_what_they_mean_in_transformers() -> None:
    needed = {
        "vocab_size": 97, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }  # fmt: skip
    config = read_config(needed)
    assert (config.num_key_value_heads, config.head_dim) == (4, 16)
    assert (config.hidden_act, config.rms_norm_eps, config.max_position_embeddings) == ("silu", 1e-6, 2048)
    assert (config.attention_bias, config.mlp_bias, config.tie_word_embeddings) == (False,) * 3
    assert (config.rope.kind, config.rope.theta) == ("default", 10_000)
    for name in needed:
        with pytest.raises(CheckpointError, match=f"lacks '{name}'"):
            read_config({**needed, name: None})


@pytest.mark.parametrize(
    "changes",
    [
        {"pretraining_tp": 2},
        {"sliding_window": 128},
        {"quantization_config": {"quant_method": "gptq"}},
        {"partial_rotary_factor": 0.5},
        {"hidden_act": "quick_gelu"},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4}},
        {"num_key_value_heads": 3},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_would_change_the_numbers_is_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_config({**CONFIG, **changes})
    name, value = next(iter(changes.items()))
    words = {"rope_scaling": "'yarn'", "quantization_config": "'gptq'", "num_key_value_heads": "3 key/value"}
    assert words.get(name, f"{name!r} is {value!r}") in str(caught.value)


def test_keys_that_cannot_matter_are_ignored(tmp_path: Path) -> None:
    stray = {"use_aux_loss": True, "target_hidden_size": 4096, "attention_dropout": 0.5, "pretraining_tp": 1,
             "use_cache": False, "initializer_range": "odd", "auto_map": {}}  # fmt: skip
    expected = Engine.load(STORIES, threads=1).logits([1, 2, 3])
    found = Engine.load(folder(tmp_path, stray), threads=1).logits([1, 2, 3])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        f"{ATTENTION}.q_proj.weight",
        "model.layers.4.mlp.down_proj.weight",
        "model.layers.0.post_attention_layernorm.weight",
    ],
)
def test_a_tensor_that_is_missing_or_another(tmp_path: Path, name: str) -> None:
    assert f"lacks the tensor {name!r}" in refused(folder(tmp_path / "missing", **{name: None}))
    longer = np.concatenate([TENSORS[name], TENSORS[name][:1]])
    found = refused(folder(tmp_path / "longer", **{name: longer}))
    assert f"{name!r} has shape {longer.shape}, where the config asks for {TENSORS[name].shape}" in found
    whole = TENSORS[name].astype(np.int32)
    assert f"{name!r} is I32; expected one of F32, F16" in refused(folder(tmp_path / "int", **{name: whole}))


@pytest.mark.parametrize(
    "name",
    ["lm_head.bias", f"{ATTENTION}.q_proj.bias", f"{ATTENTION}.q_norm.weight", "model.layers.5.mlp.up_proj.weight",
     "mdel.norm.weight"],
)  # fmt: skip
def test_a_tensor_that_nobody_uses(tmp_path: Path, name: str) -> None:
    extra = np.zeros(3, np.float32)
    assert f"the checkpoint holds {name!r}" in refused(folder(tmp_path, **{name: extra}))


def test_buffers_of_old_versions_are_ignored(tmp_path: Path) -> None:
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for i in range(5)}
    found = Engine.load(folder(tmp_path, **buffers), threads=1).logits([1, 2, 3])
    np.testing.assert_array_equal(found, Engine.load(STORIES, threads=1).logits([1, 2, 3]))
    extra = np.ones(4, np.float32)
    for name in ("model.rotary_emb.inv_freqs", "model.layers.x.self_attn.rotary_emb.inv_freq"):
        assert repr(name) in refused(folder(tmp_path, **{name: extra}))


LIES: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 128}, "has shape (512, 64)"),
    (
        {"vocab_size": 513},
        "'model.embed_tokens.weight' has shape (512, 64), where the config asks for (513, 64)",
    ),
    ({"vocab_size": 500}, "'model.embed_tokens.weight' has shape (512, 64)"),
    ({"intermediate_size": 171}, "'model.layers.0.mlp.gate_proj.weight' has shape (172, 64)"),
    ({"num_hidden_layers": 4}, "the checkpoint holds 'model.layers.4."),
    ({"num_hidden_layers": 6}, "lacks the tensor 'model.layers.5."),
    ({"num_key_value_heads": 8}, "k_proj.weight' has shape (32, 64), where the config asks for (64, 64)"),
    ({"head_dim": 16}, "q_proj.weight' has shape (64, 64), where the config asks for (128, 64)"),
    ({"tie_word_embeddings": False}, "lacks the tensor 'lm_head.weight'"),
    ({"attention_bias": True}, "lacks the tensor 'model.layers.0.self_attn.q_proj.bias'"),
    ({"mlp_bias": True}, "lacks the tensor 'model.layers.0.mlp.gate_proj.bias'"),
    ({"hidden_size": 1 << 24, "vocab_size": 1 << 24, "intermediate_size": 1 << 24}, "has shape (512, 64)"),
    ({"num_hidden_layers": 1 << 24}, "lacks the tensor 'model.layers.5."),
]


@pytest.mark.parametrize(("lie", "message"), LIES, ids=str)
def test_a_config_that_lies_about_sizes(tmp_path: Path, lie: dict[str, Any], message: str) -> None:
    assert message in refused(folder(tmp_path, lie))


def test_a_head_that_is_tied_and_written(tmp_path: Path) -> None:
    embedding = TENSORS["model.embed_tokens.weight"]
    found = Engine.load(folder(tmp_path, **{"lm_head.weight": embedding}), threads=1).logits([1, 2, 3])
    np.testing.assert_array_equal(found, Engine.load(STORIES, threads=1).logits([1, 2, 3]))
    other = embedding.copy()
    other[100, 30] = np.nextafter(other[100, 30], np.float32(9))
    message = refused(folder(tmp_path, **{"lm_head.weight": other}))
    assert "'tie_word_embeddings', but 'lm_head.weight' differs" in message
    assert "set it to false" in message
    untied = Engine.load(
        folder(tmp_path, {"tie_word_embeddings": False}, **{"lm_head.weight": other}), threads=1
    )
    assert untied.logits([1, 2, 3]).shape == (3, 512)
    for wrong in (embedding[:-1], embedding[:, :-1].copy()):
        assert "'lm_head.weight'" in refused(folder(tmp_path, **{"lm_head.weight": wrong}))


def test_the_program_reads_in_the_order_of_the_data() -> None:
    program: Program = Engine.load(STORIES, threads=1).program
    lines = [str(operation) for operation in program.operations]
    assert lines[:5] == [
        "embed (T, 64) = embed(float32 512x64)",
        "blocks.0.ln1 (T, 64) = rmsnorm(embed; weight 64, eps=1e-05)",
        "blocks.0.attn.q (T, 64) = matmul(blocks.0.ln1; float32 64x64)",
        "blocks.0.attn.k (T, 32) = matmul(blocks.0.ln1; float32 32x64)",
        "blocks.0.attn.v (T, 32) = matmul(blocks.0.ln1; float32 32x64)",
    ]
    assert lines[-1] == "logits (L, 512) = matmul(ln_final; float32 512x64)"
    assert program.operations[-1].matrix is program.operations[0].matrix, "tied: held once"
    assert program.layers == 5
