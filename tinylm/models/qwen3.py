"""Qwen3 (Qwen team 2025, arXiv:2505.09388): a Llama that normalizes every query and key head.

The weights of the two norms are as wide as a head and shared by all heads of a layer. Qwen3 normalizes before
the rotary embedding. Other models of this layout do it after: a config.json says so with
`"qk_norm_after_rope": true`, a key of ours, because the tensors alone cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinylm.models.fields import Fields, Rope
from tinylm.models.layers import Layers
from tinylm.program import Program
from tinylm.weights import Weights

EMBEDDING = "model.embed_tokens.weight"

IGNORABLE = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
"""Buffers that follow from the config."""

QWEN3_HEAD_DIM = 128
"""What a config of `model_type` qwen3 without `head_dim` means in transformers; elsewhere it is D / H."""


@dataclass(frozen=True)
class Config:
    """The fields of a Qwen3 config.json that this file reads."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    rms_norm_eps: float
    attention_bias: bool
    qk_norm_after_rope: bool
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope: Rope


def read_config(config: Mapping[str, Any]) -> Config:
    """The config of a config.json. Raises CheckpointError for what is missing, odd or not supported."""
    if config.get("model_type") == "qwen3" and config.get("head_dim") is None:
        config = {**config, "head_dim": QWEN3_HEAD_DIM}
    fields = Fields(config)
    fields.refuse_keys_of_others("qwen3")
    fields.refuse_quantization()
    context = fields.size("max_position_embeddings", 32_768)
    if fields.flag("use_sliding_window", False):
        fields.refuse_window("sliding_window", 4096, context)
    fields.refuse_layer_types("full_attention")
    heads, key_value_heads, head_dim = fields.heads()
    return Config(
        vocab_size=fields.size("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        intermediate_size=fields.size("intermediate_size"),
        num_hidden_layers=fields.size("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        hidden_act=fields.activation("hidden_act", "silu"),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        attention_bias=fields.flag("attention_bias", False),
        qk_norm_after_rope=fields.flag("qk_norm_after_rope", False),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        max_position_embeddings=context,
        rope=fields.rope(),
    )


def build(config: Config, weights: Weights) -> Program:
    """The program of a Qwen3."""
    D, F, eps, bias = config.hidden_size, config.intermediate_size, config.rms_norm_eps, config.attention_bias
    Dh = config.head_dim
    Q, KV = config.num_attention_heads * Dh, config.num_key_value_heads * Dh
    program = Program(
        vocab_size=config.vocab_size,
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        head_dim=Dh,
        inverse_frequencies=config.rope.frequencies(Dh),
    )
    layers = Layers(program, weights)
    embedding = weights.matrix(EMBEDDING, (config.vocab_size, D))
    x = program.embed("embed", embedding)  # (T, D)
    for layer in range(config.num_hidden_layers):
        here, block = f"model.layers.{layer}", f"blocks.{layer}"
        h = layers.rmsnorm(f"{block}.ln1", x, f"{here}.input_layernorm", D, eps)
        q = layers.linear(f"{block}.attn.q", h, f"{here}.self_attn.q_proj", (Q, D), bias)  # (T, H Dh)
        k = layers.linear(f"{block}.attn.k", h, f"{here}.self_attn.k_proj", (KV, D), bias)  # (T, Hkv Dh)
        v = layers.linear(f"{block}.attn.v", h, f"{here}.self_attn.v_proj", (KV, D), bias)
        if config.qk_norm_after_rope:
            q = program.rope(f"{block}.attn.rot_q", q)
            k = program.rope(f"{block}.attn.rot_k", k)
            q = layers.rmsnorm(f"{block}.attn.q_norm", q, f"{here}.self_attn.q_norm", Dh, eps)
            k = layers.rmsnorm(f"{block}.attn.k_norm", k, f"{here}.self_attn.k_norm", Dh, eps)
        else:
            q = layers.rmsnorm(f"{block}.attn.q_norm", q, f"{here}.self_attn.q_norm", Dh, eps)
            k = layers.rmsnorm(f"{block}.attn.k_norm", k, f"{here}.self_attn.k_norm", Dh, eps)
            q = program.rope(f"{block}.attn.rot_q", q)
            k = program.rope(f"{block}.attn.rot_k", k)
        z = program.attention(f"{block}.attn.z", q, k, v)  # (T, H Dh)
        a = layers.linear(f"{block}.attn_out", z, f"{here}.self_attn.o_proj", (D, Q), bias)
        x = program.add(f"{block}.resid_mid", x, a)  # (T, D)

        h = layers.rmsnorm(f"{block}.ln2", x, f"{here}.post_attention_layernorm", D, eps)
        m = layers.swiglu(block, h, here, F, config.hidden_act)
        x = program.add(f"{block}.resid_post", x, m)  # (T, D)

    x = program.chosen_rows("ln_final.input", x)  # (L, D)
    x = layers.rmsnorm("ln_final", x, "model.norm", D, eps)
    layers.head(x, "lm_head.weight", config.tie_word_embeddings, embedding, EMBEDDING)  # (L, V)
    weights.finish(IGNORABLE)
    return program
