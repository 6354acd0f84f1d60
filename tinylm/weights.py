"""The weights of a checkpoint for a model that takes each by name and shape, and leaves none behind."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinylm.checkpoint import Checkpoint
from tinylm.errors import CheckpointError, ParameterError
from tinylm.formats import Matrix
from tinylm.formats.bfloat16 import BFloat16Matrix
from tinylm.formats.float32 import Float32Matrix

DTYPES = ("auto", "float32", "bfloat16")
FLOATS = ("F32", "F16", "BF16", "F64")


class Weights:
    """Tensors of a checkpoint by name, in the format asked for.

    dtype: "auto" keeps a matrix as it is stored (float16 and float64 become float32, for which there is a
    kernel), any other format of DTYPES converts. Vectors are always float32.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: str = "auto") -> None:
        if dtype not in DTYPES:
            raise ParameterError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._checkpoint.tensors

    def matrix(self, name: str, shape: tuple[int, int]) -> Matrix:
        """The weight matrix (N, K) of a name. Raises CheckpointError if it is missing or another."""
        stored = self._check(name, shape)
        if self._dtype == "bfloat16" or (self._dtype == "auto" and stored == "BF16"):
            if stored == "BF16":
                return BFloat16Matrix(np.ascontiguousarray(self._checkpoint.array(name)))
            from tinylm.formats.bfloat16 import narrow

            return BFloat16Matrix(narrow(self._checkpoint.float32(name)))
        return Float32Matrix(np.ascontiguousarray(self._checkpoint.float32(name)))

    def vector(self, name: str, size: int) -> NDArray[np.float32]:
        """The vector (size,) of a name, float32."""
        self._check(name, (size,))
        return np.ascontiguousarray(self._checkpoint.float32(name))

    def vector_if(self, wanted: bool, name: str, size: int) -> NDArray[np.float32] | None:
        """The vector of a name if the config wants it, else None."""
        return self.vector(name, size) if wanted else None

    def ignore(self, name: str) -> None:
        """This tensor is not needed and known to be of no consequence."""
        self._taken.add(name)

    def same(self, name: str, other: str) -> bool:
        """Whether two tensors hold the same numbers."""
        return np.array_equal(self._checkpoint.array(name), self._checkpoint.array(other))

    def finish(self, ignorable: Sequence[str] = ()) -> None:
        """Raises CheckpointError if a tensor is left that nobody took and that no pattern calls ignorable."""
        left = sorted(
            name
            for name in self._checkpoint.tensors.keys() - self._taken
            if not any(re.fullmatch(pattern, name) for pattern in ignorable)
        )
        if left:
            others = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise CheckpointError(
                f"{self._checkpoint.folder}: the checkpoint holds {left[0]!r}{others}, "
                "which this architecture and config do not use"
            )

    def _check(self, name: str, shape: tuple[int, ...]) -> str:
        folder, tensors = self._checkpoint.folder, self._checkpoint.tensors
        if name not in tensors:
            close = difflib.get_close_matches(name, tensors, n=1)
            hint = f"; the closest it has is {close[0]!r}" if close else ""
            raise CheckpointError(f"{folder}: the checkpoint lacks the tensor {name!r} {shape}{hint}")
        info = tensors[name]
        if tuple(info.shape) != shape:
            raise CheckpointError(
                f"{folder}: tensor {name!r} has shape {tuple(info.shape)}, where the config asks for {shape}"
            )
        if info.dtype not in FLOATS:
            raise CheckpointError(
                f"{folder}: tensor {name!r} is {info.dtype}; expected one of {', '.join(FLOATS)}"
            )
        self._taken.add(name)
        return str(info.dtype)
