"""Small models of random weights, as Hugging Face tensors and as the GGUF files that llama.cpp would make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HF_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass
class SmallModel:
    """Sizes, tensors by Hugging Face name, and what goes into the GGUF file beside them."""

    architecture: str = "llama"
    width: int = 64
    inner: int = 96
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    tokens: tuple[str, ...] = ("<s>", "a", "b", "ab", "Ġ")
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    type: str = "F32"
    metadata: dict[str, Any] = field(default_factory=dict)
    extra_tensors: dict[str, np.ndarray] = field(default_factory=dict)
    leave_out: tuple[str, ...] = ()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """GGUF name -> shape as NumPy orders it."""
        width, inner, query, key = (
            self.width,
            self.inner,
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
        )
        shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(self.tokens), width)}
        for layer in range(self.layers):
            block = {
                "attn_norm.weight": (width,),
                "attn_q.weight": (query, width),
                "attn_k.weight": (key, width),
                "attn_v.weight": (key, width),
                "attn_output.weight": (width, query),
                "ffn_norm.weight": (width,),
                "ffn_gate.weight": (inner, width),
                "ffn_up.weight": (inner, width),
                "ffn_down.weight": (width, inner),
            }
            if self.architecture == "qwen3":
                block |= {"attn_q_norm.weight": (self.head_dim,), "attn_k_norm.weight": (self.head_dim,)}
            if self.attention_bias:
                block |= {
                    f"attn_{part}.bias": (rows,)
                    for part, rows in zip(("q", "k", "v"), (query, key, key), strict=True)
                }
                block["attn_output.bias"] = (width,)
            if self.mlp_bias:
                block |= {"ffn_gate.bias": (inner,), "ffn_up.bias": (inner,), "ffn_down.bias": (width,)}
            shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
        shapes["output_norm.weight"] = (width,)
        if not self.tied:
            shapes["output.weight"] = (len(self.tokens), width)
        return shapes

    def hf_tensors(self) -> dict[str, tuple[str, np.ndarray]]:
        """GGUF name -> (Hugging Face name, values in Hugging Face's order of rows)."""
        random = np.random.default_rng(0)
        return {
            name: (hf_name(name), random.standard_normal(shape, np.float32))
            for name, shape in self.shapes().items()
        }

    def write(self, file: Path) -> dict[str, np.ndarray]:
        """Writes the GGUF file with the library's own writer; returns what an import should give."""
        import gguf

        writer = gguf.GGUFWriter(file, self.architecture)
        writer.add_block_count(self.layers)
        writer.add_context_length(128)
        writer.add_embedding_length(self.width)
        writer.add_feed_forward_length(self.inner)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_rope_dimension_count(self.head_dim)
        writer.add_rope_freq_base(5000.0)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(list(self.tokens))
        writer.add_token_types([3] + [1] * (len(self.tokens) - 1))
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(0)
        for key, value in self.metadata.items():
            set_metadata(writer, key, value)
        expected = {}
        for name, (hf, values) in self.hf_tensors().items():
            if name in self.leave_out:
                continue
            heads = {"attn_q": self.heads, "attn_k": self.kv_heads}.get(name.split(".")[-2], 0)
            stored = interleaved(values, heads) if heads and self.architecture == "llama" else values
            type_ = gguf.GGMLQuantizationType[self.type if values.ndim == 2 else "F32"]
            blocks = gguf.quantize(stored, type_)
            raw = None if type_.name in ("F32", "F16") else type_
            writer.add_tensor(name, blocks, raw_dtype=raw)
            # A row is quantized by itself, so that the order of the rows does not matter to its values.
            expected[hf] = gguf.dequantize(gguf.quantize(values, type_), type_)
        for name, values in self.extra_tensors.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return expected


def hf_name(name: str) -> str:
    """`blk.0.attn_q.weight` -> `model.layers.0.self_attn.q_proj.weight`."""
    outside = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    *start, part, kind = name.split(".")
    if not start:
        return f"{outside[part]}.{kind}"
    return f"model.layers.{start[1]}.{HF_NAMES[part]}.{kind}"


def interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of q and k: row by row, as its comment describes it."""
    head_dim = values.shape[0] // heads
    out = np.empty_like(values)
    for head in range(heads):
        for pair in range(head_dim // 2):
            out[head * head_dim + 2 * pair] = values[head * head_dim + pair]
            out[head * head_dim + 2 * pair + 1] = values[head * head_dim + head_dim // 2 + pair]
    return out


def set_metadata(writer: Any, key: str, value: Any) -> None:
    """Adds or replaces one entry; None removes it."""
    writer.kv_data[0].pop(key, None)
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


@pytest.fixture
def small_model() -> Callable[..., SmallModel]:
    """The class of small models."""
    return SmallModel


@pytest.fixture
def write_tokenizer(tmp_path: Path) -> Callable[..., Path]:
    """Writes a GGUF file of a tiny Llama with the given tokenizer metadata."""

    def write(tokens: list[str], **metadata: Any) -> Path:
        file = tmp_path / "tokenizer.gguf"
        keys = {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if key != "chat_template"}
        if "chat_template" in metadata:
            keys["tokenizer.chat_template"] = metadata["chat_template"]
        keys.setdefault("tokenizer.ggml.token_type", None)
        keys.setdefault("tokenizer.ggml.merges", None)
        keys.setdefault("tokenizer.ggml.bos_token_id", None)
        SmallModel(tokens=tuple(tokens), layers=1, metadata=keys).write(file)
        return file

    return write
