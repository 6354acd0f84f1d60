"""From a function to the address of its machine code: out of the cache, or compiled and kept there.

The cache holds object files. On Linux they are linked and placed here (`linker`), which takes a millisecond;
elsewhere, or where the system refuses that, LLVM does it.
"""

from __future__ import annotations

import ctypes
import importlib
import mmap
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tinylm.kernels.cache import entry, read, write
from tinylm.kernels.linker import LinkError, OutsideError, link

Progress = Callable[[str, float], None]
"""Called as `progress(name, seconds)` when a kernel had to be compiled because no cache held it."""

_listeners: list[Progress] = []


def on_compile(listener: Progress) -> Callable[[], None]:
    """Tell `listener` of each kernel just before (seconds = 0) and after it is compiled; undo by the result."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def announce(name: str, seconds: float) -> None:
    """Tell the listeners."""
    for listener in list(_listeners):
        listener(name, seconds)


MATHEMATICS = {"fmaf", "rintf"}
"""Functions of C that LLVM calls for processors without such instructions (x86 before 2013); it finds them itself."""

_kept_alive: list[Any] = []
"""Mappings and engines that hold code: for as long as the process lives, since its addresses are passed around."""


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C takes effect at the end of the block, where this thread is the one that it interrupts."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda *interrupt: held.append(interrupt))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if held:
        handler(*held[0])


def compiler() -> Any:
    """The module that needs Numba. By its name, when it is needed: it is written with what it compiles.

    Numba that is interrupted while it is imported, a second, is of no use any more for as long as the process lives.
    """
    name = "tinylm.kernels.compiler"
    if name not in sys.modules:
        with _interrupts_held():
            importlib.import_module(name)
    return importlib.import_module(name)


def address_of(function: Callable[..., Any]) -> int:
    """Where the machine code of an operation begins."""
    path = entry(function, "operation")
    kept = read(path)
    if kept is not None:
        try:
            return _place(kept, function.__name__)
        except LinkError:  # whole, but no object file of ours
            pass
    started = time.perf_counter()
    announce(function.__name__, 0.0)
    made = compiler().object_code(function)
    write(path, made)
    announce(function.__name__, time.perf_counter() - started)
    return _place(made, function.__name__)


def _place(object_file: bytes, name: str) -> int:
    if sys.platform == "linux":
        try:
            return _place_here(object_file, name)
        except OSError:  # a system that lets no program make code; LLVM may know a way
            pass
        except OutsideError as error:
            if error.function not in MATHEMATICS:
                raise
    return _place_by_llvm(object_file, name)


def _place_here(object_file: bytes, name: str) -> int:
    """Link into memory that can then be run; never writable and executable at once."""
    memory = None

    def place(length: int) -> int:
        nonlocal memory
        memory = mmap.mmap(-1, length)
        return ctypes.addressof(ctypes.c_char.from_buffer(memory))

    code, address = link(object_file, name, place)
    assert memory is not None
    memory[:] = code
    system = ctypes.CDLL(None, use_errno=True)
    begin = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    if system.mprotect(begin, ctypes.c_size_t(len(code)), mmap.PROT_READ | mmap.PROT_EXEC):
        raise OSError(ctypes.get_errno(), "mprotect")
    _kept_alive.append(memory)
    return address


def _place_by_llvm(object_file: bytes, name: str) -> int:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    try:
        engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(object_file))
    except Exception as error:
        raise LinkError(f"not an object file: {error}") from error
    engine.finalize_object()
    _kept_alive.append(engine)
    address = int(engine.get_function_address(name))
    if not address:
        raise LinkError(f"no function {name}")
    return address
