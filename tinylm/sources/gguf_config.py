"""GGUF metadata and tensor list -> config.json, and which tensor goes where."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tinylm.errors import CheckpointError
from tinylm.sources.gguf_file import GgufFile

ARCHITECTURES = ("llama", "qwen3")

# Keys after the architecture's name that change the numbers, with the values that do not.
HARMLESS: Mapping[str, Callable[[Any], bool]] = {
    "expert_count": lambda value: value == 0,
    "attention.causal": lambda value: value is True,
    "attention.scale": lambda value: value == 0,
    "attention.clamp_kqv": lambda value: value == 0,
    "attention.max_alibi_bias": lambda value: value == 0,
    "attn_logit_softcapping": lambda value: value == 0,
    "final_logit_softcapping": lambda value: value == 0,
    "logit_scale": lambda value: value in (0, 1),
    "residual_scale": lambda value: value in (0, 1),
    "embedding_scale": lambda value: value in (0, 1),
    "rope.scale_linear": lambda value: value in (0, 1),
    "rope.scaling.attn_factor": lambda value: value in (0, 1),
}

IGNORED_TENSORS = (".attn_rot_embd.weight", ".attention.rotary_emb.inv_freq")  # what older files carry
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Target:
    """Where a GGUF tensor goes; `interleaved_heads` counts the heads whose rows llama.cpp interleaved."""

    name: str
    interleaved_heads: int = 0


@dataclass(frozen=True)
class Layout:
    """config.json without the special ids, and GGUF tensor name -> Target in the order to write."""

    config: dict[str, Any]
    tensors: dict[str, Target]


def model_layout(file: GgufFile) -> Layout:
    """The layout of a Llama or a Qwen3 file; every tensor is placed, ignorable, or an error that names it.

    Raises CheckpointError.
    """
    return _Layouter(file).result()


class _Layouter:
    def __init__(self, file: GgufFile) -> None:
        self.file = file
        architecture = file.metadata.get("general.architecture")
        if architecture not in ARCHITECTURES:
            raise self.error(f"general.architecture {architecture!r}; possible: {', '.join(ARCHITECTURES)}")
        self.architecture: str = architecture
        if file.metadata.get("split.count", 0) not in (0, 1):
            raise self.error(
                f"this is one part of {file.metadata['split.count']}; join them: llama-gguf-split --merge"
            )
        for key, harmless in HARMLESS.items():
            value = self.get(key)
            if value is not None and not harmless(value):
                raise self.error(f"{architecture}.{key} = {value!r} is not supported")

    def result(self) -> Layout:
        layers = self.size("block_count")
        if layers > len(self.file.tensors):
            raise self.error(f"{layers} layers, but only {len(self.file.tensors)} tensors")
        width = self.size("embedding_length")
        heads = self.size("attention.head_count")
        kv_heads = self.size("attention.head_count_kv", heads)
        head_dim = self.size("attention.key_length", width // heads)
        if heads % kv_heads or head_dim % 2 or not head_dim:
            raise self.error(
                f"{heads} heads, {kv_heads} key/value heads, head width {head_dim} do not fit together"
            )
        if self.size("attention.value_length", head_dim) != head_dim:
            raise self.error("key_length and value_length differ, which is not supported")
        if self.size("rope.dimension_count", head_dim) != head_dim:
            raise self.error(
                f"rope.dimension_count is not the head width, {head_dim}, which is not supported"
            )
        context = self.size("context_length")
        window = self.get("attention.sliding_window")
        if window and window < context:
            raise self.error(f"a sliding window of {window} positions is not supported")
        if "token_embd.weight" not in self.file.tensors:
            raise self.error("tensor 'token_embd.weight' is missing")
        theta = self.real("rope.freq_base", 10000.0)
        config: dict[str, Any] = {
            "architectures": ["Qwen3ForCausalLM" if self.architecture == "qwen3" else "LlamaForCausalLM"],
            "model_type": self.architecture,
            "vocab_size": self.file.tensors["token_embd.weight"].shape[0],
            "hidden_size": width,
            "intermediate_size": self.size("feed_forward_length"),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": context,
            "rms_norm_eps": self.real("attention.layer_norm_rms_epsilon"),
            "rope_theta": theta,
            "rope_scaling": self.rope_scaling(theta, head_dim, context),
            "attention_bias": self.has_bias("attn_q", "attn_k", "attn_v", "attn_output"),
            "mlp_bias": self.has_bias("ffn_gate", "ffn_up", "ffn_down"),
            "tie_word_embeddings": "output.weight" not in self.file.tensors,
            "use_cache": True,
        }
        if self.architecture == "qwen3":
            if config.pop("mlp_bias"):
                raise self.error("biases in the feed-forward part are not supported for qwen3")
            config["use_sliding_window"] = False
        return Layout(config, self.place(config))

    def place(self, config: Mapping[str, Any]) -> dict[str, Target]:
        width, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
        heads, kv_heads, head_dim = (
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["head_dim"],
        )
        llama = self.architecture == "llama"
        placed: dict[str, Target] = {}

        def put(name: str, target: str, shape: tuple[int, ...], interleaved_heads: int = 0) -> None:
            tensor = self.file.tensors.get(name)
            if tensor is None:
                raise self.error(f"tensor {name!r} is missing")
            if tensor.shape != shape:
                raise self.error(f"tensor {name!r} has shape {tensor.shape}; the metadata say {shape}")
            placed[name] = Target(target, interleaved_heads if llama else 0)

        def linear(
            name: str, target: str, shape: tuple[int, int], bias: bool, interleaved_heads: int = 0
        ) -> None:
            put(f"{name}.weight", f"{target}.weight", shape, interleaved_heads)
            if bias:
                put(f"{name}.bias", f"{target}.bias", shape[:1], interleaved_heads)

        put("token_embd.weight", "model.embed_tokens.weight", (vocabulary, width))
        for layer in range(config["num_hidden_layers"]):
            block, target = f"blk.{layer}", f"model.layers.{layer}"
            bias = config["attention_bias"]
            put(f"{block}.attn_norm.weight", f"{target}.input_layernorm.weight", (width,))
            attention = f"{target}.self_attn"
            linear(f"{block}.attn_q", f"{attention}.q_proj", (heads * head_dim, width), bias, heads)
            linear(f"{block}.attn_k", f"{attention}.k_proj", (kv_heads * head_dim, width), bias, kv_heads)
            linear(f"{block}.attn_v", f"{attention}.v_proj", (kv_heads * head_dim, width), bias)
            linear(f"{block}.attn_output", f"{attention}.o_proj", (width, heads * head_dim), bias)
            if not llama:
                put(f"{block}.attn_q_norm.weight", f"{attention}.q_norm.weight", (head_dim,))
                put(f"{block}.attn_k_norm.weight", f"{attention}.k_norm.weight", (head_dim,))
            put(f"{block}.ffn_norm.weight", f"{target}.post_attention_layernorm.weight", (width,))
            bias = config.get("mlp_bias", False)
            linear(f"{block}.ffn_gate", f"{target}.mlp.gate_proj", (inner, width), bias)
            linear(f"{block}.ffn_up", f"{target}.mlp.up_proj", (inner, width), bias)
            linear(f"{block}.ffn_down", f"{target}.mlp.down_proj", (width, inner), bias)
        put("output_norm.weight", "model.norm.weight", (width,))
        if not config["tie_word_embeddings"]:
            put("output.weight", "lm_head.weight", (vocabulary, width))
        for name in self.file.tensors:
            if name not in placed and name != ROPE_FACTORS and not name.endswith(IGNORED_TENSORS):
                raise self.error(f"tensor {name!r} is not one of {self.architecture}'s")
        return placed

    def has_bias(self, *parts: str) -> bool:
        present = [part for part in parts if f"blk.0.{part}.bias" in self.file.tensors]
        if present and len(present) < len(parts):
            missing = ", ".join(part for part in parts if part not in present)
            raise self.error(f"{', '.join(present)} have biases and {missing} not, which is not supported")
        return bool(present)

    def rope_scaling(self, theta: float, head_dim: int, context: int) -> dict[str, Any] | None:
        kind = self.get("rope.scaling.type")
        factor = self.real("rope.scaling.factor", 0.0)
        if kind not in (None, "none", "linear"):
            raise self.error(f"rope.scaling.type {kind!r} is not supported; possible: none, linear")
        linear = kind == "linear" and factor not in (0.0, 1.0)
        if ROPE_FACTORS not in self.file.tensors:
            return {"rope_type": "linear", "factor": factor} if linear else None
        factors = self.rope_factors(head_dim)
        if linear:
            raise self.error(
                f"rope.scaling.type 'linear' and tensor {ROPE_FACTORS!r} together are not supported"
            )
        if np.all(factors == 1):
            return None
        stored = self.get("rope.scaling.original_context_length")
        originals = [8192, *([stored] if type(stored) is int else []), *(2**power for power in range(9, 21))]
        for original in originals:
            scaling = {
                "rope_type": "llama3",
                "factor": _shortest(factors.max()),
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": original,
            }
            if np.allclose(llama3_factors(theta, head_dim, scaling), factors, rtol=1e-5, atol=0):
                return scaling
        raise self.error(
            f"tensor {ROPE_FACTORS!r} holds other factors than llama3's, which are not supported"
        )

    def rope_factors(self, head_dim: int) -> npt.NDArray[np.float64]:
        tensor = self.file.tensors[ROPE_FACTORS]
        if tensor.type != "F32" or tensor.shape != (head_dim // 2,):
            raise self.error(
                f"tensor {ROPE_FACTORS!r} is {tensor.type} {tensor.shape}, not F32 ({head_dim // 2},)"
            )
        factors: npt.NDArray[np.float64] = self.file.rows(ROPE_FACTORS)[0].astype(np.float64)
        return factors

    def get(self, key: str) -> Any:
        return self.file.metadata.get(f"{self.architecture}.{key}")

    def size(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        if isinstance(value, np.ndarray) and value.size and np.all(value == value[0]):
            value = value[0].item()  # one for each layer, all the same
        if value is None:
            value = default
        if type(value) is not int or not 0 < value < 2**31:
            found = "is missing" if value is None else f"= {value!r} is not one size for all layers from 1 up"
            raise self.error(f"{self.architecture}.{key} {found}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
            found = "is missing" if value is None else f"= {value!r} is not a number from 0 up"
            raise self.error(f"{self.architecture}.{key} {found}")
        return _shortest(value)

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.file.file}: {problem}")


def llama3_factors(theta: float, head_dim: int, scaling: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """By what llama3's rope scaling divides each frequency, (head_dim / 2,).

    Short waves stay, long ones are divided by `factor`, those between are interpolated:
    https://github.com/meta-llama/llama-models, `apply_scaling`.
    """
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    frequencies = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    factors: npt.NDArray[np.float64] = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    return factors


def _shortest(value: float) -> float:
    """GGUF keeps float32: the shortest decimal number that it may have been, 1e-05 for 9.99999974e-06."""
    return float(str(np.float32(value)))
