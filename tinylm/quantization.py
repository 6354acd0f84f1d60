"""Writing a quantized copy of a model folder, which then loads by memory map."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylm.checkpoint import Checkpoint
from tinylm.errors import CheckpointError, ParameterError
from tinylm.formats.quantized import SCALES, QuantizedMatrix
from tinylm.formats.table import QUANTIZED, matrix_format
from tinylm.kernels.hadamard import GROUP
from tinylm.kernels.team import Team
from tinylm.models import load_program
from tinylm.models.fields import QUANTIZATION_VERSION
from tinylm.safetensors_header import TensorInfo
from tinylm.sources.write import (
    TensorSource,
    check_room,
    copy_companions,
    new_folder,
    write_json,
    write_safetensors,
)


def method(dtype: str) -> dict[str, Any]:
    """The `quantization_config` of a folder in our layout."""
    return {
        "quant_method": "tinylm",
        "format": dtype,
        "group_size": GROUP,
        "rotation": "hadamard",
        "version": QUANTIZATION_VERSION,
    }


def quantize_folder(
    source: str | Path,
    folder: str | Path,
    dtype: str = "int8",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the model folder `source` to `folder` with its matrices in a format of few bits; returns the new folder.

    Tensor by tensor: no more than the largest is held in memory. `progress(done, total)` is called in bytes
    written. Raises CheckpointError for a source that is no model that tinylm can run, or is quantized
    already; SourceError if `folder` is there or cannot be written.
    """
    if dtype not in QUANTIZED:
        raise ParameterError(f"dtype {dtype!r}: a folder can be quantized to {' or '.join(QUANTIZED)}")
    folder = Path(folder)
    with Checkpoint(source) as checkpoint:
        if checkpoint.config.get("quantization_config") is not None:
            raise CheckpointError(f"{source}: is quantized already")
        load_program(checkpoint)  # a folder that does not run is not worth a copy
        team = Team(threads)
        tensors = list(_tensors(checkpoint, dtype, team))
        check_room(folder, sum(int(np.prod(one.shape)) for one in tensors))
        with new_folder(folder) as partial:
            copy_companions(Path(source), partial)
            write_safetensors(partial / "model.safetensors", tensors, progress)
            write_json(partial / "config.json", {**checkpoint.config, "quantization_config": method(dtype)})
    return folder


def _tensors(checkpoint: Checkpoint, dtype: str, team: Team) -> Iterator[TensorSource]:
    """What to write: two tensors for each matrix, all else as it is; a tied head's copy is left out."""
    tied = checkpoint.config.get("tie_word_embeddings") is True
    for name, info in checkpoint.tensors.items():
        if tied and name in ("lm_head.weight", "embed_out.weight"):
            continue
        if len(info.shape) != 2:
            yield TensorSource(name, info.dtype, tuple(info.shape), _as_it_is(checkpoint, name))
            continue
        wanted = matrix_format(dtype, info.shape[0], checkpoint.config.get("vocab_size"))
        numbers, scales = wanted.stored_shapes((info.shape[0], info.shape[1]))
        matrix = _Once(checkpoint, name, info, wanted, team)
        yield TensorSource(name, wanted.stored, numbers, matrix.numbers)
        yield TensorSource(name + SCALES, "BF16", scales, matrix.scales)


def _as_it_is(checkpoint: Checkpoint, name: str) -> Callable[[], Iterator[NDArray[Any]]]:
    return lambda: iter([checkpoint.array(name)])


class _Once:
    """A matrix that is quantized when its numbers are written, and forgotten after its scales are."""

    def __init__(
        self, checkpoint: Checkpoint, name: str, info: TensorInfo, wanted: type[QuantizedMatrix], team: Team
    ) -> None:
        self._checkpoint, self._name, self._wanted, self._team = checkpoint, name, wanted, team
        self._as_bits = info.dtype == "BF16"
        self._matrix: QuantizedMatrix | None = None

    def numbers(self) -> Iterator[NDArray[Any]]:
        read = self._checkpoint.array if self._as_bits else self._checkpoint.float32
        self._matrix = self._wanted.quantize(np.ascontiguousarray(read(self._name)), self._team)
        self._checkpoint.release(self._name)
        yield self._matrix.arrays()[0]

    def scales(self) -> Iterator[NDArray[Any]]:
        assert self._matrix is not None
        yield self._matrix.arrays()[1]
        self._matrix = None
