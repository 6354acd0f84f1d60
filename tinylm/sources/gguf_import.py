"""A GGUF file -> an ordinary model folder, with the values that llama.cpp computes with.

Quantized tensors are written as the float32 numbers that they stand for; F32, F16 and BF16 as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinylm import __version__
from tinylm.errors import CheckpointError, MissingExtraError, ParameterError
from tinylm.safetensors_header import NUMPY_DTYPES
from tinylm.sources.gguf_config import Layout, model_layout
from tinylm.sources.gguf_file import FLOATS, GgufFile
from tinylm.sources.gguf_tokenizer import import_tokenizer
from tinylm.sources.write import TensorSource, check_room, new_folder, write_json, write_safetensors

DTYPES = {"auto": None, "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
PART = 2**22  # values that are in memory at once

SOURCE_FILE = "source.json"


def import_gguf(
    gguf_path: str | Path,
    folder: str | Path,
    dtype: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the model of a GGUF file as a model folder and returns it.

    `dtype` is "auto" (quantized tensors become float32, the others stay as they are), "float32", "float16"
    or "bfloat16". `progress(done, total)` is called in bytes written. `origin` is added to source.json,
    which tells where the model came from.

    Raises CheckpointError for a damaged or an unsupported file, SourceError where the folder is there
    already or cannot be written, MissingExtraError without the `gguf` library. The folder is there whole or
    not at all.
    """
    if dtype not in DTYPES:
        raise ParameterError(f"dtype {dtype!r} is not possible; possible: {', '.join(DTYPES)}")
    folder = Path(folder)
    file = GgufFile(gguf_path)
    layout = model_layout(file)
    context = layout.config["max_position_embeddings"]
    tokenizer = import_tokenizer(file.file, file.metadata, layout.config["vocab_size"], context)
    tensors = _sources(file, layout, DTYPES[dtype])

    config = {**layout.config, "torch_dtype": _main_dtype(tensors)}
    token_ids: dict[str, int | list[int]] = {
        f"{name}_id": id_ for name, id_ in tokenizer.special_ids.items() if name != "unk_token"
    }
    config.update(token_ids)
    if len(tokenizer.end_ids) > 1:
        token_ids["eos_token_id"] = tokenizer.end_ids
    check_room(folder, sum(NUMPY_DTYPES[t.dtype].itemsize * int(np.prod(t.shape)) for t in tensors))
    with new_folder(folder) as partial_folder:
        write_json(partial_folder / "config.json", config)
        write_json(partial_folder / "generation_config.json", token_ids)
        write_json(partial_folder / "tokenizer.json", tokenizer.tokenizer)
        write_json(partial_folder / "tokenizer_config.json", tokenizer.config)
        write_json(partial_folder / SOURCE_FILE, {**_describe(file, dtype), **(origin or {})})
        write_safetensors(partial_folder / "model.safetensors", tensors, progress)
    return folder


@dataclass(frozen=True)
class _Stored:
    """A tensor of the file: matrix, ggml type, order of the rows, and the safetensors dtype to write."""

    where: str
    matrix: npt.NDArray[Any]
    type: str
    order: npt.NDArray[np.intp] | None
    dtype: str

    def parts(self) -> Iterator[npt.NDArray[Any]]:
        """Yields the matrix by some rows at a time, converted."""
        values_per_byte = 8 if self.type not in FLOATS else 1
        step = max(1, PART // (self.matrix.shape[1] * values_per_byte))
        for begin in range(0, self.matrix.shape[0], step):
            rows = slice(begin, begin + step) if self.order is None else self.order[begin : begin + step]
            yield self.convert(self.matrix[rows])

    def convert(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.type == self.dtype:
            return stored
        if self.type == "BF16":
            values = (stored.astype(np.uint32) << 16).view(np.float32)
        elif self.type in FLOATS:
            values = stored.astype(np.float32)
        else:
            values = dequantized(stored, self.type)
        if self.dtype == "F16":
            with np.errstate(over="ignore"):
                halves = values.astype(np.float16)
            if np.isinf(halves).any() and not np.isinf(values).any():
                raise CheckpointError(
                    f"{self.where}: has values beyond float16's 65504; import it as bfloat16"
                )
            return halves
        return _bfloat16_bits(values) if self.dtype == "BF16" else values


def dequantized(blocks: npt.NDArray[np.uint8], type_: str) -> npt.NDArray[np.float32]:
    """The values of a matrix of ggml blocks, (rows, bytes) -> (rows, columns), by the `gguf` library."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):  # a scale may be infinite; the engine looks at the logits
        values: npt.NDArray[np.float32] = dequantize(blocks, GGMLQuantizationType[type_])
    return values


def _sources(file: GgufFile, layout: Layout, dtype: str | None) -> list[TensorSource]:
    _check_types(file, layout)
    sources = []
    for name, target in layout.tensors.items():
        tensor = file.tensors[name]
        order = None
        if target.interleaved_heads:
            order = half_split_rows(tensor.shape[0], target.interleaved_heads)
        own_dtype = tensor.type if tensor.type in FLOATS else "F32"
        matrix = file.rows(name)
        if len(tensor.shape) == 1 and order is not None:
            matrix = matrix.reshape(-1, 1)  # a bias: its elements are the rows
        stored = _Stored(f"{file.file}: tensor {name!r}", matrix, tensor.type, order, dtype or own_dtype)
        sources.append(TensorSource(target.name, stored.dtype, tensor.shape, stored.parts))
    return sources


def half_split_rows(height: int, heads: int) -> npt.NDArray[np.intp]:
    """For each row of a q or k projection in Hugging Face's order, its row in a GGUF file of llama.

    llama.cpp rotates neighbours (x0, x1), (x2, x3), ..., Hugging Face's files the two halves of a head, so
    llama.cpp's converter interleaves the halves' rows. This undoes it.
    """
    interleaved = np.arange(height).reshape(heads, height // heads // 2, 2)
    order: npt.NDArray[np.intp] = interleaved.swapaxes(1, 2).reshape(-1)
    return order


def _check_types(file: GgufFile, layout: Layout) -> None:
    """Tries each type on one block, so that nothing is written of a file that cannot be finished."""
    try:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError:
        raise MissingExtraError("gguf", "reading a GGUF file") from None
    for name in layout.tensors:
        type_ = file.tensors[name].type
        if type_ in FLOATS:
            continue
        block = np.zeros((1, GGML_QUANT_SIZES[GGMLQuantizationType[type_]][1]), np.uint8)
        try:
            dequantized(block, type_)
        except NotImplementedError:
            raise CheckpointError(
                f"{file.file}: tensor {name!r} has type {type_}, which the gguf library cannot dequantize"
            ) from None


def _bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The nearest bfloat16 of each value, ties to even."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    nan = (bits >> 16) | np.uint32(0x40)  # rounding could carry a NaN into infinity
    halves: npt.NDArray[np.uint16] = np.where(np.isnan(values), nan, rounded).astype(np.uint16)
    return halves


def _main_dtype(tensors: list[TensorSource]) -> str:
    """What config.json calls the weights' dtype: that of most of the values."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + int(np.prod(tensor.shape))
    names = {stored: name for name, stored in DTYPES.items()}
    return names[max(counts, key=lambda dtype: counts[dtype])]


def _describe(file: GgufFile, dtype: str) -> dict[str, Any]:
    types: dict[str, int] = {}
    for tensor in file.tensors.values():
        types[tensor.type] = types.get(tensor.type, 0) + 1
    description: dict[str, Any] = {
        "gguf": file.file.name,
        "gguf_sha256": sha256(file.file),
        "gguf_types": types,
        "dtype": dtype,
        "tinylm": __version__,
    }
    for key in ("name", "license"):
        if isinstance(file.metadata.get(f"general.{key}"), str):
            description[key] = file.metadata[f"general.{key}"]
    return description


def sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        for part in iter(partial(stream.read, 2**20), b""):
            digest.update(part)
    return digest.hexdigest()
