"""The header of a safetensors file: names, dtypes, shapes and places of its tensors, checked.

A safetensors file is 8 bytes (the header's length, little-endian), a JSON header, and the tensors' bytes
one after the other. The format is documented at https://huggingface.co/docs/safetensors.

The parser is ours and not the `safetensors` library's, because that one gives neither the offsets, which a
memory map needs, nor bfloat16 to NumPy, and its messages do not always name the tensor. It accepts what the
library accepts; the tests hold the two against each other.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from tinylm.errors import CheckpointError

# BF16 has no NumPy dtype: its bits are read as uint16.
NUMPY_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}

CACHE_LINE = 64  # bytes
LENGTH_BYTES = 8
LONGEST_HEADER = 100_000_000  # bytes; the library's own limit
MOST_DIMENSIONS = 32  # NumPy 1's limit


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: dtype as safetensors names it, shape, size in bytes, file, offset in that file."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: Path
    offset: int


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name, in the order of their bytes.

    Reads the header alone. Everything in it is checked against the file's size before anything is
    allocated by it. Raises CheckpointError, naming the file and the tensor.
    """
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # before it is opened: a pipe would wait for a writer
            found = "a folder" if file.is_dir() else "no regular file"
            raise CheckpointError(f"{file}: {found}, where a safetensors file is expected")
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            return _parse(file, _header_bytes(file, stream, size), size)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from None


def format_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The first bytes of a file that holds these (name, dtype, shape) in this order, padded to whole cache lines.

    Mapped tensors of whole lines then lie in whole lines.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers insists on this entry
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + math.prod(shape) * NUMPY_DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % CACHE_LINE)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _header_bytes(file: Path, stream: BinaryIO, size: int) -> bytes:
    if size < LENGTH_BYTES:
        raise CheckpointError(
            f"{file}: {size} bytes is too short for a safetensors file; the file is truncated"
        )
    length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
    if length > LONGEST_HEADER:
        raise CheckpointError(
            f"{file}: not a safetensors file: its first 8 bytes announce a header of {length} bytes "
            f"(at most {LONGEST_HEADER})"
        )
    if length > size - LENGTH_BYTES:
        raise CheckpointError(
            f"{file}: truncated or not a safetensors file: a header of {length} bytes is announced, "
            f"the file has {size}"
        )
    return stream.read(length)


def _parse(file: Path, header: bytes, size: int) -> dict[str, TensorInfo]:
    """The checked entries of a header's JSON, for a file of `size` bytes."""

    def objects_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise CheckpointError(f"{file}: the header names {key!r} twice")
            seen[key] = value
        return seen

    def refuse_constant(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        entries = json.loads(
            header.decode("utf-8"),
            object_pairs_hook=objects_without_repeats,
            parse_constant=refuse_constant,
        )
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: the safetensors header is not JSON: {error}") from None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{file}: the safetensors header is a JSON {_kind(entries)}, not an object")
    metadata = entries.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise CheckpointError(f"{file}: __metadata__ of the header is not an object of strings")

    start = LENGTH_BYTES + len(header)
    infos = {name: _tensor_info(file, name, entry, start, size) for name, entry in entries.items()}
    # An empty tensor has no bytes: sort it before a tensor that begins at the same place.
    infos = dict(sorted(infos.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    end, previous = start, "the header"
    for name, info in infos.items():
        if info.offset < end:
            raise CheckpointError(f"{file}: the bytes of tensor {name!r} overlap those of {previous}")
        if info.offset > end:
            raise CheckpointError(
                f"{file}: the {info.offset - end} bytes between {previous} and tensor {name!r} are nobody's"
            )
        end, previous = info.offset + info.nbytes, f"tensor {name!r}"
    if end != size:
        raise CheckpointError(f"{file}: the {size - end} bytes after {previous} are nobody's")
    return infos


def _tensor_info(file: Path, name: str, entry: object, start: int, size: int) -> TensorInfo:
    where = f"{file}: tensor {name!r}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where}: its entry is a JSON {_kind(entry)}, not an object")
    missing = [key for key in ("dtype", "shape", "data_offsets") if key not in entry]
    if missing:
        raise CheckpointError(f"{where}: its entry has no {' and no '.join(missing)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]

    if not isinstance(dtype, str) or dtype not in NUMPY_DTYPES:
        raise CheckpointError(f"{where}: unknown dtype {_short(dtype)}; possible: {', '.join(NUMPY_DTYPES)}")
    if not _is_list_of_sizes(shape) or len(shape) > MOST_DIMENSIONS:
        raise CheckpointError(
            f"{where}: shape {_short(shape)} is not a list of at most {MOST_DIMENSIONS} sizes from 0 up"
        )
    itemsize = NUMPY_DTYPES[dtype].itemsize
    # Without the zeros: NumPy refuses (2**62, 2**62, 0), although it has no elements.
    if math.prod(dimension or 1 for dimension in shape) * itemsize >= 2**63:
        raise CheckpointError(f"{where}: shape {_short(shape)} is larger than any memory")
    if not _is_list_of_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets {_short(offsets)} is not [begin, end]")
    begin, end = offsets
    if start + end > size:
        raise CheckpointError(
            f"{where}: its bytes {begin} to {end} lie beyond the end of the file, which has {size - start} "
            "bytes of tensors; the file is truncated"
        )
    nbytes = math.prod(shape) * itemsize
    if nbytes != end - begin:
        raise CheckpointError(
            f"{where}: {dtype} of shape {_short(shape)} takes {nbytes} bytes, "
            f"its data_offsets hold {end - begin}"
        )
    return TensorInfo(dtype, tuple(shape), nbytes, file, start + begin)


def _is_list_of_sizes(value: object) -> bool:
    # `type`, because True is an int and 2.0 == 2.
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _kind(value: object) -> str:
    kinds = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
