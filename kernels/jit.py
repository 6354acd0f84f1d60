"""Compiling: `njit` with our flags, `operation` for the executor, both without Numba until something must be compiled.

A program that finds its kernels in the cache starts without Numba and LLVM, which take half a second and 110 MB:
their names stand for them here, and are looked up when a kernel is compiled.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from tinylm.kernels import machine_code
from tinylm.kernels.machine_code import compiler

FASTMATH = {"reassoc", "contract", "arcp", "nsz"}
"""`reassoc` turns SIMD on for sums. Never `True`: it would assume that there is no -inf, which masks use."""

FLAGS: dict[str, Any] = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy", "boundscheck": False}


class Later:
    """Something of Numba's that is imported when it is first used; `make` returns it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Any = None

    @property
    def made(self) -> Any:
        """The thing itself, as Numba knows it."""
        if self._made is None:
            compiler()  # teaches Numba what a `Later` is
            self._made = self._make()
        return self._made

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.made, name)


def _module(name: str) -> Any:
    return Later(lambda: importlib.import_module(name))


types = _module("numba.core.types")
cgutils = _module("numba.core.cgutils")
carray = Later(lambda: importlib.import_module("numba").carray)


class Function(Later):
    """A jitted function: callable, and known to Numba in other kernels."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.py_func = function
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self._callable: Any = None
        super().__init__(self._dispatcher)

    def _dispatcher(self) -> Any:
        return compiler().dispatcher(self.py_func, FLAGS)

    def __call__(self, *arguments: Any) -> Any:
        """The compiled function's result; compiles at the first call with arguments of these types."""
        if self._callable is None:
            self._callable = compiler().callable_dispatcher(self.py_func, FLAGS)
        return self._callable(*arguments)


class Plain(Function):
    """A function of numbers that kernels compile into themselves, and that is plain Python for Python."""

    def __call__(self, *arguments: Any) -> Any:
        """What Python makes of it."""
        return self.py_func(*arguments)


def njit(function: Callable[..., Any]) -> Function:
    """`numba.njit` with our flags and our cache; signatures are lazy."""
    return Function(function)


def plain(function: Callable[..., Any]) -> Plain:
    """Make a `Plain` of a function."""
    return Plain(function)


class Intrinsic(Later):
    """`numba.extending.intrinsic` of a function, by which the cache knows who closes over it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.py_func = function
        super().__init__(lambda: compiler().make_intrinsic(function))


def intrinsic(function: Callable[..., Any]) -> Any:
    """Make an `Intrinsic` of a function."""
    return Intrinsic(function)


_lock = threading.Lock()


class Operation:
    """A function `(operands, begin, end)` that the executor calls by address; compiled when first asked for.

    `operands` are the int64 of its row in the table: addresses, sizes, and floats as their bits. It does the
    units `begin <= unit < end` of the work.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__name__
        self.function = function
        self._address: int | None = None
        self._call: Any = None

    def compile(self) -> int:
        """Have the machine code, out of the cache or made now; returns where it begins."""
        with _lock:
            if self._address is None:
                self._address = machine_code.address_of(self.function)
        return self._address

    @property
    def address(self) -> int:
        """Where the machine code begins."""
        return self.compile()

    def __call__(self, operands: np.ndarray[Any, np.dtype[np.int64]], begin: int = 0, end: int = 1) -> None:
        """Do units `begin` to `end` in this thread, without the GIL."""
        self.callable(operands.ctypes.data, begin, end)

    @property
    def callable(self) -> Callable[[int, int, int], None]:
        """The same, of the operands' address."""
        if self._call is None:
            kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
            self._call = kind(self.address)
        return self._call  # type: ignore[no-any-return]


def operation(function: Callable[..., Any]) -> Operation:
    """Make an `Operation` of a function."""
    return Operation(function)
