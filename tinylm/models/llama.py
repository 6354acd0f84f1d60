"""Llama (Touvron et al. 2023, arXiv:2302.13971): RMSNorm, rotary positions, grouped queries, SwiGLU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinylm.errors import CheckpointError
from tinylm.formats import Matrix
from tinylm.models.fields import Fields, Rope
from tinylm.program import Program
from tinylm.weights import Weights

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
    fields.refuse(pretraining_tp=(1,), sliding_window=(), quantization_config=())
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
    D, F, eps = config.hidden_size, config.intermediate_size, config.rms_norm_eps
    Q, KV = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    program = Program(
        vocab_size=config.vocab_size,
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        inverse_frequencies=config.rope.frequencies(config.head_dim),
    )
    embedding = weights.matrix("model.embed_tokens.weight", (config.vocab_size, D))
    x = program.embed("embed", embedding)  # (T, D)
    for layer in range(config.num_hidden_layers):
        here, block = f"model.layers.{layer}", f"blocks.{layer}"

        def project(name: str, x: str, tensor: str, N: int, K: int, bias: bool, here: str = here) -> str:
            matrix = weights.matrix(f"{here}.{tensor}.weight", (N, K))
            return program.matmul(name, x, matrix, weights.vector_if(bias, f"{here}.{tensor}.bias", N))

        h = program.rmsnorm(f"{block}.ln1", x, weights.vector(f"{here}.input_layernorm.weight", D), eps)
        q = project(f"{block}.attn.q", h, "self_attn.q_proj", Q, D, config.attention_bias)  # (T, H Dh)
        k = project(f"{block}.attn.k", h, "self_attn.k_proj", KV, D, config.attention_bias)  # (T, Hkv Dh)
        v = project(f"{block}.attn.v", h, "self_attn.v_proj", KV, D, config.attention_bias)
        q = program.rope(f"{block}.attn.rot_q", q)
        k = program.rope(f"{block}.attn.rot_k", k)
        z = program.attention(f"{block}.attn.z", q, k, v)  # (T, H Dh)
        a = project(f"{block}.attn_out", z, "self_attn.o_proj", D, Q, config.attention_bias)
        x = program.add(f"{block}.resid_mid", x, a)  # (T, D)

        h = program.rmsnorm(
            f"{block}.ln2", x, weights.vector(f"{here}.post_attention_layernorm.weight", D), eps
        )
        gate = project(f"{block}.mlp.pre", h, "mlp.gate_proj", F, D, config.mlp_bias)  # (T, F)
        up = project(f"{block}.mlp.pre_linear", h, "mlp.up_proj", F, D, config.mlp_bias)
        h = program.gate(f"{block}.mlp.post", gate, up, config.hidden_act)
        m = project(f"{block}.mlp_out", h, "mlp.down_proj", D, F, config.mlp_bias)
        x = program.add(f"{block}.resid_post", x, m)  # (T, D)

    x = program.chosen_rows("ln_final.input", x)  # (L, D)
    x = program.rmsnorm("ln_final", x, weights.vector("model.norm.weight", D), eps)
    program.matmul("logits", x, head(config.tie_word_embeddings, embedding, weights))  # (L, V)
    weights.finish(IGNORABLE)
    return program


def head(tied: bool, embedding: Matrix, weights: Weights) -> Matrix:
    """The output matrix (V, D): its own, or the embedding where the config ties them.

    A checkpoint that ties them and still holds `lm_head.weight` must hold the same numbers there.
    """
    if not tied:
        return weights.matrix("lm_head.weight", embedding.shape)
    if "lm_head.weight" in weights:
        if not weights.same("lm_head.weight", "model.embed_tokens.weight"):
            raise CheckpointError(
                "config.json says 'tie_word_embeddings', but 'lm_head.weight' differs from "
                "'model.embed_tokens.weight'; if the head is its own, set it to false"
            )
        weights.ignore("lm_head.weight")
    return embedding
