"""The few things that Numba has no word for: memory addresses, atomics, calls by address, float bits."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tinylm.kernels.jit import cgutils, intrinsic, types

INT8 = ir.IntType(8)
INT16 = ir.IntType(16)
INT32 = ir.IntType(32)
INT64 = ir.IntType(64)
FLOAT = ir.FloatType()

CACHE_LINE = 64
"""Bytes that a processor fetches at a time, or half of them."""

GUARD = 256
"""Bytes that stay free around numbers that loops run over. Where some end closer to the next than a vector loop reaches
ahead, LLVM's check for overlaps chooses the scalar loop, which rounds otherwise: bits would hang on addresses."""


def pointer(builder: ir.IRBuilder, address: ir.Value, to: ir.Type) -> ir.Value:
    """The pointer of an address held in an int64."""
    return builder.inttoptr(address, to.as_pointer())


def widen(builder: ir.IRBuilder, number: ir.Value, number_type: Any) -> ir.Value:
    """A number of a weight matrix as float32: float32 itself, or the bits of a bfloat16 in a uint16.

    A bfloat16 is the upper half of the float32 of the same value.
    """
    if number_type == types.float32:
        return number
    if number_type == types.uint16:
        return builder.bitcast(builder.shl(builder.zext(number, INT32), INT32(16)), FLOAT)
    raise TypeError(f"no way to read {number_type} as float32")


def load_float32(builder: ir.IRBuilder, address: ir.Value, number_type: Any) -> ir.Value:
    """`widen` of the number at an address."""
    stored = FLOAT if number_type == types.float32 else INT16
    return widen(builder, builder.load(pointer(builder, address, stored)), number_type)


@intrinsic
def to_float32(typingctx: Any, number: Any) -> Any:
    """A number of a weight matrix, float32 or bfloat16 bits in a uint16, as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return widen(builder, arguments[0], number)

    return types.float32(number), generate


@intrinsic
def memory(typingctx: Any, address: Any) -> Any:
    """The pointer for `numba.carray` of an address held in an int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def atomic_add(typingctx: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address and return what it was: one step for all threads, acquire and release."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target = pointer(builder, arguments[0], INT64)
        return builder.atomic_rmw("add", target, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def atomic_or(typingctx: Any, address: Any, bits: Any) -> Any:
    """Set bits of the int64 at an address and return what it was: one step for all threads, acquire and release."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target = pointer(builder, arguments[0], INT64)
        return builder.atomic_rmw("or", target, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def atomic_load(typingctx: Any, address: Any) -> Any:
    """The int64 at an address; what was written before it was stored is then visible too."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(pointer(builder, arguments[0], INT64), "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def atomic_store(typingctx: Any, address: Any, value: Any) -> Any:
    """Store an int64 at an address after all that was written before it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], pointer(builder, arguments[0], INT64), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def call_operation(typingctx: Any, address: Any, operands: Any, begin: Any, end: Any) -> Any:
    """Call the `Operation` at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [INT64.as_pointer(), INT64, INT64])
        function = pointer(builder, arguments[0], kind)
        operands = pointer(builder, arguments[1], INT64)
        builder.call(function, [operands, arguments[2], arguments[3]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def call_system(typingctx: Any, address: Any, argument: Any) -> Any:
    """Call a C function of one 32-bit argument at an address, such as `usleep`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = pointer(builder, arguments[0], ir.FunctionType(INT32, [INT32]))
        builder.call(function, [builder.trunc(arguments[1], INT32)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def ask_system(typingctx: Any, address: Any, first: Any, second: Any, third: Any) -> Any:
    """The int that a C function at an address returns, of up to three whole numbers or addresses."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = pointer(builder, arguments[0], ir.FunctionType(INT32, [INT64] * 3))
        return builder.sext(builder.call(function, arguments[1:]), INT64)

    return types.int64(*[types.int64] * 4), generate


@intrinsic
def float_from_bits(typingctx: Any, bits: Any) -> Any:
    """The float32 whose bits are the low half of an int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.trunc(arguments[0], INT32), FLOAT)

    return types.float32(types.int64), generate


@intrinsic
def float_of_int32_bits(typingctx: Any, bits: Any) -> Any:
    """The float32 that has the bits of an int32; unlike a view of an array, it vectorises."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], FLOAT)

    return types.float32(types.int32), generate


@intrinsic
def float_bits(typingctx: Any, number: Any) -> Any:
    """The bits of a float32 as an int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], INT32)

    return types.int32(types.float32), generate


def emit_prefetch(builder: ir.IRBuilder, address: ir.Value, locality: int = 3) -> None:
    """Ask for the cache line at an address, which need not be valid, to be read soon.

    `locality`: 3 for the first cache, 2 for the second.
    """
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, INT32, INT32, INT32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    line = builder.inttoptr(address, byte)
    builder.call(function, [line, INT32(0), INT32(locality), INT32(1)])  # to read, data


@intrinsic
def nearest_int32(typingctx: Any, number: Any) -> Any:
    """A float32 rounded to the nearest integer, ties to even, as int32; it vectorises, as `np.rint` does not."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(FLOAT, [FLOAT])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.rint.f32")
        return builder.fptosi(builder.call(function, [arguments[0]]), INT32)

    return types.int32(types.float32), generate


@intrinsic
def keep(typingctx: Any, number: Any) -> Any:
    """Nothing, but LLVM believes that somebody wants this int64: what it is made of is read."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [INT64])
        builder.asm(kind, "", "r", arguments, True)
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """`emit_prefetch` of an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit_prefetch(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def scratch(typingctx: Any, size: Any) -> Any:
    """The address of `size` bytes that last until the function returns; they begin at a cache line.

    They stand on the thread's stack, which is a few hundred KB on some systems: ask for little.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        room = builder.alloca(INT8, arguments[0])
        room.align = 64
        return builder.ptrtoint(room, INT64)

    return types.int64(types.int64), generate


@intrinsic
def pause(typingctx: Any) -> Any:
    """Tell the processor that this thread only looks and looks again: it saves power, and leaves what a core has
    to the other thread on it.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        from tinylm.kernels import target

        triple = target.target()[0]
        if triple.startswith(("x86_64", "i686")):
            name, operands = "llvm.x86.sse2.pause", []
        elif triple.startswith(("aarch64", "arm64")):
            name, operands = "llvm.aarch64.hint", [INT32(1)]  # yield
        else:
            return context.get_dummy_value()
        kind = ir.FunctionType(ir.VoidType(), [INT32] * len(operands))
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), operands)
        return context.get_dummy_value()

    return types.void(), generate
