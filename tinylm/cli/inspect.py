"""`tinylm inspect`: what a model is made of, read from its files without loading the weights."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from tinylm.cli.parsing import BUNDLED_MODEL, Parser
from tinylm.cli.terminal import size

# A label for people, and the keys of config.json under which architectures keep the figure.
FIGURES = {
    "layers": ("num_hidden_layers", "n_layer"),
    "width": ("hidden_size", "n_embd"),
    "heads": ("num_attention_heads", "n_head"),
    "key/value heads": ("num_key_value_heads",),
    "head width": ("head_dim",),
    "feed-forward": ("intermediate_size", "n_inner"),
    "vocabulary": ("vocab_size",),
    "context": ("max_position_embeddings", "n_positions"),
}


def parser() -> Parser:
    """The words that the command takes."""
    it = Parser(
        "inspect",
        "Show what a model is made of: architecture, shapes, parameters, number formats, tokenizer.",
        [("tinylm inspect", "the bundled model"), ("tinylm inspect ./my-model --json", "for machines")],
    )
    it.add_argument("model", nargs="?", default=BUNDLED_MODEL, metavar="MODEL", help="a name or a folder")
    it.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    return it


def run(arguments: argparse.Namespace) -> int:
    """Print the facts, a line each."""
    from tinylm.sources.catalog import resolve

    facts = describe(resolve(arguments.model, offline=True))
    if arguments.json:
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    width = max(map(len, facts))
    for label, value in facts.items():
        print(f"{label:{width}}  {shown(label, value)}")
    return 0


def describe(folder: Path) -> dict[str, Any]:
    """The facts of a model folder by their labels."""
    from tinylm.checkpoint import Checkpoint
    from tinylm.tokenizer import Tokenizer

    with Checkpoint(folder) as checkpoint:
        tensors = list(checkpoint.tensors.values())
        facts: dict[str, Any] = {"folder": str(folder), "architecture": checkpoint.config.get("model_type")}
        for label, keys in FIGURES.items():
            found = [checkpoint.config[key] for key in keys if checkpoint.config.get(key) is not None]
            if found:
                facts[label] = found[0]
        by_format: Counter[str] = Counter()
        for tensor in tensors:
            by_format[tensor.dtype] += math.prod(tensor.shape)
        facts["tensors"] = len(tensors)
        facts["parameters"] = sum(by_format.values())
        facts["stored as"] = dict(by_format)
        facts["bytes"] = sum(tensor.nbytes for tensor in tensors)
    tokenizer = Tokenizer.from_folder(folder)
    facts["tokens"] = tokenizer.vocab_size
    facts["begin, end, padding"] = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    facts["special tokens"] = len(tokenizer.special_ids)
    facts["chat template"] = tokenizer.chat_template is not None
    return facts


def shown(label: str, value: Any) -> str:
    """A fact for people."""
    if label == "bytes":
        return f"{value:,} ({size(value)})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {count:,}" for name, count in value.items())
    if isinstance(value, list):
        return ", ".join("none" if entry is None else str(entry) for entry in value)
    return str(value)
