"""The architectures, by the `model_type` of a config.json: one file each, its name is the `model_type`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from tinylm.checkpoint import Checkpoint
from tinylm.errors import CheckpointError, LayoutError
from tinylm.kernels.team import Team
from tinylm.models import layout
from tinylm.program import Program
from tinylm.tensor_names import TensorNames
from tinylm.weights import Weights

ARCHITECTURES = ("llama", "qwen3", "gpt_neox")

MAPPING_HINT = (
    "If the folder names its tensors otherwise, give the names: --tensor-names FILE, a JSON object "
    '{"model.layers.{}.self_attn.q_norm.weight": "name in the folder", ...}'
)


def architecture(config: dict[str, Any], name: str | None = None) -> ModuleType | None:
    """The module of an architecture: `name`, else the config's `model_type`; None for one that is unknown."""
    found = name if name is not None else config.get("model_type")
    return importlib.import_module(f"tinylm.models.{found}") if found in ARCHITECTURES else None


def load_program(
    checkpoint: Checkpoint,
    dtype: str = "auto",
    name: str | None = None,
    names: TensorNames | None = None,
    team: Team | None = None,
) -> tuple[Program, int]:
    """The program of a folder's model, and its context length in positions.

    dtype: as in Weights. name: the architecture, where the folder's `model_type` is unknown or wrong. names: for
    a folder that calls its tensors otherwise. team: who converts. Raises CheckpointError; one about tensors
    lists all that does not fit, and names the closest architecture.
    """
    module = architecture(checkpoint.config, name)
    if module is None:
        raise CheckpointError(_explain_unknown(checkpoint, name, names))
    config = module.read_config(checkpoint.config)
    try:
        return module.build(config, Weights(checkpoint, dtype, names, team)), config.max_position_embeddings
    except LayoutError as error:
        raise CheckpointError(_explain_layout(error, checkpoint, module, names)) from None


def _explain_unknown(checkpoint: Checkpoint, name: str | None, names: TensorNames | None) -> str:
    """The message for an architecture that is not known: what is, and which of them the tensors look like."""
    known = ", ".join(ARCHITECTURES)
    if name is not None:
        return f"architecture {name!r} is unknown; known are {known}"
    first = (
        f"{checkpoint.folder}: config.json has the 'model_type' {checkpoint.config.get('model_type')!r}, which is "
        f"unknown; known are {known}"
    )
    return "\n".join([first, *_closest_lines(checkpoint, names, ARCHITECTURES)])


def _explain_layout(
    error: LayoutError, checkpoint: Checkpoint, module: ModuleType, names: TensorNames | None
) -> str:
    """The message for tensors that do not fit: the first, then all, then an architecture that fits better."""
    found = layout.fit(checkpoint, module, names)
    lines = [
        str(error),
        f"As {found.architecture}: {found.summary}",
        *(f"  {line}" for line in found.lines()),
    ]
    others = [other for other in ARCHITECTURES if other != found.architecture]
    best = closest_fit(checkpoint, names, others)
    if layout.closest([found, best]) is best:
        return "\n".join([*lines, *_closest_lines(checkpoint, names, others)])
    return "\n".join([*lines, MAPPING_HINT] if found.missing else lines)


def _closest_lines(checkpoint: Checkpoint, names: TensorNames | None, choice: Sequence[str]) -> list[str]:
    """The architecture of the choice that the tensors are closest to, and what does not fit even there."""
    best = closest_fit(checkpoint, names, choice)
    lines = [f"The closest known layout is {best.architecture}: {best.summary}"]
    lines += [f"  {line}" for line in best.lines()]
    if best.problem:
        return lines
    name = best.architecture
    lines.append(f"If the model is one, say so: --architecture {name} (in Python architecture={name!r})")
    return [*lines, MAPPING_HINT] if best.missing else lines


def closest_fit(
    checkpoint: Checkpoint, names: TensorNames | None = None, choice: Sequence[str] = ARCHITECTURES
) -> layout.Fit:
    """How the tensors of a folder fit the architecture of the choice that they fit best."""
    modules = [importlib.import_module(f"tinylm.models.{name}") for name in choice]
    return layout.closest([layout.fit(checkpoint, module, names) for module in modules])
