"""A config.json is read field by field: what is missing, odd or not supported is named, and nothing crashes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tinylm.errors import CheckpointError
from tinylm.models.fields import ACTIVATIONS, LARGEST_SIZE, Fields, Rope

ODD: list[Any] = ["4", True, 0, -1, 1.5, LARGEST_SIZE + 1, 10**400, [4], {}, math.nan, math.inf]


@pytest.mark.parametrize("value", ODD, ids=lambda value: str(value)[:20])
def test_sizes(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: 'n' is .* expected 1 to 16777216"):
        Fields({"n": value}).size("n")
    assert Fields({"n": 7}).size("n", 5) == 7
    assert Fields({"n": None}).size("n", 5) == Fields({}).size("n", 5) == 5
    with pytest.raises(CheckpointError, match=r"config\.json lacks 'n'"):
        Fields({"n": None}).size("n")


@pytest.mark.parametrize(
    "value",
    ["1", True, 0, -1e-5, [1], {}, math.nan, math.inf, 10**400, 1e39, 1e-39],
    ids=lambda value: str(value)[:20],
)
def test_numbers(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"'x' is .* expected a number above 0 that float32 holds"):
        Fields({"x": value}).number("x", 1.0)
    assert Fields({"x": 3}).number("x", 1.0) == 3.0
    assert Fields({"x": None}).number("x", 1.0) == Fields({}).number("x", 1.0) == 1.0


@pytest.mark.parametrize("value", ["true", 1, 0, [], {}])
def test_flags(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"'f' is .* expected true or false"):
        Fields({"f": value}).flag("f", True)
    assert Fields({"f": False}).flag("f", True) is False
    assert Fields({"f": None}).flag("f", True) is Fields({}).flag("f", True) is True


@pytest.mark.parametrize("value", ["quick_gelu", "SiLU", 3, ["silu"], {"name": "silu"}])
def test_activations(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"'hidden_act' is .* supported are silu, swish, gelu"):
        Fields({"hidden_act": value}).activation("hidden_act", "silu")
    for name, ours in ACTIVATIONS.items():
        assert Fields({"hidden_act": name}).activation("hidden_act", "relu") == ours
    assert Fields({}).activation("hidden_act", "gelu_new") == "gelu_tanh"


@pytest.mark.parametrize(
    ("name", "other"),
    [("hidden_size", "n_embd"), ("num_hidden_layers", "n_layers"), ("vocab_size", "n_vocab")],
)
def test_a_size_under_another_name_is_pointed_at(name: str, other: str) -> None:
    with pytest.raises(CheckpointError, match=f"lacks '{name}'; its '{other}' of 512 may be what is meant"):
        Fields({other: 512, "n_head": 8}).size(name)
    with pytest.raises(CheckpointError, match=f"lacks '{name}'$"):
        Fields({other: "512", "n_head": 8}).size(name)


GRANITE = {
    "embedding_multiplier": 12.0, "attention_multiplier": 0.0078125, "residual_multiplier": 0.22,
    "logits_scaling": 16.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        *({name: value} for name, value in GRANITE.items()),
        {"no_rope_layers": [1, 1, 1, 0]},
        {"final_logit_softcapping": 30.0},
        {"query_pre_attn_scalar": 256},
        {"scale_emb": 12},
        {"clip_qkv": 8.0},
        {"logit_scale": 0.0625},
    ],
    ids=str,
)
def test_what_changes_the_numbers_of_another_type_is_refused(config: dict[str, Any]) -> None:
    """Tensors of Granite, SmolLM3, Gemma 2 and others are named and shaped like Llama's; their sums are others."""
    with pytest.raises(CheckpointError, match=f"'{next(iter(config))}' is .*not supported"):
        Fields({**config, "model_type": "other"}).refuse_keys_of_others("llama")
    Fields({**config, "model_type": "llama"}).refuse_keys_of_others("llama")  # where they mean nothing


def test_what_changes_nothing_of_another_type_is_not_refused() -> None:
    neutral = {
        **dict.fromkeys(["embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale"], 1.0),
        "no_rope_layers": [1, 1], "clip_qkv": None, "final_logit_softcapping": None, "use_aux_loss": True,
    }  # fmt: skip
    Fields({**neutral, "model_type": "other"}).refuse_keys_of_others("llama")


@pytest.mark.parametrize("value", [4096, "yes", [1], {"a": 1}, 2.5])
def test_what_is_not_supported_is_refused_by_name(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"'window' is .*not supported"):
        Fields({"window": value}).refuse(window=(1, 2))
    Fields({"window": None}).refuse(window=())
    Fields({"window": 1}).refuse(window=(1,), other=())


def heads(**config: Any) -> tuple[int, int, int]:
    return Fields({"hidden_size": 48, "num_attention_heads": 6, **config}).heads()


def test_heads() -> None:
    assert heads() == (6, 6, 8)
    assert heads(num_key_value_heads=2) == (6, 2, 8)
    assert heads(head_dim=20) == (6, 6, 20)
    assert heads(head_dim=None) == (6, 6, 8)
    assert heads(hidden_size=47, head_dim=20) == (6, 6, 20)
    for wrong in ({"num_key_value_heads": 4}, {"num_key_value_heads": 7}):
        with pytest.raises(CheckpointError, match="6 attention heads cannot share"):
            heads(**wrong)
    with pytest.raises(CheckpointError, match="a width of 47 is not a multiple of 6 heads"):
        heads(hidden_size=47)
    with pytest.raises(CheckpointError, match="'head_dim' is 0"):
        heads(head_dim=0)


# Rotary parameters

LLAMA_3_2 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def rope(**config: Any) -> Rope:
    return Fields({"max_position_embeddings": 4096, **config}).rope()


def plain(theta: float, dim: int) -> np.ndarray:
    return theta ** -(np.arange(0, dim, 2) / dim)


SPELLINGS: list[tuple[dict[str, Any], str, float]] = [
    ({}, "default", 10_000),
    ({"rope_theta": 500_000}, "default", 500_000),
    ({"rope_theta": 500_000, "rope_scaling": None}, "default", 500_000),
    ({"rope_scaling": {"type": "linear", "factor": 2}, "rope_theta": 7}, "linear", 7),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2}}, "linear", 10_000),
    ({"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 7}}, "linear", 7),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 9.5}}, "default", 9.5),
    ({"rope_parameters": {"rope_theta": 9.5}, "rope_theta": 3}, "default", 9.5),
    ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 3}, "default", 3),
    ({"rope_parameters": None, "rope_scaling": LLAMA_3_2}, "llama3", 10_000),
    ({"rope_parameters": {**LLAMA_3_2, "rope_theta": 5e5}}, "llama3", 5e5),
]


@pytest.mark.parametrize(("config", "kind", "theta"), SPELLINGS, ids=str)
def test_both_spellings(config: dict[str, Any], kind: str, theta: float) -> None:
    found = rope(**config)
    assert (found.kind, found.theta) == (kind, theta)


def test_angles_of_each_type() -> None:
    np.testing.assert_allclose(rope(rope_theta=5e5).frequencies(64), plain(5e5, 64), rtol=1e-6)
    linear = rope(rope_scaling={"type": "linear", "factor": 4})
    np.testing.assert_allclose(linear.frequencies(20), plain(1e4, 20) / 4, rtol=1e-6)


def test_llama3_keeps_short_waves_stretches_long_ones_and_blends_between() -> None:
    found = rope(rope_theta=5e5, rope_scaling=LLAMA_3_2).frequencies(128).astype(np.float64)
    original = plain(5e5, 128)
    turns = 8192 * original / (2 * np.pi)  # of the original context
    stretch = original / found
    np.testing.assert_allclose(stretch[turns > 4], 1, rtol=1e-5)
    np.testing.assert_allclose(stretch[turns < 1], 32, rtol=1e-5)
    between = (turns > 1) & (turns < 4)
    assert 2 <= between.sum() < 20
    # The share of the kept wave grows with the turns: none at one, all at four.
    share = (turns[between] - 1) / 3
    np.testing.assert_allclose(found[between] / original[between], share + (1 - share) / 32, rtol=1e-5)


def test_llama3_without_its_original_context_means_this_one() -> None:
    short = {name: value for name, value in LLAMA_3_2.items() if not name.startswith("original")}
    written = {**LLAMA_3_2, "original_max_position_embeddings": 4096}
    np.testing.assert_array_equal(
        rope(rope_scaling=short).frequencies(64), rope(rope_scaling=written).frequencies(64)
    )


REFUSED: list[tuple[dict[str, Any], str]] = [
    *(
        ({"rope_scaling": {"rope_type": kind, "factor": 2.0}}, f"rope type '{kind}' is not supported")
        for kind in ("yarn", "dynamic", "longrope", "su", "mrope", "ntk", "")
    ),
    ({"rope_scaling": "linear"}, "'rope_scaling' is 'linear'; expected an object or null"),
    ({"rope_parameters": [1]}, r"'rope_parameters' is \[1\]"),
    ({"rope_scaling": {"rope_type": ["linear"], "factor": 2}}, "rope type .* not supported"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "'full_attention'"),
    ({"rope_scaling": {"type": "linear"}}, "'linear' needs 'factor'"),
    ({"rope_scaling": {"type": "linear", "factor": None}}, "'linear' needs 'factor'"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "'factor' is 0"),
    ({"rope_scaling": {"type": "linear", "factor": "2"}}, "'factor' is '2'"),
    ({"rope_scaling": {**LLAMA_3_2, "low_freq_factor": None}}, "'llama3' needs 'low_freq_factor'"),
    ({"rope_scaling": {**LLAMA_3_2, "low_freq_factor": 4.0}}, "low_freq_factor 4.0 must be below"),
    ({"rope_scaling": {**LLAMA_3_2, "original_max_position_embeddings": -1}}, "is -1"),
    ({"rope_theta": 0}, "'rope_theta' is 0"),
    ({"rope_theta": 1e-30}, "'rope_theta' is 1e-30; expected 1 or more"),
    ({"rope_parameters": {"rope_theta": 0.5}}, "'rope_theta' is 0.5; expected 1 or more"),
    ({"rope_parameters": {"rope_theta": "large"}}, "'rope_theta' is 'large'"),
    ({"partial_rotary_factor": 0.5}, "'partial_rotary_factor' is 0.5"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED, ids=str)
def test_rotary_parameters_that_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        rope(**config).frequencies(64)


@pytest.mark.parametrize("dim", [0, 1, 7])
def test_heads_that_cannot_be_split(dim: int) -> None:
    with pytest.raises(CheckpointError, match=f"over {dim} numbers a head: expected an even number"):
        rope().frequencies(dim)
