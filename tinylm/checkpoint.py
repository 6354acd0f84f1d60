"""A model folder: its config and its tensors by name, memory-mapped and read-only."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from tinylm.errors import CheckpointError
from tinylm.safetensors_header import NUMPY_DTYPES, TensorInfo, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
LARGEST_JSON = 256 * 2**20  # bytes; a config or an index larger than this is none

__all__ = ["Checkpoint", "TensorInfo", "read_json_object"]


class Checkpoint:
    """An open model folder.

    `folder`, `config` (config.json), `generation_config` (generation_config.json, or empty), and `tensors`:
    name -> TensorInfo. The tensors are mapped into memory when one of a file is first asked for, so that
    opening a folder reads the headers alone.

    Weights are looked for as transformers does: model.safetensors, else the shards that
    model.safetensors.index.json names. Raises CheckpointError, naming the file and the tensor.
    """

    folder: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            if not self.folder.is_dir():
                found = "a file" if self.folder.exists() else "no such folder"
                raise CheckpointError(f"{self.folder}: {found}, where a model folder is expected")
            self.config = read_json_object(self.folder / "config.json")
            generation_config = self.folder / "generation_config.json"
            self.generation_config = read_json_object(generation_config) if generation_config.exists() else {}
            self.tensors = MappingProxyType(_find_tensors(self.folder))
        except OSError as error:
            raise CheckpointError(f"{self.folder}: cannot be read: {error.strerror or error}") from None
        self._maps: dict[Path, mmap.mmap] = {}
        self._closed = False

    def array(self, name: str) -> npt.NDArray[Any]:
        """The tensor as it is stored, a read-only view of the mapped file in its shape.

        F32 is float32, F16 float16, BF16 its raw bits as uint16, the others their NumPy dtype. A tensor
        whose bytes are not aligned to its elements is copied. Raises CheckpointError.
        """
        info = self._info(name)
        dtype = NUMPY_DTYPES[info.dtype]
        if info.nbytes == 0:
            stored = np.zeros(info.shape, dtype)
        else:
            count = info.nbytes // dtype.itemsize
            stored = np.frombuffer(self._map(info.file), dtype, count, info.offset).reshape(info.shape)
            if not stored.flags.aligned:
                stored = stored.copy()
        stored.flags.writeable = False
        return stored

    def float32(self, name: str) -> npt.NDArray[np.float32]:
        """The tensor in float32: the read-only view itself for F32, else a converted copy.

        Raises CheckpointError, also for tensors of integers.
        """
        info = self._info(name)
        stored = self.array(name)
        if info.dtype == "F32":
            return stored
        if info.dtype == "BF16":
            # bfloat16 is the upper half of a float32.
            bits = stored.astype(np.uint32)
            bits <<= 16
            return bits.view(np.float32)
        if info.dtype in ("F16", "F64"):
            return stored.astype(np.float32)
        raise CheckpointError(f"{info.file}: tensor {name!r} holds {info.dtype}, where floats are expected")

    def release(self, name: str) -> None:
        """Tells the system that a tensor's pages are not needed soon; reading them again brings them back."""
        info = self._info(name)
        map_ = self._maps.get(info.file)
        if map_ is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        begin = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
        map_.madvise(mmap.MADV_DONTNEED, begin, info.offset + info.nbytes - begin)

    def close(self) -> None:
        """Lets the files go. Arrays that were handed out stay valid: each keeps its map alive."""
        self._closed = True
        for map_ in self._maps.values():
            try:
                map_.close()
            except BufferError:
                continue  # still viewed by an array; freed with the last of them
        self._maps.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.folder}: the checkpoint has no tensor {name!r}") from None

    def _map(self, file: Path) -> mmap.mmap:
        if self._closed:
            raise CheckpointError(f"{self.folder}: the checkpoint was closed")
        map_ = self._maps.get(file)
        if map_ is None:
            try:
                with open(file, "rb") as stream:
                    map_ = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{file}: cannot be mapped into memory: {error}") from None
            ends = [info.offset + info.nbytes for info in self.tensors.values() if info.file == file]
            if len(map_) < max(ends):
                raise CheckpointError(f"{file}: the file has shrunk since it was opened")
            self._maps[file] = map_
        return map_


def read_json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError, naming the file."""
    try:
        if not file.is_file():
            found = "a folder, not a file" if file.is_dir() else "no such file"
            raise CheckpointError(f"{file}: {found}")
        if file.stat().st_size > LARGEST_JSON:
            raise CheckpointError(f"{file}: {file.stat().st_size} bytes; at most {LARGEST_JSON} are read")
        value = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from None
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: holds a JSON {type(value).__name__}, where an object is expected")
    return value


def _find_tensors(folder: Path) -> dict[str, TensorInfo]:
    if (folder / SINGLE_FILE).exists():
        return read_header(folder / SINGLE_FILE)
    if (folder / INDEX_FILE).exists():
        return _read_shards(folder)
    raise CheckpointError(_explain_missing_weights(folder))


def _read_shards(folder: Path) -> dict[str, TensorInfo]:
    index = folder / INDEX_FILE
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map (an object: tensor name -> file name)")
    for name, shard in weight_map.items():
        # A shard's name may come from a stranger: it must not lead out of the folder, on any system.
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or set(shard) & set("/\\:\0"):
            raise CheckpointError(
                f"{index}: tensor {name!r} is said to be in {shard!r}, which is not the name of a "
                ".safetensors file in this folder"
            )

    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).exists():
            count = sum(file == shard for file in weight_map.values())
            raise CheckpointError(
                f"{folder / shard}: this shard is missing; {INDEX_FILE} promises {count} tensors in it"
            )
        for name, info in read_header(folder / shard).items():
            if name in tensors:
                raise CheckpointError(
                    f"{folder}: tensor {name!r} is in {tensors[name].file.name} and in {shard}"
                )
            tensors[name] = info
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file.name != shard:
            found = f"; it is in {tensors[name].file.name}" if name in tensors else ""
            raise CheckpointError(
                f"{folder / shard}: lacks tensor {name!r}, which {INDEX_FILE} promises{found}"
            )
    # A tensor that a shard holds and the index does not name is kept: the architecture judges extras.
    return tensors


def _explain_missing_weights(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    safetensors = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    gguf = [name for name in names if name.endswith(".gguf")]
    missing = f"{folder}: no {SINGLE_FILE} and no {INDEX_FILE}"
    if safetensors:
        return (
            f"{missing}; found {', '.join(safetensors[:4])}: rename a whole model's file to {SINGLE_FILE}, "
            "or fetch the index of the shards"
        )
    if pickles:
        return (
            f"{missing}, only {', '.join(pickles[:4])}. Pickles are not read: opening one can run any code "
            "that its author put in. Take the model's safetensors files, or convert where you trust it: "
            "transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    if gguf:
        return f"{missing}, only {', '.join(gguf[:4])}: import it with `tinylm import {gguf[0]} NEW_FOLDER`"
    return f"{missing}; the folder holds {', '.join(names[:8]) or 'nothing'}"
