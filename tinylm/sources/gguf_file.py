"""A GGUF file: its metadata and its tensors, checked against the file's size.

The header is read here and not by the `gguf` library's reader, which takes an array of 2^60 numbers at its
word (and so never ends on a hostile file) and seconds for a vocabulary. The library still says what the
quantized types are and dequantizes them. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tinylm.errors import CheckpointError, MissingExtraError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MOST_DIMENSIONS = 4

# GGUF's number of a value type -> the type; 8 is a string, 9 an array.
SCALARS: Mapping[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
STRING, ARRAY = 8, 9

FLOATS: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # its bits
}


@dataclass(frozen=True)
class GgufTensor:
    """A tensor in the file: type as ggml names it (F32, Q4_K, ...), shape as NumPy orders it, place, size."""

    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class GgufFile:
    """An open GGUF file: `metadata` (key -> value) and `tensors` (name -> GgufTensor).

    A metadata value is a number, a bool, a str, a list of str, or an array of numbers. Raises
    CheckpointError where the file is not GGUF or lies about what is in it, MissingExtraError without `gguf`.
    A context manager. It reads and does not map: Windows could not delete a file that a map still holds.
    """

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        try:
            from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        except ImportError:
            raise MissingExtraError("gguf", "reading a GGUF file") from None
        types = {int(type_): (type_.name, *GGML_QUANT_SIZES[type_]) for type_ in GGMLQuantizationType}
        try:
            if not self.file.is_file():
                found = "not a file" if self.file.exists() else "no such file"
                raise CheckpointError(f"{self.file}: {found}")
            self._stream = open(self.file, "rb")  # noqa: SIM115  (closed by close)
        except OSError as error:
            raise CheckpointError(f"{self.file}: cannot be read: {error.strerror or error}") from None
        try:
            self._read_header(types)
        except BaseException:
            self.close()
            raise

    def _read_header(self, types: Mapping[int, tuple[str, int, int]]) -> None:
        reader = _Reader(self.file, self._stream)
        version = reader.start()
        tensor_count, key_count = reader.number("<Q"), reader.number("<Q")
        # A key with its value takes 13 bytes at least, a tensor's entry 28.
        reader.check_count(key_count, 13, "metadata entries")
        self.metadata = {"GGUF.version": version}
        for _ in range(key_count):
            key = reader.string("a metadata key")
            if key in self.metadata:
                raise CheckpointError(f"{self.file}: metadata {key!r} is there twice")
            self.metadata[key] = reader.value(key)
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment <= 0 or alignment % 8:
            raise CheckpointError(f"{self.file}: general.alignment {alignment!r} is not a multiple of 8")

        reader.check_count(tensor_count, 28, "tensors")
        entries = [reader.tensor(types) for _ in range(tensor_count)]
        start = -(-reader.position // alignment) * alignment
        self.tensors = {}
        for name, tensor in entries:
            if name in self.tensors:
                raise CheckpointError(f"{self.file}: tensor {name!r} is there twice")
            if tensor.offset % alignment or start + tensor.offset + tensor.nbytes > reader.size:
                raise CheckpointError(
                    f"{self.file}: tensor {name!r}: its {tensor.nbytes} bytes at {tensor.offset} lie off the "
                    f"alignment or beyond the end of the file ({reader.size} bytes); it is damaged"
                )
            self.tensors[name] = GgufTensor(tensor.type, tensor.shape, start + tensor.offset, tensor.nbytes)

    def rows(self, name: str, begin: int = 0, end: int | None = None) -> npt.NDArray[Any]:
        """Rows `begin` to `end` of the tensor as a matrix: rows x columns, or rows x bytes if quantized.

        A vector is one row. Raises CheckpointError where the file cannot be read or was cut meanwhile.
        """
        tensor = self.tensors[name]
        height = math.prod(tensor.shape[:-1])
        width = tensor.nbytes // height
        end = height if end is None else end
        try:
            self._stream.seek(tensor.offset + begin * width)
            stored = self._stream.read((end - begin) * width)
        except OSError as error:
            raise CheckpointError(f"{self.file}: tensor {name!r}: {error.strerror or error}") from None
        if len(stored) != (end - begin) * width:
            raise CheckpointError(f"{self.file}: tensor {name!r}: the file was cut while it was read")
        return np.frombuffer(stored, FLOATS.get(tensor.type, np.dtype("u1"))).reshape(end - begin, -1)

    def close(self) -> None:
        """Lets the file go."""
        self._stream.close()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Reader:
    """Reads values one after the other; every length is checked against what is left of the file."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self.file = file
        self.stream = stream
        self.position = 0
        self.size = os.fstat(stream.fileno()).st_size

    def start(self) -> int:
        magic = self.take(4, "the first bytes")
        if magic != MAGIC:
            raise CheckpointError(f"{self.file}: not a GGUF file: it begins with {magic!r}, not {MAGIC!r}")
        version = self.number("<I")
        if version not in VERSIONS:
            other = "; it was written for a big-endian machine" if version & 0xFFFF == 0 and version else ""
            raise CheckpointError(
                f"{self.file}: GGUF version {version} is not read, {VERSIONS[0]} and {VERSIONS[1]} are{other}"
            )
        return version

    def take(self, count: int, what: str) -> bytes:
        taken = self.stream.read(count) if count <= self.size - self.position else b""
        if len(taken) != count:
            raise CheckpointError(
                f"{self.file}: truncated: {what} of {count} bytes at {self.position}, the file has {self.size}"
            )
        self.position += count
        return taken

    def number(self, format_: str) -> int:
        value: int = struct.unpack(format_, self.take(struct.calcsize(format_), "a number"))[0]
        return value

    def string(self, what: str) -> str:
        try:
            return self.take(self.number("<Q"), what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.file}: {what} is not UTF-8: {error}") from None

    def check_count(self, count: int, least_bytes: int, what: str) -> None:
        left = self.size - self.position
        if count * least_bytes > left:
            raise CheckpointError(
                f"{self.file}: truncated: {count} {what} do not fit into the {left} bytes left"
            )

    def value(self, key: str) -> Any:
        kind = self.number("<I")
        if kind == STRING:
            return self.string(f"metadata {key!r}")
        if kind == ARRAY:
            kind, count = self.number("<I"), self.number("<Q")
            if kind == STRING:
                self.check_count(count, 8, f"strings of metadata {key!r}")
                return [self.string(f"metadata {key!r}") for _ in range(count)]
            return self.scalars(key, kind, count)
        return self.scalars(key, kind, 1)[0].item()

    def scalars(self, key: str, kind: int, count: int) -> npt.NDArray[Any]:
        dtype = SCALARS.get(kind)
        if dtype is None:
            raise CheckpointError(f"{self.file}: metadata {key!r} has values of the unknown type {kind}")
        return np.frombuffer(self.take(count * dtype.itemsize, f"metadata {key!r}"), dtype)

    def tensor(self, sizes: Mapping[int, tuple[str, int, int]]) -> tuple[str, GgufTensor]:
        """A tensor's entry, with its offset still counted from the start of the tensors' bytes."""
        name = self.string("a tensor's name")
        where = f"{self.file}: tensor {name!r}"
        dimensions = self.number("<I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise CheckpointError(f"{where}: {dimensions} dimensions; 1 to {MOST_DIMENSIONS} are possible")
        shape = tuple(self.number("<Q") for _ in range(dimensions))[::-1]  # GGUF begins with the columns
        kind, offset = self.number("<I"), self.number("<Q")
        if kind not in sizes:
            raise CheckpointError(f"{where}: type {kind} is unknown to the installed gguf library")
        type_, block, block_bytes = sizes[kind]
        if 0 in shape or math.prod(shape) >= 2**62:
            raise CheckpointError(f"{where}: shape {shape} is empty or larger than any memory")
        if shape[-1] % block:
            raise CheckpointError(
                f"{where}: rows of {shape[-1]} values are not a multiple of {type_}'s {block}"
            )
        return name, GgufTensor(type_, shape, offset, math.prod(shape) // block * block_bytes)
