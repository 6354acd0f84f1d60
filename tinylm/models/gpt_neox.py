"""GPT-NeoX (Black et al. 2022, arXiv:2204.06745): LayerNorm, fused queries, keys and values, parallel residual.

A row of the fused matrix belongs to a head, then to its q, k or v. Rotary embedding turns only the first part
of each head. Attention is always multi-head: `num_key_value_heads`, `head_dim`, `rms_norm_eps` and
`rope_theta`, which some configs of this architecture carry, mean nothing here, as in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinylm.models.fields import Fields, Rope
from tinylm.models.layers import Layers
from tinylm.program import Program
from tinylm.weights import Weights

EMBEDDING = "gpt_neox.embed_in.weight"

IGNORABLE = (
    r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    r"gpt_neox\.rotary_emb\.inv_freq",
)
"""Causal masks and rotary frequencies that older versions of transformers wrote; they follow from the config."""


@dataclass(frozen=True)
class Config:
    """The fields of a GPT-NeoX config.json that this file reads; rotary_dim is `rotary_pct` of a head."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    hidden_act: str
    layer_norm_eps: float
    attention_bias: bool
    use_parallel_residual: bool
    tie_word_embeddings: bool
    max_position_embeddings: int
    rotary_dim: int
    rope: Rope


def read_config(config: Mapping[str, Any]) -> Config:
    """The config of a config.json. Raises CheckpointError for what is missing, odd or not supported."""
    fields = Fields(config)
    fields.refuse_quantization()
    heads = fields.size("num_attention_heads")
    head_dim = fields.split_width(heads)
    rope = fields.rope("rotary_emb_base", partial_name="rotary_pct", default_partial=0.25)
    return Config(
        vocab_size=fields.size("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        intermediate_size=fields.size("intermediate_size"),
        num_hidden_layers=fields.size("num_hidden_layers"),
        num_attention_heads=heads,
        head_dim=head_dim,
        hidden_act=fields.activation("hidden_act", "gelu"),
        layer_norm_eps=fields.number("layer_norm_eps", 1e-5),
        attention_bias=fields.flag("attention_bias", True),
        use_parallel_residual=fields.flag("use_parallel_residual", True),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        max_position_embeddings=fields.size("max_position_embeddings", 2048),
        rotary_dim=int(head_dim * rope.partial),
        rope=rope,
    )


def build(config: Config, weights: Weights) -> Program:
    """The program of a GPT-NeoX."""
    D, F, Dh, eps = config.hidden_size, config.intermediate_size, config.head_dim, config.layer_norm_eps
    bias = config.attention_bias
    program = Program(
        vocab_size=config.vocab_size,
        heads=config.num_attention_heads,
        key_value_heads=config.num_attention_heads,
        head_dim=Dh,
        inverse_frequencies=config.rope.frequencies(config.rotary_dim),
    )
    layers = Layers(program, weights)
    embedding = weights.matrix(EMBEDDING, (config.vocab_size, D))
    x = program.embed("embed", embedding)  # (T, D)
    for layer in range(config.num_hidden_layers):
        here, block = f"gpt_neox.layers.{layer}", f"blocks.{layer}"
        h = layers.layernorm(f"{block}.ln1", x, f"{here}.input_layernorm", D, eps)
        qkv = layers.linear(f"{block}.attn.qkv", h, f"{here}.attention.query_key_value", (3 * D, D), bias)
        q = program.part_of_heads(f"{block}.attn.q", qkv, 0, Dh, 3 * Dh)  # (T, H Dh)
        k = program.part_of_heads(f"{block}.attn.k", qkv, Dh, Dh, 3 * Dh)
        v = program.part_of_heads(f"{block}.attn.v", qkv, 2 * Dh, Dh, 3 * Dh)
        q = program.rope(f"{block}.attn.rot_q", q)
        k = program.rope(f"{block}.attn.rot_k", k)
        z = program.attention(f"{block}.attn.z", q, k, v)  # (T, H Dh)
        a = layers.linear(f"{block}.attn_out", z, f"{here}.attention.dense", (D, D), bias)

        if not config.use_parallel_residual:
            x = program.add(f"{block}.resid_mid", x, a)  # (T, D)
        h = layers.layernorm(f"{block}.ln2", x, f"{here}.post_attention_layernorm", D, eps)
        h = layers.linear(f"{block}.mlp.pre", h, f"{here}.mlp.dense_h_to_4h", (F, D), bias=True)  # (T, F)
        h = program.activation(f"{block}.mlp.post", h, config.hidden_act)
        m = layers.linear(f"{block}.mlp_out", h, f"{here}.mlp.dense_4h_to_h", (D, F), bias=True)
        if config.use_parallel_residual:
            m = program.add(f"{block}.attn_plus_mlp_out", a, m)
        x = program.add(f"{block}.resid_post", x, m)  # (T, D)

    x = program.chosen_rows("ln_final.input", x)  # (L, D)
    x = layers.layernorm("ln_final", x, "gpt_neox.final_layer_norm", D, eps)
    # transformers calls the head lm_head in memory and embed_out in files; a file may follow either.
    name = "lm_head.weight" if "lm_head.weight" in weights else "embed_out.weight"
    layers.head(x, name, config.tie_word_embeddings, embedding, EMBEDDING)  # (L, V)
    weights.finish(IGNORABLE)
    return program
