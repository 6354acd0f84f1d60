"""Writing a model folder so that it is there whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinylm.errors import SourceError
from tinylm.safetensors_header import NUMPY_DTYPES, format_header

PARTIAL = ".partial"
"""How the name of a folder ends that is still being written."""


COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "README*")
"""The files beside config.json and the weights that belong to a model."""

DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@dataclass(frozen=True)
class TensorSource:
    """A tensor to be written: name, safetensors dtype, shape, and what yields its parts in order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: Callable[[], Iterator[npt.NDArray[Any]]]


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder beside `folder`, which becomes it at the end.

    Where anything goes wrong on the way, Ctrl-C included, it is removed and `folder` stays away. Raises
    SourceError where `folder` is already there, or where the system refuses (disk full, no permission).
    """
    if folder.exists() and not _is_empty_folder(folder):
        raise SourceError(f"{folder}: already there; choose another folder or remove it first")
    with explained(folder), scratch_folder(folder) as partial:
        yield partial
        if folder.exists():
            folder.rmdir()
        _rename(partial, folder)


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """Yields an empty folder on the disk of `beside`, which is gone afterwards whatever happens."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    scratch = beside.with_name(f".{beside.name}.{secrets.token_hex(4)}{PARTIAL}")
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_scratch(beside: Path) -> None:
    """Removes what a killed process left of its scratch folders; only for who holds the lock of `beside`."""
    for stale in beside.parent.glob(f".{beside.name}.*{PARTIAL}"):
        shutil.rmtree(stale, ignore_errors=True)


@contextmanager
def explained(place: Path) -> Iterator[None]:
    """Turns the system's errors into SourceErrors that say what to do; `place` is where we write."""
    try:
        yield
    except OSError as error:
        where = error.filename or place
        if error.errno in DISK_FULL:
            raise SourceError(
                f"{place}: the disk is full; nothing was kept. Make room, or set TINYLM_HOME to a folder on "
                "another disk"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise SourceError(
                f"{where}: cannot be written ({error.strerror}). Set TINYLM_HOME to a folder that is yours"
            ) from None
        raise SourceError(f"{where}: {error.strerror or error}") from None


def check_room(place: Path, needed: int) -> None:
    """Raises SourceError where the disk of `place` has fewer than `needed` bytes free."""
    free = _free(place)
    if free < needed:
        raise SourceError(
            f"{place}: {needed / 1e6:.0f} MB are needed on this disk, {free / 1e6:.0f} MB are free. Make "
            "room, or set TINYLM_HOME to a folder on another disk"
        )


def copy_companions(source: Path, folder: Path) -> None:
    """Copies what goes along with a model as it is: tokenizer, chat template, generation config, papers."""
    for pattern in COMPANIONS:
        for file in source.glob(pattern):
            if file.name not in ("config.json", "model.safetensors.index.json"):
                shutil.copyfile(file, folder / file.name)


def write_json(file: Path, value: object) -> None:
    """Writes JSON for people: indented, Unicode as it is, a newline at the end."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def write_safetensors(
    file: Path, tensors: Sequence[TensorSource], progress: Callable[[int, int], None] | None = None
) -> None:
    """Writes the tensors one part after the other, so that only a part is ever in memory.

    `progress(done, total)` is called in bytes, after each part.
    """
    header = format_header([(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors])
    sizes = [math.prod(tensor.shape) * NUMPY_DTYPES[tensor.dtype].itemsize for tensor in tensors]
    end, total = len(header), len(header) + sum(sizes)
    with open(file, "wb") as stream:
        stream.write(header)
        for tensor, size in zip(tensors, sizes, strict=True):
            for part in tensor.parts():
                stream.write(np.ascontiguousarray(part).data)
                if progress is not None:
                    progress(stream.tell(), total)
            end += size
            assert stream.tell() == end, f"{tensor.name}: {stream.tell()} bytes written, {end} promised"
        stream.flush()
        os.fsync(stream.fileno())


def _rename(partial: Path, folder: Path) -> None:
    """Renames; on Windows patiently, because a virus scanner may hold a new file open for a moment."""
    for _ in range(20 if sys.platform == "win32" else 0):
        try:
            partial.rename(folder)
            return
        except PermissionError:
            time.sleep(0.1)
    partial.rename(folder)


def _is_empty_folder(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


def _free(place: Path) -> int:
    """Free bytes on the disk of a path that may not exist yet; none where that cannot be told."""
    for folder in (place, *place.absolute().parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return 0
