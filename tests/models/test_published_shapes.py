"""The programs of the published models ask for as many tensors and numbers as those have."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tinylm.checkpoint import Checkpoint
from tinylm.models import architecture, layout

KL3M_002 = json.loads(
    (Path(__file__).resolve().parent.parent / "fixtures" / "kl3m-002-170m" / "config.json").read_text()
)
KL3M_006 = {
    "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 131_072, "rope_theta": 100_000,
    "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip
KEYLM = {
    "model_type": "keylm", "hidden_size": 512, "num_hidden_layers": 24, "num_attention_heads": 8,
    "num_key_value_heads": 2, "intermediate_size": 1280, "vocab_size": 12_020, "max_position_embeddings": 2048,
}  # fmt: skip
LRC = {
    "model_type": "llama", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 24,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 8192, "vocab_size": 128_256,
    "max_position_embeddings": 131_072, "tie_word_embeddings": True, "rope_theta": 500_000,
    "target_hidden_size": 1536, "use_aux_loss": True,
}  # fmt: skip


def asked_for(config: dict[str, Any], name: str | None = None) -> dict[str, layout.Shape]:
    """Name -> shape of the tensors that a config's program takes."""
    empty = cast("Checkpoint", SimpleNamespace(folder=Path(), config=config, tensors={}))
    module = architecture(config, name)
    assert module is not None
    found = layout.fit(empty, module)
    assert not found.problem
    return found.missing


@pytest.mark.parametrize(
    ("config", "name", "parameters", "tensors"),
    [
        (KL3M_002, None, 167_938_048, 196),
        (KL3M_006, None, 181_700_928, 30 * 9 + 2),
        ({**KL3M_006, "num_hidden_layers": 120}, None, 500_309_568, 120 * 9 + 2),
        (KEYLM, "qwen3", 75_251_200, 24 * 11 + 3),
        (LRC, None, 1_606_374_912, 28 * 9 + 2),
    ],
    ids=["kl3m-002", "kl3m-006", "kl3m-007", "KeyLM", "LRC"],
)
def test_parameter_counts(config: dict[str, Any], name: str | None, parameters: int, tensors: int) -> None:
    found = asked_for(config, name)
    assert sum(math.prod(shape) for shape in found.values()) == parameters
    assert len(found) == tensors
