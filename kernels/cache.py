"""Files of the kernel cache: where they are, what names them, and that they are whole."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import secrets
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from tinylm.home import home
from tinylm.kernels.processor import identity


def _version(package: str) -> bytes:
    """What tells a release of a package, without importing it: the file that names its version."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"tinylm needs {package}; install it with: pip install {package}")
    return (Path(found.origin).parent / "_version.py").read_bytes()


@lru_cache(None)
def folder() -> Path:
    """The folder of this very set of kernel sources, Numba and Python.

    Numba's own cache looks at the file that defines a function and not at what it calls in others, so a
    change in one of those would go unseen. The name of this folder changes with every source.
    """
    digest = hashlib.sha256(_version("numba") + _version("llvmlite") + str(sys.version_info[:2]).encode())
    sources = Path(__file__).resolve().parent
    for source in sorted(sources.glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    return home() / "kernels" / digest.hexdigest()[:16]


def _identity(value: Any) -> Any:
    """What tells a function from others of its name: the text of its file, and all that it closes over."""
    function = getattr(value, "py_func", value)
    if isinstance(function, FunctionType):
        file = hashlib.sha256(Path(function.__code__.co_filename).read_bytes()).hexdigest()
        cells = [_identity(cell.cell_contents) for cell in function.__closure__ or ()]
        return function.__module__, function.__qualname__, file, cells
    if isinstance(value, (bool, int, float, str, np.generic)):
        return type(value).__name__, repr(value)
    return secrets.token_hex()  # nothing is known of it: always a miss, never another's code


def entry(function: Callable[..., Any], kind: str) -> Path:
    """The file of a compiled function; `kind` tells its forms apart."""
    digest = hashlib.sha256(repr((_identity(function), kind, identity())).encode()).hexdigest()
    return folder() / f"{function.__name__}-{digest[:16]}"


def read(path: Path) -> bytes | None:
    """What `write` kept, or None if there is nothing, or anything else."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else None


def write(path: Path, payload: bytes) -> None:
    """Keep it with its checksum, by a rename, so that no other process sees half of it. It may fail in silence."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(hashlib.sha256(payload).digest() + payload)
        part.replace(path)
    except OSError:
        return
