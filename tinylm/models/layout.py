"""Which architecture's tensors a folder holds, and what does not fit: names and shapes alone, nothing is read."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from tinylm.checkpoint import Checkpoint
from tinylm.errors import CheckpointError
from tinylm.formats import Matrix
from tinylm.formats.float32 import Float32Matrix
from tinylm.formats.quantized import SCALES
from tinylm.program import Program
from tinylm.tensor_names import TensorNames
from tinylm.weights import Weights

MOST_TENSORS = 10_000
"""No model has more; a config that asks for more lies about its layers."""

MOST_LINES = 8

Shape = tuple[int, ...]


@dataclass
class Fit:
    """How the tensors of a folder fit an architecture.

    `fitting` counts them; missing: name -> shape; misshapen: name -> (asked for, found); extra: name -> shape;
    problem: why the config could not even be read as this architecture's; program: what it writes otherwise, its
    weights all zeros.
    """

    architecture: str
    fitting: int = 0
    missing: dict[str, Shape] = field(default_factory=dict)
    misshapen: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    extra: dict[str, Shape] = field(default_factory=dict)
    problem: str = ""
    program: Program | None = None

    @property
    def whole(self) -> bool:
        """Whether everything fits."""
        return not (self.problem or self.missing or self.misshapen or self.extra)

    @property
    def summary(self) -> str:
        """`all 291 tensors fit`, or how many do."""
        if self.problem:
            return f"but {self.problem}"
        asked = self.fitting + len(self.missing) + len(self.misshapen)
        if self.whole:
            return f"all {asked} tensors fit"
        return f"{self.fitting} of {asked} tensors fit, {len(self.extra)} are extra"

    @property
    def score(self) -> float:
        """The higher, the closer. A tensor that seems to be there under another name costs little."""
        missing, extra = patterns(self.missing), patterns(self.extra)
        renamed = sum(count for line, count in missing.items() if alike(line, count, extra))
        return self.fitting - len(self.misshapen) - len(self.missing) - len(self.extra) + 1.5 * renamed

    def lines(self) -> list[str]:
        """What does not fit, a line for each name with its layers counted."""
        if self.problem:
            return []
        missing, extra = patterns(self.missing), patterns(self.extra)
        misshapen = patterns(
            {name: f"{asked}, found {found}" for name, (asked, found) in self.misshapen.items()}
        )
        lines = [f"misshapen  {counted(line, count)}" for line, count in misshapen.items()]
        for line, count in missing.items():
            close = difflib.get_close_matches(line, alike(line, count, extra), n=1, cutoff=0.0)
            hint = f"; {close[0].partition(' ')[0]}?" if close else ""
            lines.append(f"missing    {counted(line, count)}{hint}")
        lines += [f"extra      {counted(line, count)}" for line, count in extra.items()]
        if len(lines) > MOST_LINES:
            lines[MOST_LINES - 1 :] = [f"and {len(lines) - MOST_LINES + 1} lines more"]
        return lines


def patterns(tensors: Mapping[str, object]) -> Counter[str]:
    """Lines `name shape` with the numbers between dots replaced by `{}`, and how often each occurs."""
    return Counter(
        f"{re.sub('(?<=[.])[0-9]+(?=[.])', '{}', name)} {shape}" for name, shape in tensors.items()
    )


def alike(line: str, count: int, others: Counter[str]) -> list[str]:
    """The lines of another name, but of the same shape and as many times."""
    return [other for other, times in others.items() if times == count and shape_of(other) == shape_of(line)]


def counted(line: str, count: int) -> str:
    """`line` and how many there are of it."""
    return f"{line}, {count} times" if count > 1 else line


def shape_of(line: str) -> str:
    """The shape in `name shape`."""
    return line.partition(" ")[2]


class ExpectedTensors(Weights):
    """Weights that note what an architecture asks for, and hand out zeros that take no memory."""

    def __init__(self, checkpoint: Checkpoint, names: TensorNames | None, fit: Fit) -> None:
        super().__init__(checkpoint, "auto", names)
        self._fit = fit

    def matrix(self, name: str, shape: tuple[int, int]) -> Matrix:
        """Notes the matrix, and its scales where the folder is quantized."""
        stored = self._names.stored(name)
        if stored + SCALES in self._checkpoint.tensors:
            shapes = self.stored_format(stored, shape).stored_shapes(shape)
            for part, part_shape in zip((stored, stored + SCALES), shapes, strict=True):
                self._note(part, part_shape)
        else:
            self._note(stored, shape)
        return Float32Matrix(np.broadcast_to(np.float32(0), shape))

    def vector(self, name: str, size: int) -> NDArray[np.float32]:
        """Notes the vector."""
        self._note(self._names.stored(name), (size,))
        return np.broadcast_to(np.float32(0), (size,))

    def same(self, name: str, other: str) -> bool:
        """Yes, as far as names and shapes can tell."""
        return True

    def finish(self, ignorable: Sequence[str] = ()) -> None:
        """Notes what is left."""
        tensors = self._checkpoint.tensors
        self._fit.extra = {name: tuple(tensors[name].shape) for name in self.left(ignorable)}

    def _note(self, stored: str, shape: Shape) -> None:
        fit = self._fit
        found = self._checkpoint.tensors.get(stored)
        self._taken.add(stored)
        if found is None:
            fit.missing[stored] = shape
        elif tuple(found.shape) != shape:
            fit.misshapen[stored] = (shape, tuple(found.shape))
        else:
            fit.fitting += 1
        if fit.fitting + len(fit.missing) + len(fit.misshapen) > MOST_TENSORS:
            raise CheckpointError(f"config.json: over {MOST_TENSORS} tensors for 'num_hidden_layers'")


def fit(checkpoint: Checkpoint, module: ModuleType, names: TensorNames | None = None) -> Fit:
    """How the tensors of a folder fit the architecture of a module of `tinylm.models`."""
    found = Fit(module.__name__.rpartition(".")[2])
    try:
        weights = ExpectedTensors(checkpoint, names, found)
        found.program = module.build(module.read_config(checkpoint.config), weights)
    except CheckpointError as error:
        found.problem = str(error)
    return found


def closest(fits: Sequence[Fit]) -> Fit:
    """The best of them; the first of several."""
    return max(fits, key=lambda one: one.score)
