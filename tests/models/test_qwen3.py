"""Qwen3's layout: what its config.json means, the order of norm and rotary embedding, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tinylm.errors import CheckpointError
from tinylm.models.qwen3 import read_config

SMALL: dict[str, Any] = {
    "model_type": "qwen3", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8,
}  # fmt: skip


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in SMALL.items() if name not in names}


def test_absent_keys_mean_what_they_mean_in_transformers() -> None:
    config = read_config(SMALL)
    assert (config.rms_norm_eps, config.hidden_act, config.rope.theta) == (1e-6, "silu", 10_000)
    assert (config.attention_bias, config.tie_word_embeddings, config.qk_norm_after_rope) == (False,) * 3


def test_head_dim_that_is_absent() -> None:
    assert read_config(without("head_dim")).head_dim == 128
    assert read_config({**SMALL, "head_dim": None}).head_dim == 128
    # A folder of an unknown type that is loaded as Qwen3 does not share its default.
    assert read_config({**without("head_dim"), "model_type": "keylm"}).head_dim == 16


def test_a_window_matters_only_where_it_cuts() -> None:
    assert (
        read_config({**SMALL, "sliding_window": 8, "use_sliding_window": False}).max_position_embeddings == 64
    )
    assert (
        read_config({**SMALL, "sliding_window": 64, "use_sliding_window": True}).max_position_embeddings == 64
    )
    with pytest.raises(CheckpointError, match="'sliding_window' is 63, shorter than the context of 64"):
        read_config({**SMALL, "sliding_window": 63, "use_sliding_window": True})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "'layer_types' has 'sliding_attention'"),
        ({"layer_types": "full"}, "'layer_types' has 'full'"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key/value heads"),
        ({"qk_norm_after_rope": "after"}, "'qk_norm_after_rope' is 'after'"),
        ({"partial_rotary_factor": 0.5}, "'partial_rotary_factor' is 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "'partial_rotary_factor' is 0.5"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2}}, "rope type 'dynamic'"),
        ({"rms_norm_eps": 0}, "'rms_norm_eps' is 0"),
        ({"head_dim": -8}, "'head_dim' is -8"),
        ({"vocab_size": True}, "'vocab_size' is True"),
    ],
)
def test_what_cannot_be_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        read_config({**SMALL, **changes})
