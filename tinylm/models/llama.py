"""Llama (Touvron et al. 2023, arXiv:2302.13971): RMSNorm, rotary positions, grouped queries, SwiGLU."""

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
"""Buffers that older versions of transformers wrote; they follow from the config."""


@dataclass(frozen=True)
class Config:
    """The fields of a Llama config.json that this file reads."""

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
    mlp_bias: bool
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope: Rope


def read_config(config: Mapping[str, Any]) -> Config:
    """The config of a config.json. Raises CheckpointError for what is missing, odd or not supported."""
    fields = Fields(config)
    fields.refuse(pretraining_tp=(1,), sliding_window=())
    fields.refuse_keys_of_others("llama")
    fields.refuse_quantization()
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
        mlp_bias=fields.flag("mlp_bias", False),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        max_position_embeddings=fields.size("max_position_embeddings", 2048),
        rope=fields.rope(),
    )


def build(config: Config, weights: Weights) -> Program:
    """The program of a Llama."""
    D, F, eps, bias = config.hidden_size, config.intermediate_size, config.rms_norm_eps, config.attention_bias
    Q, KV = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    program = Program(
        vocab_size=config.vocab_size,
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        inverse_frequencies=config.rope.frequencies(config.head_dim),
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
        q = program.rope(f"{block}.attn.rot_q", q)
        k = program.rope(f"{block}.attn.rot_k", k)
        z = program.attention(f"{block}.attn.z", q, k, v)  # (T, H Dh)
        a = layers.linear(f"{block}.attn_out", z, f"{here}.self_attn.o_proj", (D, Q), bias)
        x = program.add(f"{block}.resid_mid", x, a)  # (T, D)

        h = layers.rmsnorm(f"{block}.ln2", x, f"{here}.post_attention_layernorm", D, eps)
        m = layers.swiglu(block, h, here, F, config.hidden_act, bias=config.mlp_bias)
        x = program.add(f"{block}.resid_post", x, m)  # (T, D)

    x = program.chosen_rows("ln_final.input", x)  # (L, D)
    x = layers.rmsnorm("ln_final", x, "model.norm", D, eps)
    layers.head(x, "lm_head.weight", config.tie_word_embeddings, embedding, EMBEDDING)  # (L, V)
    weights.finish(IGNORABLE)
    return program
