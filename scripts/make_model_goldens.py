#!/usr/bin/env python3
"""Makes tests/fixtures/models: tiny models of random weights that cross the options, with transformers' logits.

Needs torch and transformers. A variant is a config.json; its weights follow from the names and shapes of its
tensors by `make_tensors`, so that only the logits are stored. The tests import this file for the same recipe.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "models"
VARIANTS_FILE, LOGITS_FILE = FOLDER / "variants.json", FOLDER / "logits.npz"

T = 24
"""Tokens of the text whose logits are stored."""

LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}  # fmt: skip
NEOX: dict[str, Any] = {
    "model_type": "gpt_neox", "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
    "rotary_pct": 0.25, "use_parallel_residual": True, "attention_bias": True, "tie_word_embeddings": False,
}  # fmt: skip
QWEN3: dict[str, Any] = {**LLAMA, "model_type": "qwen3", "head_dim": 8, "rms_norm_eps": 1e-6}

LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip

# A value of None removes the key. "stored" is the dtype of the file, F32 where it is not said; "extra" are
# tensors beside those that transformers writes.
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama, every head its own keys": {**LLAMA, "num_key_value_heads": 4},
    "llama, one key head": {**LLAMA, "num_key_value_heads": 1},
    "llama, no num_key_value_heads": {**LLAMA, "num_key_value_heads": None},
    "llama, nine heads on three": {
        **LLAMA, "hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 100
    },
    "llama, head_dim 8 and feed-forward 172": {
        **LLAMA, "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 172
    },
    "llama, heads wider than the model": {**LLAMA, "head_dim": 16},
    "llama, heads narrower than the model": {**LLAMA, "head_dim": 2, "num_attention_heads": 8},
    "llama, odd widths": {
        **LLAMA, "hidden_size": 39, "head_dim": 10, "num_attention_heads": 3, "num_key_value_heads": 1,
        "intermediate_size": 53, "vocab_size": 101,
    },
    "llama, one head and one layer": {
        **LLAMA, "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1
    },
    "llama, seven layers": {**LLAMA, "num_hidden_layers": 7},
    "llama, tied": {**LLAMA, "tie_word_embeddings": True},
    "llama, tied with its head beside": {
        **LLAMA, "tie_word_embeddings": True, "extra": {"lm_head.weight": "model.embed_tokens.weight"}
    },
    "llama, attention biases": {**LLAMA, "attention_bias": True},
    "llama, mlp biases": {**LLAMA, "mlp_bias": True},
    "llama, all biases, tied": {
        **LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True
    },
    "llama, old spelling of theta": {**LLAMA, "rope_theta": 500.0, "rope_scaling": None},
    "llama, new spelling of theta": {
        **LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}
    },
    "llama, linear rope": {**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 3.0}},
    "llama, linear rope, old spelling": {**LLAMA, "rope_scaling": {"type": "linear", "factor": 3.0}},
    "llama, llama3 rope": {
        **LLAMA, "hidden_size": 64, "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 1000.0}
    },
    "llama, llama3 rope, old spelling": {
        **LLAMA, "head_dim": 16, "rope_theta": 1000.0, "rope_scaling": LLAMA3_ROPE
    },
    "llama, tanh gelu inside": {**LLAMA, "hidden_act": "gelu_pytorch_tanh"},
    "llama, exact gelu inside": {**LLAMA, "hidden_act": "gelu"},
    "llama, a large eps": {**LLAMA, "rms_norm_eps": 0.1},
    "llama, training keys that mean nothing": {**LLAMA, "target_hidden_size": 16, "use_aux_loss": True},
    "llama, bfloat16": {**LLAMA, "stored": "BF16"},
    "llama, bfloat16, tied, biases": {
        **LLAMA, "stored": "BF16", "tie_word_embeddings": True, "attention_bias": True
    },
    "llama, float16": {**LLAMA, "stored": "F16"},
    "gpt_neox": NEOX,
    "gpt_neox, sequential residual": {**NEOX, "use_parallel_residual": False},
    "gpt_neox, whole heads turn": {**NEOX, "rotary_pct": 1.0},
    "gpt_neox, whole heads, sequential": {**NEOX, "rotary_pct": 1.0, "use_parallel_residual": False},
    "gpt_neox, half of a head turns": {**NEOX, "rotary_pct": 0.5, "rotary_emb_base": 200},
    "gpt_neox, new spelling of rope": {
        **NEOX, "rotary_pct": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 200, "partial_rotary_factor": 0.5},
    },
    "gpt_neox, no rope keys": {**NEOX, "rotary_pct": None},
    "gpt_neox, tanh gelu": {**NEOX, "hidden_act": "gelu_new"},
    "gpt_neox, gelu_fast": {**NEOX, "hidden_act": "gelu_fast", "use_parallel_residual": False},
    "gpt_neox, relu": {**NEOX, "hidden_act": "relu"},
    "gpt_neox, no attention biases": {**NEOX, "attention_bias": False},
    "gpt_neox, no attention biases, sequential, tied": {
        **NEOX, "attention_bias": False, "use_parallel_residual": False, "tie_word_embeddings": True
    },
    "gpt_neox, tied": {**NEOX, "tie_word_embeddings": True},
    "gpt_neox, odd widths": {
        **NEOX, "hidden_size": 54, "num_attention_heads": 3, "intermediate_size": 41, "vocab_size": 101,
        "rotary_pct": 0.34,
    },
    "gpt_neox, feed-forward as wide as the model": {**NEOX, "hidden_size": 64, "intermediate_size": 64},
    "gpt_neox, one head": {**NEOX, "num_attention_heads": 1, "num_hidden_layers": 1},
    "gpt_neox, linear rope": {**NEOX, "rotary_pct": 0.5, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "gpt_neox, a large eps": {**NEOX, "layer_norm_eps": 0.1},
    "gpt_neox, keys of kl3m-002 that mean nothing": {
        **NEOX, "num_key_value_heads": 2, "rms_norm_eps": 0.5, "rope_theta": 17, "rope_scaling": None
    },
    "gpt_neox, buffers of old versions": {
        **NEOX,
        "extra": {
            "gpt_neox.layers.0.attention.bias": [1, 1, 64, 64],
            "gpt_neox.layers.0.attention.masked_bias": [],
            "gpt_neox.layers.1.attention.rotary_emb.inv_freq": [1],
        },
    },
    "gpt_neox, bfloat16": {**NEOX, "stored": "BF16"},
    "qwen3": QWEN3,
    "qwen3, every head its own keys": {**QWEN3, "num_key_value_heads": 4},
    "qwen3, one key head": {**QWEN3, "num_key_value_heads": 1},
    "qwen3, tied": {**QWEN3, "tie_word_embeddings": True},
    "qwen3, attention biases": {**QWEN3, "attention_bias": True},
    "qwen3, heads wider than the model": {**QWEN3, "head_dim": 12, "intermediate_size": 172},
    "qwen3, no head_dim": {
        **QWEN3, "head_dim": None, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1
    },
    "qwen3, a window that is not used": {**QWEN3, "use_sliding_window": False, "sliding_window": 4},
    "qwen3, layer types": {**QWEN3, "layer_types": ["full_attention", "full_attention"]},
    "qwen3, llama3 rope": {**QWEN3, "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 1000.0}},
    "qwen3, theta, old spelling": {**QWEN3, "rope_theta": 500.0},
    "qwen3, eight heads on two, bfloat16": {
        **QWEN3, "hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 160, "stored": "BF16"
    },
    "qwen3, norm after rope": {**QWEN3, "qk_norm_after_rope": True},
    "qwen3, norm after rope, one key head, tied": {
        **QWEN3, "qk_norm_after_rope": True, "num_key_value_heads": 1, "tie_word_embeddings": True
    },
    "qwen3, norm after rope, biases, wide heads": {
        **QWEN3, "qk_norm_after_rope": True, "attention_bias": True, "head_dim": 14
    },
}  # fmt: skip

# transformers' model that normalizes queries and keys after the rotary embedding calls the weights otherwise.
HUNYUAN_NAMES = {
    "self_attn.q_norm": "self_attn.query_layernorm",
    "self_attn.k_norm": "self_attn.key_layernorm",
}


def config_of(variant: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a variant."""
    ours = ("stored", "extra")
    return {name: value for name, value in variant.items() if name not in ours and value is not None}


def text_ids(vocab_size: int) -> list[int]:
    """(T,) ids of the text."""
    return [int(i) for i in np.random.RandomState(7).randint(0, vocab_size, T)]


def make_tensors(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Random float32 tensors: the numbers follow from each name alone, and no bias or norm is trivial."""
    tensors = {}
    for name, shape in shapes.items():
        values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if len(shape) == 1:
            values = 0.3 * values if name.endswith("bias") else 1 + 0.3 * values
        elif "embed_tokens" not in name and "embed_in" not in name:
            values *= 1.5 / np.sqrt(shape[1])
        tensors[name] = values.astype(np.float32)
    return tensors


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even, as bits."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_folder(folder: Path, variant: dict[str, Any], shapes: dict[str, list[int]]) -> Path:
    """A model folder: config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(variant)), encoding="utf-8")
    stored = variant.get("stored", "F32")
    as_stored = {"F32": np.asarray, "F16": lambda x: x.astype(np.float16), "BF16": bfloat16_bits}[stored]
    entries = {name: (stored, as_stored(values)) for name, values in make_tensors(shapes).items()}
    for name, extra in variant.get("extra", {}).items():
        entries[name] = entries[extra] if isinstance(extra, str) else ("U8", np.zeros(extra, np.uint8))
    header, end = {}, 0
    for name, (dtype, values) in entries.items():
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [end, end + values.nbytes]}
        end += values.nbytes
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    data = b"".join(values.tobytes() for _, values in entries.values())
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder


def main() -> int:
    """Write the fixtures."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    shapes: dict[str, dict[str, list[int]]] = {}
    logits: dict[str, np.ndarray] = {}
    for name, variant in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            shapes[name], logits[name] = oracle(Path(folder), variant)
        print(f"{name}: {len(shapes[name])} tensors, logits up to {np.abs(logits[name]).max():.1f}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(name)}: {json.dumps({'shapes': found})}" for name, found in shapes.items()]
    versions = f'"made by": "transformers {transformers.__version__}, torch {torch.__version__}"'
    VARIANTS_FILE.write_text("{\n" + ",\n".join([versions, *lines]) + "\n}\n", encoding="utf-8")
    np.savez_compressed(LOGITS_FILE, **logits)  # type: ignore[arg-type]
    print(f"{len(VARIANTS)} variants, {LOGITS_FILE.stat().st_size / 1e3:.0f} kB of logits")
    return 0


def oracle(
    folder: Path, variant: dict[str, Any], ids: list[int] | None = None
) -> tuple[dict[str, list[int]], np.ndarray]:
    """(shapes of the tensors by name, logits (T, V)) by transformers, computed in float32.

    Leaves the folder that tinylm loads in `folder / "ours"`.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    after = bool(variant.get("qk_norm_after_rope"))
    renames = HUNYUAN_NAMES if after else {}
    theirs = {**variant, "model_type": "hunyuan_v1_dense"} if after else variant

    def renamed(name: str, back: bool = False) -> str:
        for ours, other in renames.items():
            name = name.replace(other, ours) if back else name.replace(ours, other)
        return name

    (folder / "config.json").write_text(json.dumps(config_of(theirs)), encoding="utf-8")
    empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    empty.save_pretrained(folder / "empty")
    with safe_open(folder / "empty" / "model.safetensors", "np") as file:
        shapes = {
            renamed(name, back=True): list(file.get_slice(name).get_shape()) for name in sorted(file.keys())
        }

    write_folder(folder / "ours", variant, shapes)
    with safe_open(folder / "ours" / "model.safetensors", "pt") as file:
        entries = {renamed(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    (folder / "theirs").mkdir()
    (folder / "theirs" / "config.json").write_text(json.dumps(config_of(theirs)), encoding="utf-8")
    from safetensors.torch import save_file

    save_file({name: tensor.clone() for name, tensor in entries.items()}, folder / "theirs" / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    model, report = AutoModelForCausalLM.from_pretrained(
        folder / "theirs", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    unexpected = set(report["unexpected_keys"]) - set(variant.get("extra", {}))
    if report["missing_keys"] or unexpected or report["mismatched_keys"]:
        raise SystemExit(f"transformers does not load {variant}: {report}")
    with torch.no_grad():
        found = model.eval()(torch.tensor([ids or text_ids(variant["vocab_size"])])).logits[0].numpy()
    return shapes, found.astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
