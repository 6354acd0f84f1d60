"""Compiling: `njit` with our flags, `operation` for the executor, and a cache of what was compiled."""

from __future__ import annotations

import hashlib
import os
import pickle
import secrets
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any, cast

import llvmlite
import numba
import numpy as np
from numba import types
from numba.core.caching import NullCache
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from tinylm.home import home

FASTMATH = {"reassoc", "contract", "arcp", "nsz"}
"""`reassoc` turns SIMD on for sums. Never `True`: it would assume that there is no -inf, which masks use."""

FLAGS: dict[str, Any] = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy", "boundscheck": False}

Progress = Callable[[str, float], None]
"""Called as `progress(name, seconds)` when a kernel had to be compiled because no cache held it."""

_listeners: list[Progress] = []


def on_compile(listener: Progress) -> Callable[[], None]:
    """Tell `listener` of each kernel just before (seconds = 0) and after it is compiled; undo by the result."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def _announce(name: str, seconds: float) -> None:
    for listener in list(_listeners):
        listener(name, seconds)


@cache
def cache_folder() -> Path:
    """The folder of this very set of kernel sources, Numba and Python.

    Numba's own cache looks at the file that defines a function and not at what it calls in others, so a
    change in one of those would go unseen. The name of this folder changes with every source.
    """
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {sys.version_info[:2]}".encode())
    folder = Path(__file__).resolve().parent
    for source in sorted(folder.glob("*.py")):
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


class KernelCache(NullCache):  # type: ignore[misc]
    """Compiled functions on disk, each with a checksum. What cannot be read or written is a miss.

    Takes the place of Numba's own cache, which raises on a damaged or unwritable file.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def _path(self, signature: Any, codegen: Any) -> Path:
        key = (_identity(self._function), str(signature), codegen.magic_tuple())
        name = f"{self._function.__name__}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"
        return cache_folder() / name

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function of this signature, or None."""
        target_context.refresh()
        try:
            data = self._path(sig, target_context.codegen()).read_bytes()
            if hashlib.sha256(data[32:]).digest() != data[:32]:
                return None
            return CompileResult._rebuild(target_context, *pickle.loads(data[32:]))
        except Exception:
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function, by a rename so that no other process sees half of it."""
        try:
            path = self._path(sig, data.codegen)
            payload = dumps(data._reduce())
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{os.getpid()}")
            part.write_bytes(hashlib.sha256(payload).digest() + payload)
            part.replace(path)
        except Exception:
            return


class _TimedCache(KernelCache):
    """Announces what it does not hold: the compilation happens between `load` and `save`."""

    _since = 0.0

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = super().load_overload(sig, target_context)
        if found is None:
            self._since = time.perf_counter()
            _announce(self._function.__name__, 0.0)
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        super().save_overload(sig, data)
        _announce(self._function.__name__, time.perf_counter() - self._since)


def njit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`numba.njit` with our flags and our cache; signatures are lazy."""
    if function is None:
        return lambda function: njit(function, **options)
    dispatcher = numba.njit(**{**FLAGS, **options})(function)
    dispatcher._cache = _TimedCache(function)
    return dispatcher


OPERATION = types.void(types.CPointer(types.int64), types.int64, types.int64)


class Operation:
    """A function `(operands, begin, end)` that the executor calls by address; compiled when first asked for.

    `operands` are the int64 of its row in the table: addresses, sizes, and floats as their bits. It does the
    units `begin <= unit < end` of the work.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__name__
        self._compiled = cast(Any, CFunc)(function, (OPERATION.args, OPERATION.return_type), {}, {**FLAGS})
        self._compiled._cache = _TimedCache(function)
        self._address: int | None = None

    @property
    def address(self) -> int:
        """Where the machine code begins."""
        if self._address is None:
            self._compiled.compile()
            self._address = int(self._compiled.address)
        return self._address


def operation(function: Callable[..., Any]) -> Operation:
    """Make an `Operation` of a function."""
    return Operation(function)
