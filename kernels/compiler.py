"""What needs Numba: a jitted function with its cache, and the machine code of an operation.

Imported when something must be compiled, never before.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult, Flags, compile_extra
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.serialize import dumps
from numba.extending import intrinsic, typeof_impl

from tinylm.kernels.cache import entry, read, write
from tinylm.kernels.jit import FLAGS, Later
from tinylm.kernels.machine_code import announce
from tinylm.kernels.simd import INT8, INT64
from tinylm.kernels.vectors import loop, spread

OPERATION = types.void(types.CPointer(types.int64), types.int64, types.int64)


@typeof_impl.register(Later)
def _type_of_later(value: Later, _: Any) -> Any:
    return cpu_target.typing_context.resolve_value_type(value.made)


def make_intrinsic(function: Callable[..., Any]) -> Any:
    """`numba.extending.intrinsic`, known at once to a compilation that has begun."""
    made = intrinsic(function)
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    return made


class KernelCache(NullCache):  # type: ignore[misc]
    """Compiled functions on disk. What cannot be read or written is a miss.

    Takes the place of Numba's own cache, which raises on a damaged or unwritable file, and which looks at the
    file that defines a function and not at what it calls in others. Announces what it does not hold: the
    compilation happens between `load_overload` and `save_overload`.
    """

    _since = 0.0

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function of this signature, or None."""
        target_context.refresh()
        try:
            payload = read(entry(self._function, str(sig)))
            if payload is not None:
                return CompileResult._rebuild(target_context, *pickle.loads(payload))
        except Exception:  # whatever a damaged pickle leads to
            pass
        self._since = time.perf_counter()
        announce(self._function.__name__, 0.0)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function."""
        with suppress(Exception):  # what cannot be pickled is compiled again
            write(entry(self._function, str(sig)), dumps(data._reduce()))
        announce(self._function.__name__, time.perf_counter() - self._since)


def dispatcher(function: Callable[..., Any], flags: dict[str, Any]) -> Any:
    """`numba.njit` of a function for other kernels: Python cannot call it, so no way for that is compiled."""
    return numba.njit(**flags, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


def callable_dispatcher(function: Callable[..., Any], flags: dict[str, Any]) -> Any:
    """`numba.njit` of a function for Python, with our cache."""
    made = numba.njit(**flags, no_cfunc_wrapper=True)(function)
    made._cache = KernelCache(function)
    return made


def operation_module(function: Callable[..., Any]) -> Any:
    """The optimized LLVM module of an operation: `void name(int64*, int64, int64)` and what it calls.

    Numba's own wrapper for C would look at how the function ended, with Python's functions; ours does not, for
    a kernel raises nothing that anybody could hear.
    """
    flags = Flags()
    cpu_target.options.parse_as_flags(flags, FLAGS)
    flags.enable_pyobject = False
    flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.no_compile = True
    context = cpu_target.target_context
    context.refresh()
    with global_compiler_lock:
        compiled = compile_extra(
            cpu_target.typing_context, context, function, OPERATION.args, OPERATION.return_type, flags, {}
        )
        library, facts = compiled.library, compiled.fndesc
        module = context.create_module("entry")
        called = ir.Function(
            module, context.call_conv.get_function_type(facts.restype, facts.argtypes), facts.llvm_func_name
        )
        kind = ir.FunctionType(ir.VoidType(), [context.get_value_type(one) for one in facts.argtypes])
        made = ir.Function(module, kind, function.__name__)
        builder = ir.IRBuilder(made.append_basic_block("entry"))
        context.call_conv.call_function(builder, called, facts.restype, facts.argtypes, made.args)
        builder.ret_void()
        library.add_ir_module(module)
        library.finalize()
    return llvm.parse_assembly(str(library._final_module))


def strip(module: Any, name: str) -> Any:
    """The module with nothing but what the function of that name needs, and with all that it needs."""
    module.link_in(llvm.parse_assembly(str(own_runtime())))
    for part in (*module.functions, *module.global_variables):
        if not part.is_declaration and part.name not in (name, "memset", "memcpy"):
            part.linkage = llvm.Linkage.internal
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.add_dead_arg_elimination_pass()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(_machine(), llvm.create_pipeline_tuning_options()))
    return module


def own_runtime() -> ir.Module:
    """The few functions that LLVM and Numba expect of every process, so that a kernel calls none from outside."""
    module = ir.Module()
    address, integer = INT8.as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [address])
    # Called where an array that owns its memory goes out of use; a kernel has none.
    ir.IRBuilder(ir.Function(module, kind, "NRT_MemInfo_call_dtor").append_basic_block()).ret_void()

    def fill(name: str, operands: list[ir.Type], source: Callable[..., ir.Value]) -> None:
        function = ir.Function(module, ir.FunctionType(address, operands), name)
        builder = ir.IRBuilder(function.append_basic_block())
        target, what, size = function.args
        begin = INT64(0)
        for width in (16, 1):

            def store(at: ir.Value, state: list[Any], width: int = width) -> list[Any]:
                of = ir.VectorType(INT8, width)
                there = builder.bitcast(builder.gep(target, [at]), of.as_pointer())
                builder.store(source(builder, what, at, of), there, align=1)
                return state

            begin, _ = loop(builder, begin, size, width, [], store)
        builder.ret(target)

    def byte(builder: ir.IRBuilder, value: ir.Value, at: ir.Value, of: ir.VectorType) -> ir.Value:
        return spread(builder, builder.trunc(value, INT8), of)

    def copied(builder: ir.IRBuilder, address: ir.Value, at: ir.Value, of: ir.VectorType) -> ir.Value:
        return builder.load(builder.bitcast(builder.gep(address, [at]), of.as_pointer()), align=1)

    fill("memset", [address, integer, INT64], byte)
    fill("memcpy", [address, address, INT64], copied)
    return module


def _machine() -> Any:
    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    target = llvm.Target.from_triple(triple)
    return target.create_target_machine(cpu=name, features=features, opt=3, reloc="pic", codemodel="small")


def object_code(function: Callable[..., Any]) -> bytes:
    """An object file of this system that holds one operation, position independent."""
    module = strip(operation_module(function), function.__name__)
    return bytes(_machine().emit_object(module))
