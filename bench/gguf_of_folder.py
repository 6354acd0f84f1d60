"""A GGUF file of a Llama or GPT-NeoX folder without a vocabulary, so that llama.cpp runs the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylm.checkpoint import Checkpoint

LLAMA = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GPT_NEOX = {
    "gpt_neox.embed_in": "token_embd",
    "gpt_neox.final_layer_norm": "output_norm",
    "embed_out": "output",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
LAYERS = ("model.layers.", "gpt_neox.layers.")


def write_gguf(folder: Path, file: Path) -> Path:
    """Write the file, in float32; ids go in and logits come out, so it needs no tokens."""
    import gguf

    with Checkpoint(folder) as checkpoint:
        config = checkpoint.config
        is_llama = config["model_type"] == "llama"
        heads = config["num_attention_heads"]
        writer = gguf.GGUFWriter(file, "llama" if is_llama else "gptneox")
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(heads)
        (add_llama if is_llama else add_gpt_neox)(writer, config)
        writer.add_vocab_size(config["vocab_size"])
        writer.add_tokenizer_model("no_vocab")
        for name in checkpoint.tensors:
            array = np.ascontiguousarray(checkpoint.float32(name))
            if is_llama and ("q_proj" in name or "k_proj" in name):
                array = interleaved(array, heads if "q_proj" in name else config["num_key_value_heads"])
            if "query_key_value" in name:
                array = parts_first(array, heads)
            if not name.endswith(("inv_freq", "attention.bias", "masked_bias")):
                writer.add_tensor(gguf_name(name), array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return file


def add_llama(writer: Any, config: dict[str, Any]) -> None:
    """The fields of a Llama."""
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope_theta(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def add_gpt_neox(writer: Any, config: dict[str, Any]) -> None:
    """The fields of a GPT-NeoX."""
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_dimension_count(int(head_dim * config.get("rotary_pct", 0.25)))
    writer.add_rope_freq_base(float(config.get("rotary_emb_base", 10000.0)))
    writer.add_parallel_residual(config.get("use_parallel_residual", True))
    writer.add_layer_norm_eps(config.get("layer_norm_eps", 1e-5))


def quantize_gguf(source: Path, file: Path, kind: str) -> Path:
    """A copy of a float32 file in another type (F16, BF16, Q8_0, Q4_0), by llama.cpp's own quantizer."""
    import llama_cpp

    if kind == "F32":
        return source
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(file).encode(), parameters)
    if failed:
        raise RuntimeError(f"llama.cpp could not write {kind}")
    return file


def rope_theta(config: dict[str, object]) -> float:
    """The base of the rotary angles, in the older place of a config or the newer one."""
    nested = config.get("rope_parameters")
    source = nested if isinstance(nested, dict) else config
    return float(source.get("rope_theta", 10000.0))  # type: ignore[arg-type]


def gguf_name(name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith(LAYERS):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{(LLAMA | GPT_NEOX)[part]}.{kind}"
    return f"{(LLAMA | GPT_NEOX)[stem]}.{kind}"


def interleaved(matrix: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows from half-split heads to llama.cpp's neighbours: (h, 2, half) -> (h, half, 2)."""
    height = matrix.shape[0]
    order = np.arange(height).reshape(heads, 2, height // heads // 2).swapaxes(1, 2).reshape(-1)
    return np.ascontiguousarray(matrix[order])


def parts_first(array: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of fused queries, keys and values from heads first to parts first: (h, 3, Dh) -> (3, h, Dh)."""
    height = array.shape[0]
    order = np.arange(height).reshape(heads, 3, height // heads // 3).swapaxes(0, 1).reshape(-1)
    return np.ascontiguousarray(array[order])
