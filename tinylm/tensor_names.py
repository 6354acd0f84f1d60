"""The names of tensors in a folder that does not use the names of its architecture."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from tinylm.checkpoint import read_json_object
from tinylm.errors import ParameterError


class TensorNames:
    """Names as an architecture asks for them -> names in the file.

    A `{}` stands for a number between dots, the same on both sides:

    >>> names = TensorNames({"model.layers.{}.self_attn.q_norm.weight": "h.{}.attn.q_ln.weight"})
    >>> names.stored("model.layers.12.self_attn.q_norm.weight")
    'h.12.attn.q_ln.weight'

    What is not listed keeps its name. Raises ParameterError for entries that make no sense.
    """

    def __init__(self, mapping: Mapping[str, str]) -> None:
        for ours, theirs in mapping.items():
            if not isinstance(ours, str) or not isinstance(theirs, str):
                raise ParameterError(f"tensor_names: {ours!r}: {theirs!r}; expected a name for a name")
            if ours.count("{}") != theirs.count("{}"):
                raise ParameterError(
                    f"tensor_names: {ours!r}: {theirs!r}; expected as many {{}} on both sides"
                )
        self._mapping = dict(mapping)
        self._unused = set(mapping)

    @classmethod
    def read(cls, names: Mapping[str, str] | str | PathLike[str] | None) -> TensorNames:
        """Names as they are given: a mapping, a file with a JSON object, or None for no other names.

        Raises CheckpointError for a file that holds no JSON object.
        """
        if isinstance(names, (str, PathLike)):
            return cls(read_json_object(Path(names)))
        return cls(names or {})

    def stored(self, name: str) -> str:
        """What the file calls the tensor that an architecture calls `name`."""
        if not self._mapping:
            return name
        parts = name.split(".")
        numbers = [part for part in parts if part.isdigit()]
        pattern = ".".join("{}" if part.isdigit() else part for part in parts)
        for known in (name, pattern):
            if known in self._mapping:
                self._unused.discard(known)
                theirs = self._mapping[known]
                return fill(theirs, numbers) if known == pattern else theirs
        return name

    @property
    def unused(self) -> list[str]:
        """The entries that nobody has asked for so far."""
        return sorted(self._unused)


def fill(pattern: str, numbers: list[str]) -> str:
    """`pattern` with its `{}` replaced by the numbers in order."""
    pieces = pattern.split("{}")
    return "".join(piece + number for piece, number in zip(pieces, [*numbers, ""], strict=False))
