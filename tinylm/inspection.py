"""What a model folder holds, read from its config, the headers of its weights and its tokenizer alone."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

from tinylm.cache import KeyValueCache
from tinylm.checkpoint import Checkpoint, read_json_object
from tinylm.errors import TinylmError
from tinylm.formats.key_values import automatic, key_value_format
from tinylm.formats.table import DTYPES, QUANTIZED, model_format, stored_bytes
from tinylm.models import architecture as find_architecture
from tinylm.models import closest_fit, layout
from tinylm.models.fields import Rope
from tinylm.program import Operation, Program
from tinylm.tensor_names import TensorNames

CONTEXTS = (1024, 4096, 32_768)
"""Positions for which the memory is told, beside the model's longest context."""

LABELS = {
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "num_key_value_heads": "key/value heads",
    "head_dim": "head width",
    "intermediate_size": "feed-forward",
    "vocab_size": "vocabulary",
    "max_position_embeddings": "context",
}
"""The fields of config.json that are sizes, and what people call them."""


def inspect_folder(
    folder: str | Path, architecture: str | None = None, names: TensorNames | None = None
) -> dict[str, Any]:
    """The facts of a model folder by their labels, in an order for people, and such that JSON can hold them.

    `architecture` and `names` as in `tinylm.load`. A folder whose layout is unknown or does not fit is told
    about too: `fits` and `does not fit` say what is wrong. Raises CheckpointError where there is no
    config or no weights at all.
    """
    with Checkpoint(folder) as checkpoint:
        facts: dict[str, Any] = {"folder": str(checkpoint.folder)}
        facts["architecture"] = architecture or checkpoint.config.get("model_type")
        module = find_architecture(checkpoint.config, architecture)
        program = None
        if module is None:
            closest = closest_fit(checkpoint, names)
            facts["fits"] = f"unknown; the closest is {closest.architecture}: {closest.summary}"
            facts["does not fit"] = closest.lines()
        else:
            found = layout.fit(checkpoint, module, names)
            program = found.program
            if program is not None:
                facts |= config_facts(module.read_config(checkpoint.config))
            facts["fits"], facts["does not fit"] = found.summary, found.lines()
        facts |= tensor_facts(checkpoint)
        if program is not None:
            groups = parameter_groups(program)
            facts["parameters"] = sum(groups.values())
            facts["parameters by group"] = groups
            facts["memory"] = memory(program, facts["context"], loaded_format(checkpoint))
        facts |= tokenizer_facts(checkpoint.folder)
    return facts


def config_facts(config: Any) -> dict[str, Any]:
    """The fields that an architecture reads of a config: sizes by people's names, the others as they are."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    facts = {label: fields[name] for name, label in LABELS.items() if name in fields}
    settings = {name: value for name, value in fields.items() if name not in LABELS}
    rope = settings.pop("rope")
    if isinstance(rope, Rope):
        settings["rope_theta"], settings["rope_type"] = rope.theta, rope.kind
    return {**facts, "settings": settings}


def tensor_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Tensors as they are stored: how many, numbers of each dtype, bytes, files."""
    tensors = list(checkpoint.tensors.values())
    stored: Counter[str] = Counter()
    for tensor in tensors:
        stored[tensor.dtype] += math.prod(tensor.shape)
    return {
        "tensors": len(tensors),
        "parameters": sum(stored.values()),
        "stored as": dict(stored),
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "files": len({tensor.file for tensor in tensors}),
    }


def loaded_format(checkpoint: Checkpoint) -> str:
    """The format of most of the weights when they are loaded as they are stored."""
    said = checkpoint.config.get("quantization_config")
    if isinstance(said, dict) and said.get("format") in QUANTIZED:
        return str(said["format"])
    sizes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        sizes["bfloat16" if tensor.dtype == "BF16" else "float32"] += tensor.nbytes
    return model_format(sizes)


def parameter_groups(program: Program) -> dict[str, int]:
    """The numbers of a program by what they are for; a head that is tied to the embedding counts there."""
    groups = dict.fromkeys(("embedding", "attention", "MLP", "norms", "head"), 0)
    seen: set[int] = set()
    for operation in program.operations:
        matrix = operation.matrix
        count = sum(vector.size for vector in operation.vectors.values())
        if matrix is not None and id(matrix) not in seen:
            seen.add(id(matrix))
            count += math.prod(matrix.shape)
        groups[group_of(operation)] += count
    return groups


def group_of(operation: Operation) -> str:
    """The group of an operation's parameters."""
    name = operation.output.name
    if operation.kind in ("rmsnorm", "layernorm"):
        return "norms"
    if operation.kind == "embed":
        return "embedding"
    if name == "logits":
        return "head"
    return "attention" if ".attn" in name else "MLP"


def memory(program: Program, context: int, stored: str) -> dict[str, Any]:
    """Bytes of the weights in each format, and of the keys and values of one text at some lengths.

    `as stored` names the format that is taken unless another is asked for; keys and values are as beside it.
    """
    shapes = [matrix.shape for matrix in program.matrices]
    vectors = 4 * sum(vector.size for one in program.operations for vector in one.vectors.values())
    weights = {
        dtype: sum(stored_bytes(shape, dtype, program.vocab_size) for shape in shapes) + vectors
        for dtype in DTYPES[1:]
    }
    kv_format = key_value_format(automatic([stored]))
    cache = KeyValueCache(program.layers, program.key_value_heads, program.head_dim, kv_format)
    lengths = sorted({*(length for length in CONTEXTS if length < context), context})
    return {
        "as stored": stored,
        "weights": weights,
        "keys and values": {str(length): cache.room_bytes(length) for length in lengths},
    }


def tokenizer_facts(folder: Path) -> dict[str, Any]:
    """The tokenizer's parts and tokens, and the chat template; what is wrong with it, where it cannot be read."""
    from tinylm.tokenizer import Tokenizer

    try:
        tokenizer = Tokenizer.from_folder(folder)
        document = read_json_object(folder / "tokenizer.json")
    except TinylmError as error:
        return {"tokenizer": {"problem": str(error)}, "chat template": None}
    model, added = document.get("model") or {}, document.get("added_tokens") or []
    special = {tokenizer.id_to_token(token) or "": token for token in sorted(tokenizer.special_ids)}
    facts = {
        "model": model.get("type", "BPE"),
        "entries": len(model.get("vocab") or ()),
        "merges": len(model.get("merges") or ()),
        "added tokens": len(added),
        "highest id": tokenizer.vocab_size - 1,
        **{
            part: parts(document.get(part))
            for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder")
        },
        "begin": tokenizer.bos_token_id,
        "end": tokenizer.eos_token_id,
        "padding": tokenizer.pad_token_id,
        "special tokens": special,
    }
    return {"tokenizer": facts, "chat template": tokenizer.chat_template}


def parts(section: Any) -> list[str]:
    """The types of a section of tokenizer.json, those of a sequence one by one."""
    if not isinstance(section, dict):
        return []
    for name in ("normalizers", "pretokenizers", "processors", "decoders"):
        if isinstance(section.get(name), list):
            return [one for inner in section[name] for one in parts(inner)]
    return [str(section.get("type"))]
