"""Floats of 4 and of 2 bytes: how a number of the cache becomes float32 and back.

A number's kind is the type of a sample that stands first among the arguments: float32 is itself, uint16 holds the
bits of a bfloat16, int16 those of a float16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from tinylm.kernels.jit import intrinsic, types
from tinylm.kernels.simd import FLOAT, INT16, INT32, INT64, pointer
from tinylm.kernels.target import target
from tinylm.kernels.tile import WIDTH
from tinylm.kernels.vectors import at, loop

FLOAT32, BFLOAT16, FLOAT16 = np.float32(0), np.uint16(0), np.int16(0)
"""Samples of each kind."""

HALF = ir.HalfType()
_TRIPLE, _, _FEATURES = target()
HALF_IN_HARDWARE = _TRIPLE.startswith(("aarch64", "arm64")) or "+f16c" in _FEATURES.split(",")
"""Whether this CPU converts float16; LLVM would call a function that is not there."""


def narrow_reference(like, numbers):
    """float32 rounded to nearest, ties to even, as numbers such as `like`; NaN stays NaN."""
    if like.dtype == np.float32:
        return np.ascontiguousarray(numbers, np.float32)
    if like.dtype == np.int16:
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(numbers, np.float16).view(np.int16)
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + (np.uint32(0x7FFF) + odd)) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(numbers), np.uint16(0x7FC0), rounded)


def widen_reference(like, stored):
    """Numbers such as `like` as float32 of the same values."""
    if like.dtype == np.uint16:
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return (
        stored.astype(np.float32) if like.dtype == np.float32 else stored.view(np.float16).astype(np.float32)
    )


def bytes_of(like: Any) -> int:
    """Bytes of a number of this Numba type."""
    return 4 if like == types.float32 else 2


def load_wide(builder: ir.IRBuilder, address: ir.Value, like: Any, width: int) -> ir.Value:
    """`width` numbers at an address as a register of float32."""
    floats, integers = ir.VectorType(FLOAT, width), ir.VectorType(INT32, width)
    if like == types.float32:
        return builder.load(pointer(builder, address, floats), align=4)
    if like == types.int16 and HALF_IN_HARDWARE:
        return builder.fpext(
            builder.load(pointer(builder, address, ir.VectorType(HALF, width)), align=2), floats
        )
    bits = builder.zext(
        builder.load(pointer(builder, address, ir.VectorType(INT16, width)), align=2), integers
    )

    def number(value: int) -> ir.Constant:
        return ir.Constant(integers, [value] * width)

    if like == types.uint16:
        return builder.bitcast(builder.shl(bits, number(16)), floats)
    # Exponent and mantissa in their places, then times 2^112 for the other bias, which heeds small numbers too;
    # the largest exponent, of infinity and NaN, becomes float32's.
    places = builder.shl(builder.and_(bits, number(0x7FFF)), number(13))
    scaled = builder.fmul(builder.bitcast(places, floats), ir.Constant(floats, [2.0**112] * width))
    no_number = builder.icmp_unsigned(">=", places, number(0x7C00 << 13))
    values = builder.bitcast(scaled, integers)
    values = builder.select(no_number, builder.or_(values, number(0x7F800000)), values)
    return builder.bitcast(
        builder.or_(values, builder.shl(builder.and_(bits, number(0x8000)), number(16))), floats
    )


def _to_half(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    """A float32 as the bits of a float16, by integers."""
    bits = builder.bitcast(number, INT32)
    sign = builder.lshr(builder.and_(bits, INT32(-0x80000000)), INT32(16))
    size = builder.and_(bits, INT32(0x7FFFFFFF))
    # normal: the bias of the exponent, and rounding to even at the 13 bits that go
    odd = builder.and_(builder.lshr(size, INT32(13)), INT32(1))
    normal = builder.lshr(builder.add(size, builder.add(odd, INT32(0xFFF - (112 << 23)))), INT32(13))
    # below 2^-14: adding 0.5 leaves the bits in the last places, rounded by the processor
    half = builder.bitcast(builder.fadd(builder.bitcast(size, FLOAT), ir.Constant(FLOAT, 0.5)), INT32)
    small = builder.sub(half, INT32(0x3F000000))
    found = builder.select(builder.icmp_signed("<", size, INT32(0x38800000)), small, normal)
    found = builder.select(builder.icmp_signed(">=", size, INT32(0x477FF000)), INT32(0x7C00), found)
    found = builder.select(builder.icmp_signed(">", size, INT32(0x7F800000)), INT32(0x7E00), found)
    return builder.trunc(builder.or_(found, sign), INT16)


def _narrow(builder: ir.IRBuilder, number: ir.Value, like: Any) -> ir.Value:
    """A float32 as it is stored."""
    if like == types.float32:
        return number
    if like == types.int16:
        return (
            builder.bitcast(builder.fptrunc(number, HALF), INT16)
            if HALF_IN_HARDWARE
            else _to_half(builder, number)
        )
    bits = builder.bitcast(number, INT32)
    odd = builder.and_(builder.lshr(bits, INT32(16)), INT32(1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, INT32(0x7FFF))), INT32(16))
    chosen = builder.select(builder.fcmp_unordered("uno", number, number), INT32(0x7FC0), rounded)
    return builder.trunc(chosen, INT16)


@intrinsic
def size_of(typingctx: Any, like: Any) -> Any:
    """Bytes of a number."""
    size = bytes_of(like)
    return types.int64(like), lambda context, builder, signature, arguments: INT64(size)


@intrinsic
def narrow_at(typingctx: Any, like: Any, number: Any, address: Any) -> Any:
    """Store a float32 as a number such as `like` at an address: `narrow_reference`."""
    size = bytes_of(like)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        stored = _narrow(builder, arguments[1], like)
        builder.store(stored, pointer(builder, arguments[2], stored.type), align=size)
        return context.get_dummy_value()

    return types.void(like, types.float32, types.int64), generate


@intrinsic
def widen_to(typingctx: Any, like: Any, source: Any, wide: Any, count: Any) -> Any:
    """`count` numbers such as `like` at `source` as float32 to `wide`, by addresses."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, source, wide, count = arguments

        def some(width: int) -> Callable[[Any, list[Any]], list[Any]]:
            def body(index: Any, state: list[Any]) -> list[Any]:
                numbers = load_wide(builder, at(builder, source, (index, bytes_of(like))), like, width)
                builder.store(numbers, pointer(builder, at(builder, wide, (index, 4)), numbers.type), align=4)
                return state

            return body

        index, _ = loop(builder, INT64(0), count, WIDTH, [], some(WIDTH))
        loop(builder, index, count, 1, [], some(1))
        return context.get_dummy_value()

    return types.void(like, types.int64, types.int64, types.int64), generate
