"""GPT-NeoX: what its config.json means, what is refused, and which tensors belong to it."""

from __future__ import annotations

from typing import Any

import pytest

from tinylm.errors import CheckpointError
from tinylm.models.gpt_neox import read_config

SMALL: dict[str, Any] = {
    "model_type": "gpt_neox", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip


def test_absent_keys_mean_what_they_mean_in_transformers() -> None:
    config = read_config(SMALL)
    assert (config.hidden_act, config.layer_norm_eps) == ("gelu", 1e-5)
    assert (config.attention_bias, config.use_parallel_residual, config.tie_word_embeddings) == (
        True,
        True,
        False,
    )
    assert (config.head_dim, config.rotary_dim, config.rope.theta) == (16, 4, 10_000)


def test_other_architectures_keys_mean_nothing() -> None:
    stray = {"num_key_value_heads": 3, "rms_norm_eps": 0.5, "rope_theta": 17, "head_dim": 5, "mlp_bias": 1}
    assert read_config({**SMALL, **stray}).rope.theta == 10_000
    assert read_config({**SMALL, **stray}).head_dim == 16


@pytest.mark.parametrize(
    ("changes", "rotary_dim", "theta"),
    [
        ({"rotary_pct": 1.0, "rotary_emb_base": 500}, 16, 500),
        (
            {"rope_parameters": {"rope_theta": 500, "partial_rotary_factor": 0.5, "rope_type": "default"}},
            8,
            500,
        ),
        # where both stand, the new spelling counts
        ({"rotary_pct": 1.0, "rotary_emb_base": 7, "rope_parameters": {"partial_rotary_factor": 0.5}}, 8, 7),
    ],
)
def test_both_spellings_of_the_rotary_embedding(
    changes: dict[str, Any], rotary_dim: int, theta: float
) -> None:
    config = read_config({**SMALL, **changes})
    assert (config.rotary_dim, config.rope.theta) == (rotary_dim, theta)
    assert len(config.rope.frequencies(config.rotary_dim)) == rotary_dim // 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 65}, "a width of 65 is not a multiple of 4 heads"),
        ({"hidden_act": "quick_gelu"}, "'hidden_act' is 'quick_gelu'"),
        ({"rotary_pct": 1.5}, "1.5 of each head cannot turn"),
        ({"rotary_pct": "a quarter"}, "'rotary_pct' is 'a quarter'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "rope type 'yarn' is not supported"),
        ({"rope_scaling": 2}, "'rope_scaling' is 2"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 2}}},
            "'rope_parameters' for 'full_attention'",
        ),
        (
            {"rope_parameters": {"rope_theta": 3}, "rope_scaling": {"type": "linear", "factor": 2}},
            "'rope_parameters' and 'rope_scaling' disagree",
        ),
        ({"quantization_config": {"bits": 4}}, "'quantization_config'"),
        ({"use_parallel_residual": "yes"}, "'use_parallel_residual' is 'yes'"),
        ({"num_attention_heads": None}, "lacks 'num_attention_heads'"),
    ],
)
def test_what_cannot_be_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        read_config({**SMALL, **changes})


def test_a_rotary_part_of_odd_width_is_refused() -> None:
    config = read_config({**SMALL, "rotary_pct": 0.2})
    with pytest.raises(CheckpointError, match="over 3 numbers a head: expected an even number"):
        config.rope.frequencies(config.rotary_dim)
