"""Rows of numbers rounded to a byte a number: what meets int8 keys.

A packed row of `size` numbers: its bytes; the scale of each group of GROUP numbers, (G,) float32; the sum of each
group's bytes, (G,) int32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from tinylm.kernels.hadamard import GROUP
from tinylm.kernels.jit import cgutils, intrinsic, plain, types
from tinylm.kernels.simd import FLOAT, INT8, INT32, INT64, pointer
from tinylm.kernels.tile import WIDTH
from tinylm.kernels.vectors import at, load, loop, spread


@plain
def packed_bytes(size):
    """Bytes of a packed row; `size` is a multiple of 16."""
    return size + 8 * (-(-size // GROUP))


def pack_reference(numbers):
    """`(size,) -> (size,) int8, (G,) float32 scales`."""
    scales, rounded = [], []
    for begin in range(0, len(numbers), GROUP):
        group = np.asarray(numbers[begin : begin + GROUP], np.float32)
        scale = np.abs(group).max() / np.float32(127)
        rounded.append(np.rint(group / scale if scale > 0 else group).astype(np.int8))
        scales.append(scale)
    return np.concatenate(rounded), np.array(scales, np.float32)


@intrinsic
def pack_row(typingctx: Any, numbers: Any, packed: Any, size: Any) -> Any:
    """Numbers (size,) float32 to a packed row, both by address."""
    floats, integers, bytes_ = (ir.VectorType(kind, WIDTH) for kind in (FLOAT, INT32, INT8))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers, packed, size = arguments
        groups = builder.sdiv(builder.add(size, INT64(GROUP - 1)), INT64(GROUP))
        scales = builder.add(packed, size)
        sums = at(builder, scales, (groups, 4))

        def call(name: str, *values: ir.Value) -> ir.Value:
            kind = ir.FunctionType(values[0].type, [value.type for value in values])
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)

        def reduce(name: str, value: ir.Value, start: list[ir.Value], suffix: str) -> ir.Value:
            kind = ir.FunctionType(value.type.element, [*[one.type for one in start], value.type])
            name = f"llvm.vector.reduce.{name}.v{WIDTH}{suffix}"
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            return builder.call(function, [*start, value], fastmath=("reassoc",) if suffix == "f32" else ())

        def vector(kind: ir.VectorType, value: float) -> ir.Constant:
            return ir.Constant(kind, [value] * WIDTH)

        def number_at(index: Any) -> Any:
            return load(builder, at(builder, numbers, (index, 4)), floats)

        def group(begin: Any, state: list[Any]) -> list[Any]:
            number_of_group = builder.sdiv(begin, INT64(GROUP))
            following = builder.add(begin, INT64(GROUP))
            end = builder.select(builder.icmp_signed("<", following, size), following, size)

            def compare(index: Any, state: list[Any]) -> list[Any]:
                size = call(f"llvm.fabs.v{WIDTH}f32", number_at(index))
                largest = builder.select(builder.fcmp_ordered("<", state[0], size), size, state[0])
                # nothing, but for infinity and NaN, which must come through
                return [largest, builder.fadd(state[1], builder.fmul(number_at(index), vector(floats, 0.0)))]

            zero = vector(floats, 0.0)
            _, (largest, nothing) = loop(builder, begin, end, WIDTH, [zero, zero], compare)
            first = ir.Constant(FLOAT, 0.0)
            most = builder.fadd(reduce("fmax", largest, [], "f32"), reduce("fadd", nothing, [first], "f32"))
            scale = builder.fdiv(most, ir.Constant(FLOAT, 127.0))
            inverse = builder.fdiv(ir.Constant(FLOAT, 1.0), scale)
            inverse = builder.select(
                builder.fcmp_ordered(">", scale, ir.Constant(FLOAT, 1e-37)), inverse, first
            )
            factor = spread(builder, inverse, floats)

            def narrow(index: Any, state: list[Any]) -> list[Any]:
                rounded = call(f"llvm.rint.v{WIDTH}f32", builder.fmul(number_at(index), factor))
                number = builder.fptosi(rounded, integers)
                place = pointer(builder, builder.add(packed, index), bytes_)
                builder.store(builder.trunc(number, bytes_), place, align=1)
                return [builder.add(state[0], number)]

            _, (total,) = loop(builder, begin, end, WIDTH, [vector(integers, 0)], narrow)
            place = at(builder, scales, (number_of_group, 4))
            builder.store(scale, pointer(builder, place, FLOAT), align=4)
            place = at(builder, sums, (number_of_group, 4))
            builder.store(reduce("add", total, [], "i32"), pointer(builder, place, INT32), align=4)
            return state

        loop(builder, INT64(0), builder.mul(groups, INT64(GROUP)), GROUP, [], group)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate
