"""A GGUF file of a Llama folder, float32 and without a vocabulary, so that llama.cpp runs the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinylm.checkpoint import Checkpoint

NAMES = {
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


def write_gguf(folder: Path, file: Path) -> Path:
    """Write the file; ids go in and logits come out, so it needs no tokens."""
    import gguf

    with Checkpoint(folder) as checkpoint:
        config = checkpoint.config
        heads, key_value_heads = config["num_attention_heads"], config["num_key_value_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        writer = gguf.GGUFWriter(file, "llama")
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(heads)
        writer.add_head_count_kv(key_value_heads)
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_rope_dimension_count(head_dim)
        writer.add_rope_freq_base(rope_theta(config))
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_vocab_size(config["vocab_size"])
        writer.add_tokenizer_model("no_vocab")
        for name in checkpoint.tensors:
            array = np.ascontiguousarray(checkpoint.float32(name))
            if "q_proj" in name or "k_proj" in name:
                array = interleaved(array, heads if "q_proj" in name else key_value_heads)
            writer.add_tensor(gguf_name(name), array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return file


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
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def interleaved(matrix: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows from half-split heads to llama.cpp's neighbours: (h, 2, half) -> (h, half, 2)."""
    height = matrix.shape[0]
    order = np.arange(height).reshape(heads, 2, height // heads // 2).swapaxes(1, 2).reshape(-1)
    return np.ascontiguousarray(matrix[order])
