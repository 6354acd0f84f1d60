"""The matrix unit of Intel's server processors, AMX: 16 tokens x 16 rows x 64 bytes of columns by one instruction.

Its registers are tiles of up to 16 rows of 64 bytes, whose shapes a program configures. A left one holds tokens, row
by row; a right one holds a group of a block of weights as `tile_integers` has it, which is just what the unit wants.
Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from tinylm.kernels.dot import COLUMNS, ROWS
from tinylm.kernels.hadamard import GROUP
from tinylm.kernels.jit import carray, cgutils, intrinsic, njit, types
from tinylm.kernels.simd import FLOAT, INT8, INT16, INT32, INT64, memory, pointer
from tinylm.kernels.target import target
from tinylm.kernels.vectors import at, load, loop, multiply_add, spread

TOKENS = 16
"""Tokens of a tile."""

SUMS, LEFT, RIGHT, LAST_LEFT, LAST_RIGHT, FREE = range(6)
"""Tiles: sums, tokens and weights; and both of a last group that is not whole. From FREE on they are another's."""

ROOM = TOKENS * ROWS * 4
"""Bytes through which a tile of sums comes to the other registers."""

CONFIGURATION = 64
"""Bytes that tell the shapes of all tiles: 1, then from 16 on the bytes of a row (16 bits), from 48 on the rows."""

ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18
"""Linux, x86-64: a system call, what is asked of it, and for which state of the processor."""

LANES = ROWS
FLOATS, INTEGERS, SHORTS = (ir.VectorType(kind, LANES) for kind in (FLOAT, INT32, INT16))


def has_amx(triple: str, features: str) -> bool:
    """Whether a processor, in LLVM's words, multiplies tiles of int8 and of bfloat16."""
    needed = {"+amx-tile", "+amx-int8", "+amx-bf16", "+avx512f"}
    return triple.startswith("x86_64") and needed <= set(features.split(","))


@cache
def permitted() -> bool:
    """Whether this process may use tiles: there are some, and the system, asked for its leave, gives it."""
    triple, _, features = target()
    if sys.platform != "linux" or not has_amx(triple, features):
        return False
    call = ctypes.CDLL(None).syscall
    return bool(call(ARCH_PRCTL, REQUEST_PERMISSION, ctypes.c_long(TILE_DATA)) == 0)


def call_amx(builder: ir.IRBuilder, name: str, *arguments: ir.Value | int) -> None:
    """An instruction of the unit; whole numbers are tiles."""
    values = [INT8(one) if isinstance(one, int) else one for one in arguments]
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), values)


@intrinsic
def configure(typingctx: Any, shapes: Any) -> Any:
    """Give the tiles of this thread the shapes at an address, CONFIGURATION bytes, until `release`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        call_amx(builder, "ldtilecfg", pointer(builder, arguments[0], INT8))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def release(typingctx: Any) -> Any:
    """Give the tiles back: what is in none need not be kept when the system turns to another thread."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        call_amx(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


@njit
def clear_shapes(shapes):
    """Make a configuration at an address one of tiles without rows."""
    there = carray(memory(shapes), (CONFIGURATION,), np.uint8)
    there[:] = np.uint8(0)
    there[0] = np.uint8(1)


@njit
def give_shape(shapes, tile, rows, row_bytes):
    """Write the shape of a tile into a configuration at an address."""
    there = carray(memory(shapes), (CONFIGURATION,), np.uint8)
    there[48 + tile], there[16 + 2 * tile] = np.uint8(rows), np.uint8(row_bytes)


class _Products:
    """Writes the products of 16 packed tokens and a block of 16 rows; addresses, strides in bytes."""

    def __init__(self, builder: ir.IRBuilder, arguments: list[ir.Value]) -> None:
        self.builder = builder
        self.weights, self.x, self.stride, self.scales, self.x_scale, self.room = arguments

    def group(self, number: ir.Value, left: int, right: int, results: list[ir.Value]) -> list[ir.Value]:
        """The results, token by token, with a group's sums, scaled, added: in the order of `tile_integers`."""
        builder = self.builder
        tokens = pointer(builder, at(builder, self.x, (GROUP, number)), INT8)
        weights = pointer(builder, at(builder, self.weights, (GROUP * ROWS, number)), INT8)
        call_amx(builder, "tilezero", SUMS)
        call_amx(builder, "tileloadd64", left, tokens, self.stride)
        call_amx(builder, "tileloadd64", right, weights, INT64(COLUMNS * ROWS))
        call_amx(builder, "tdpbssd", SUMS, left, right)
        call_amx(builder, "tilestored64", SUMS, pointer(builder, self.room, INT8), INT64(4 * ROWS))
        bits = load(builder, at(builder, self.scales, (2 * ROWS, number)), SHORTS, 2)
        sixteen = ir.Constant(INTEGERS, [16] * LANES)
        scale = builder.bitcast(builder.shl(builder.zext(bits, INTEGERS), sixteen), FLOATS)
        new = []
        for token, result in enumerate(results):
            sums = load(builder, at(builder, self.room, (4 * ROWS, token)), INTEGERS, 64)
            place = at(builder, self.x, (self.stride, token), (4, number), (1, self.x_scale))
            factor = builder.fmul(scale, spread(builder, load(builder, place, FLOAT), FLOATS))
            new.append(multiply_add(builder, builder.sitofp(sums, FLOATS), factor, result))
        return new


def _emit(builder: ir.IRBuilder, arguments: Any, firsts: list[ir.Value]) -> None:
    """A tile whose results, token by token, begin with `firsts`."""
    groups, tail, *operands, out, out_stride = arguments
    products = _Products(builder, operands)

    def whole(number: Any, results: list[Any]) -> list[Any]:
        return products.group(number, LEFT, RIGHT, results)

    def last(number: Any, results: list[Any]) -> list[Any]:
        return products.group(groups, LAST_LEFT, LAST_RIGHT, results)

    _, results = loop(builder, INT64(0), groups, 1, firsts, whole)
    is_part = builder.zext(builder.icmp_signed(">", tail, INT64(0)), INT64)
    _, results = loop(builder, INT64(0), is_part, 1, results, last)
    for token, result in enumerate(results):
        place = at(builder, out, (out_stride, token))
        builder.store(result, pointer(builder, place, FLOATS), align=4)


@intrinsic
def tile_amx(
    typingctx: Any, groups: Any, tail: Any, weights: Any, x: Any, stride: Any, scales: Any, x_scale: Any,
    room: Any, out: Any, out_stride: Any,
) -> Any:  # fmt: skip
    """As a tile of `tile_integers.make_tile`: 16 packed tokens, one block of rows; `room`: ROOM bytes, by address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _emit(builder, arguments, [ir.Constant(FLOATS, [0.0] * LANES)] * TOKENS)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), generate


@intrinsic
def tile_amx_added(
    typingctx: Any, groups: Any, tail: Any, weights: Any, x: Any, stride: Any, scales: Any, x_scale: Any,
    room: Any, out: Any, out_stride: Any, added: Any,
) -> Any:  # fmt: skip
    """The same, plus a float32 for each row of the block, at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *arguments, added = arguments
        _emit(builder, arguments, [load(builder, added, FLOATS)] * TOKENS)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11), generate
