"""Rotating groups of 64 numbers before they are rounded to int8: an outlier is spread over its whole group.

A group's scale comes from its largest number, so one that is ten times the others costs them three bits. The
Hadamard matrix, which is its own inverse when divided by 8, mixes the 64 in equal parts: `x @ H` has no such
outliers, and `(x @ H) @ (w @ H).T = x @ w.T`. Source: Ashkboos et al. 2024, QuaRot, arXiv:2404.00456; there over
the whole width, here within a group, where it takes 6 additions a number and fits any width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from tinylm.kernels.dot import DOT
from tinylm.kernels.jit import cgutils, intrinsic, types
from tinylm.kernels.simd import FLOAT, INT8, INT32
from tinylm.kernels.tile import WIDTH
from tinylm.kernels.vectors import at, load, multiply_add, spread

GROUP = 64
"""Numbers that are rotated together, and that share a scale."""

VECTOR = ir.VectorType(FLOAT, WIDTH)
INTEGERS = ir.VectorType(INT32, WIDTH)
PARTS = GROUP // WIDTH


def hadamard() -> Any:
    """The rotation (64, 64): H[i, j] = (-1)^(ones in i & j) / 8."""
    ones = [[(i & j).bit_count() for j in range(GROUP)] for i in range(GROUP)]
    return (np.where(np.array(ones) % 2, -1, 1) / np.sqrt(GROUP)).astype(np.float32)


def rotate_reference(x):
    """`(..., K) -> (..., K)`: each whole group of 64 times the Hadamard matrix; a rest stays as it is."""
    whole = x.shape[-1] // GROUP * GROUP
    groups = x[..., :whole].reshape(*x.shape[:-1], -1, GROUP) @ hadamard()
    return np.concatenate([groups.reshape(*x.shape[:-1], whole), x[..., whole:]], axis=-1).astype(np.float32)


def _rotated(builder: ir.IRBuilder, source: ir.Value) -> list[ir.Value]:
    """The group at an address, rotated, in registers."""
    eighth = ir.Constant(VECTOR, [GROUP**-0.5] * WIDTH)
    held = [
        builder.fmul(load(builder, at(builder, source, (4 * WIDTH, i)), VECTOR), eighth) for i in range(PARTS)
    ]
    stride = 1
    while stride < WIDTH:  # between the numbers of a register
        lanes = ir.Constant(ir.VectorType(INT32, WIDTH), [lane ^ stride for lane in range(WIDTH)])
        signs = ir.Constant(VECTOR, [-1.0 if lane & stride else 1.0 for lane in range(WIDTH)])
        held = [multiply_add(builder, one, signs, builder.shuffle_vector(one, one, lanes)) for one in held]
        stride *= 2
    step = 1
    while step < PARTS:  # between registers
        sums = {i: builder.fadd(held[i], held[i | step]) for i in range(PARTS) if not i & step}
        rests = {i | step: builder.fsub(held[i], held[i | step]) for i in range(PARTS) if not i & step}
        held = [{**sums, **rests}[i] for i in range(PARTS)]
        step *= 2
    return held


def _call(builder: ir.IRBuilder, name: str, returned: ir.Type, *operands: ir.Value) -> ir.Value:
    """An LLVM intrinsic."""
    kind = ir.FunctionType(returned, [one.type for one in operands])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), operands)


def _keep(builder: ir.IRBuilder, held: list[ir.Value], address: ir.Value) -> None:
    """The group that is in registers to an address."""
    for i, one in enumerate(held):
        place = at(builder, address, (4 * WIDTH, i))
        builder.store(one, builder.inttoptr(place, VECTOR.as_pointer()), align=4)


def _largest(builder: ir.IRBuilder, held: list[ir.Value]) -> ir.Value:
    """The largest absolute value of a group; NaN where there is one."""
    unsigned = ir.Constant(INTEGERS, [0x7FFFFFFF] * WIDTH)
    sizes = [builder.and_(builder.bitcast(one, INTEGERS), unsigned) for one in held]
    while len(sizes) > 1:
        sizes = [
            builder.select(builder.icmp_signed(">", one, two), one, two)
            for one, two in zip(sizes[::2], sizes[1::2], strict=True)
        ]
    return builder.bitcast(_call(builder, f"llvm.vector.reduce.smax.v{WIDTH}i32", INT32, sizes[0]), FLOAT)


def _round(builder: ir.IRBuilder, numbers: ir.Value, factor: ir.Value, address: ir.Value) -> ir.Value:
    """A register of numbers times a factor, to nearest, ties to even, as int8 to an address; returns the integers."""
    rounded = _call(builder, f"llvm.rint.v{WIDTH}f32", VECTOR, builder.fmul(numbers, factor))
    whole = builder.fptosi(rounded, INTEGERS)
    bytes_of = ir.VectorType(INT8, WIDTH)
    builder.store(builder.trunc(whole, bytes_of), builder.inttoptr(address, bytes_of.as_pointer()), align=1)
    return whole


@intrinsic
def rotate(typingctx: Any, source: Any, target: Any) -> Any:
    """The group of 64 float32 at an address, rotated, to another or the same address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _keep(builder, _rotated(builder, arguments[0]), arguments[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def rotate_and_round(typingctx: Any, source: Any, numbers: Any, scale: Any, begin: Any) -> Any:
    """The group of 64 float32 at an address, rotated and rounded: 64 int8, their scale, and int32 what their
    products with weights begin with, -DOT.offset times their sum.

    The bits of floats without their sign are in the order of their sizes, NaN above all: the scale of a group
    with a NaN is NaN.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, numbers, scale_address, begin_address = arguments
        held = _rotated(builder, source)
        scale = builder.fdiv(_largest(builder, held), ir.Constant(FLOAT, 127.0))
        is_some = builder.fcmp_ordered(">", scale, ir.Constant(FLOAT, 0.0))
        inverse = builder.select(
            is_some, builder.fdiv(ir.Constant(FLOAT, 1.0), scale), ir.Constant(FLOAT, 0.0)
        )
        factor = spread(builder, inverse, VECTOR)
        total = ir.Constant(INTEGERS, [0] * WIDTH)
        for i, one in enumerate(held):
            whole = _round(builder, one, factor, at(builder, numbers, (WIDTH, i)))
            total = builder.add(total, whole)
        sum_of = _call(builder, f"llvm.vector.reduce.add.v{WIDTH}i32", INT32, total)
        begin = builder.mul(sum_of, INT32(-DOT.offset))
        builder.store(scale, builder.inttoptr(scale_address, FLOAT.as_pointer()), align=4)
        builder.store(begin, builder.inttoptr(begin_address, INT32.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@intrinsic
def largest_of_rotated(typingctx: Any, source: Any, target: Any) -> Any:
    """`rotate`, and the largest absolute value of the result, NaN where there is one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held = _rotated(builder, arguments[0])
        _keep(builder, held, arguments[1])
        return _largest(builder, held)

    return types.float32(types.int64, types.int64), generate


@intrinsic
def round_group(typingctx: Any, source: Any, factor: Any, target: Any) -> Any:
    """64 float32 at an address times a factor, to nearest, ties to even, as int8 to another."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, factor, target = arguments
        factors = spread(builder, factor, VECTOR)
        for i in range(PARTS):
            numbers = load(builder, at(builder, source, (4 * WIDTH, i)), VECTOR)
            _round(builder, numbers, factors, at(builder, target, (WIDTH, i)))
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64), generate
