"""The weights of a checkpoint for a model that takes each by name and shape, and leaves none behind."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinylm.checkpoint import Checkpoint
from tinylm.errors import CheckpointError, LayoutError, ParameterError
from tinylm.formats import Matrix
from tinylm.formats.bfloat16 import BFloat16Matrix, narrow
from tinylm.formats.float32 import Float32Matrix
from tinylm.formats.quantized import SCALES, QuantizedMatrix
from tinylm.formats.table import DTYPES, QUANTIZED, matrix_format
from tinylm.kernels.team import Team
from tinylm.tensor_names import TensorNames

COMPARED = 1 << 20
"""Numbers of two tensors that are compared at a time."""

FLOATS = ("F32", "F16", "BF16", "F64")


class Weights:
    """Tensors of a checkpoint by name, in the format asked for.

    dtype: "auto" keeps a matrix as it is stored (float16 and float64 become float32, for which there is a
    kernel), any other format of DTYPES converts. Vectors are always float32. names: for a checkpoint that
    calls its tensors otherwise; every method takes the architecture's own names. team: who quantizes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: str = "auto",
        names: TensorNames | None = None,
        team: Team | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ParameterError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._names = names or TensorNames({})
        self._team = team or Team()
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._names.stored(name) in self._checkpoint.tensors

    def matrix(self, name: str, shape: tuple[int, int]) -> Matrix:
        """The weight matrix (N, K) of a name. Raises LayoutError if it is missing or another."""
        stored = self._names.stored(name)
        if stored + SCALES in self._checkpoint.tensors:
            return self._quantized(stored, shape)
        stored = self._check(name, shape)
        as_bits = self._checkpoint.tensors[stored].dtype == "BF16"
        if as_bits and self._dtype != "float32":
            values = np.ascontiguousarray(self._checkpoint.array(stored))
        else:
            values = np.ascontiguousarray(self._checkpoint.float32(stored))
        if self._dtype in QUANTIZED:
            matrix = self._format_of(self._dtype, shape).quantize(values, self._team)
            del values
            self._checkpoint.release(stored)
            return matrix
        if values.dtype == np.uint16:
            return BFloat16Matrix(values)
        return BFloat16Matrix(narrow(values)) if self._dtype == "bfloat16" else Float32Matrix(values)

    def _format_of(self, dtype: str, shape: tuple[int, int]) -> type[QuantizedMatrix]:
        """What a matrix of a shape is in a model of a quantized format."""
        return matrix_format(dtype, shape[0], self._checkpoint.config.get("vocab_size"))

    def _quantized(self, stored: str, shape: tuple[int, int]) -> Matrix:
        """The matrix of a folder that `tinylm quantize` wrote: mapped, not copied."""
        folder, wanted = self._checkpoint.folder, self.stored_format(stored, shape)
        if self._dtype != "auto" and (
            self._dtype not in QUANTIZED or self._format_of(self._dtype, shape) is not wanted
        ):
            raise ParameterError(f"dtype {self._dtype!r}: the folder {folder} holds {wanted.format}")
        found = []
        names, types = (stored, stored + SCALES), (wanted.stored, "BF16")
        for name, stored_shape, dtype in zip(names, wanted.stored_shapes(shape), types, strict=True):
            info = self._checkpoint.tensors.get(name)
            if info is None or tuple(info.shape) != stored_shape or info.dtype != dtype:
                shown = "missing" if info is None else f"{info.dtype} {tuple(info.shape)}"
                raise LayoutError(
                    f"{folder}: tensor {name!r} is {shown}, "
                    f"where {wanted.format} of {shape} has {dtype} {stored_shape}"
                )
            self._taken.add(name)
            found.append(np.ascontiguousarray(self._checkpoint.array(name)))
        return wanted(found[0], found[1], shape)

    def stored_format(self, stored: str, shape: tuple[int, int]) -> type[QuantizedMatrix]:
        """The format of a matrix with scales beside it: what its folder's config says, else what its type says."""
        said = self._checkpoint.config.get("quantization_config")
        name = said.get("format") if isinstance(said, dict) else None
        if isinstance(name, str) and name in QUANTIZED:
            return self._format_of(name, shape)
        info = self._checkpoint.tensors.get(stored)
        kinds = {one.stored: one for one in QUANTIZED.values()}
        return kinds.get(info.dtype if info else "", QUANTIZED["int8"])

    def vector(self, name: str, size: int) -> NDArray[np.float32]:
        """The vector (size,) of a name, float32. Raises LayoutError if it is missing or another."""
        return np.ascontiguousarray(self._checkpoint.float32(self._check(name, (size,))))

    def ignore(self, name: str) -> None:
        """Leave out a tensor that is known to be of no consequence."""
        self._taken.add(self._names.stored(name))

    def same(self, name: str, other: str) -> bool:
        """Whether two tensors hold the same numbers, in whatever type. What was read of `name` is let go."""
        names = [self._names.stored(each) for each in (name, other)]
        one_type = len({self._checkpoint.tensors[each].dtype for each in names}) == 1
        read = self._checkpoint.array if one_type else self._checkpoint.float32
        one, two = (read(each) for each in names)
        if one.shape != two.shape:
            return False
        one, two = one.reshape(-1), two.reshape(-1)
        stretches = (slice(begin, begin + COMPARED) for begin in range(0, one.size, COMPARED))
        alike = all(np.array_equal(one[stretch], two[stretch]) for stretch in stretches)
        self._checkpoint.release(names[0])
        return alike

    def left(self, ignorable: Sequence[str] = ()) -> list[str]:
        """The tensors that nobody took and that no pattern calls ignorable."""
        return sorted(
            name
            for name in self._checkpoint.tensors.keys() - self._taken
            if not any(re.fullmatch(pattern, name) for pattern in ignorable)
        )

    def finish(self, ignorable: Sequence[str] = ()) -> None:
        """Raises LayoutError if a tensor is left, or a name of `names` was never asked for."""
        left = self.left(ignorable)
        if left:
            others = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise LayoutError(
                f"{self._checkpoint.folder}: the checkpoint holds {left[0]!r}{others}, "
                "which this architecture and config do not use"
            )
        if self._names.unused:
            raise LayoutError(
                f"tensor_names: {self._names.unused[0]!r} is no name that this architecture and config ask for"
            )

    def _check(self, name: str, shape: tuple[int, ...]) -> str:
        """The name of a tensor in the file, which is there, has this shape and holds floats."""
        folder, tensors = self._checkpoint.folder, self._checkpoint.tensors
        stored = self._names.stored(name)
        if stored not in tensors:
            close = difflib.get_close_matches(stored, tensors, n=1)
            hint = f"; the closest it has is {close[0]!r}" if close else ""
            raise LayoutError(f"{folder}: the checkpoint lacks the tensor {stored!r} {shape}{hint}")
        info = tensors[stored]
        if tuple(info.shape) != shape:
            raise LayoutError(
                f"{folder}: tensor {stored!r} has shape {tuple(info.shape)}, where the config asks for {shape}"
            )
        if info.dtype not in FLOATS:
            raise CheckpointError(
                f"{folder}: tensor {stored!r} is {info.dtype}; expected one of {', '.join(FLOATS)}"
            )
        self._taken.add(stored)
        return stored
