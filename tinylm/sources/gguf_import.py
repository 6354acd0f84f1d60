"""A GGUF file -> an ordinary model folder, with the values that llama.cpp computes with.

Quantized tensors are written as the float32 numbers that they stand for; F32, F16 and BF16 as they are.
"""

from __future__ import annotations

import hashlib
import math
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
    with GgufFile(gguf_path) as file:
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
        check_room(folder, sum(NUMPY_DTYPES[t.dtype].itemsize * math.prod(t.shape) for t in tensors))
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
    """A tensor of the file, read and converted to a safetensors dtype by some rows at a time."""

    file: GgufFile
    name: str
    interleaved_heads: int
    dtype: str

    def parts(self) -> Iterator[npt.NDArray[Any]]:
        shape = self.file.tensors[self.name].shape
        height = math.prod(shape[:-1])
        head_dim = shape[0] // self.interleaved_heads if self.interleaved_heads else 1
        step = max(1, PART // shape[-1] // head_dim) * head_dim  # whole heads
        for begin in range(0, height, step):
            values = self.convert(self.file.rows(self.name, begin, min(begin + step, height)))
            yield half_split_rows(values if len(shape) > 1 else values.T, head_dim)

    def convert(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        type_ = self.file.tensors[self.name].type
        if type_ == self.dtype:
            return stored
        if type_ == "BF16":
            # Where it is needed, because it brings Numba along.
            from tinylm.formats.bfloat16 import widen

            values = widen(stored)
        elif type_ in FLOATS:
            values = stored.astype(np.float32)
        else:
            values = dequantized(stored, type_)
        if self.dtype == "F16":
            with np.errstate(over="ignore"):
                halves = values.astype(np.float16)
            if np.isinf(halves).any() and not np.isinf(values).any():
                raise CheckpointError(
                    f"{self.file.file}: tensor {self.name!r} has values beyond float16's 65504; "
                    "import it as bfloat16"
                )
            return halves
        if self.dtype == "BF16":
            from tinylm.formats.bfloat16 import narrow

            return narrow(values)
        return values


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
        own_dtype = tensor.type if tensor.type in FLOATS else "F32"
        stored = _Stored(file, name, target.interleaved_heads, dtype or own_dtype)
        sources.append(TensorSource(target.name, stored.dtype, tensor.shape, stored.parts))
    return sources


def half_split_rows(rows: npt.NDArray[Any], head_dim: int) -> npt.NDArray[Any]:
    """Whole heads of a q or k projection, (heads * head_dim, K), from llama.cpp's order to Hugging Face's.

    llama.cpp rotates neighbours (x0, x1), (x2, x3), ..., Hugging Face's files the two halves of a head, so
    llama.cpp's converter interleaves the halves' rows. This undoes it. A `head_dim` of 1 changes nothing.
    """
    if head_dim == 1:
        return rows
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[1])
    half_split: npt.NDArray[Any] = pairs.swapaxes(1, 2).reshape(rows.shape)
    return half_split


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


def _main_dtype(tensors: list[TensorSource]) -> str:
    """What config.json calls the weights' dtype: that of most of the values."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + math.prod(tensor.shape)
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
