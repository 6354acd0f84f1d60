"""The architectures, by the `model_type` of a config.json: one file each, its name is the `model_type`."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from tinylm.errors import CheckpointError

ARCHITECTURES = ("llama",)


def architecture(config: dict[str, Any], name: str | None = None) -> ModuleType:
    """The module of an architecture: `name`, else the config's `model_type`. Raises CheckpointError."""
    found = name if name is not None else config.get("model_type")
    if found not in ARCHITECTURES:
        where = "architecture" if name is not None else "config.json: 'model_type'"
        raise CheckpointError(
            f"{where} {found!r} is unknown; known are {', '.join(ARCHITECTURES)}. "
            "If the tensors are those of a known one, say which: --architecture NAME"
        )
    return importlib.import_module(f"tinylm.models.{found}")
