"""What the register tiles are written with: loops, numbers in every lane, multiply and add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from tinylm.kernels.jit import cgutils
from tinylm.kernels.simd import INT32, INT64, pointer

Body = Callable[[ir.Value, list[Any]], list[Any]]


def loop(
    builder: ir.IRBuilder, begin: ir.Value, end: ir.Value, stride: int, state: list[ir.Value], body: Body
) -> tuple[ir.Value, list[ir.Value]]:
    """`state = body(index, state)` while whole strides fit: begin <= index, index + stride <= end.

    Returns the first index that was not done, and the state.
    """
    before, check = builder.block, builder.append_basic_block()
    inside, after = builder.append_basic_block(), builder.append_basic_block()
    builder.branch(check)
    builder.position_at_end(check)
    index = builder.phi(INT64)
    index.add_incoming(begin, before)
    held = [builder.phi(value.type) for value in state]
    for phi, value in zip(held, state, strict=True):
        phi.add_incoming(value, before)
    following = builder.add(index, INT64(stride))
    builder.cbranch(builder.icmp_signed("<=", following, end), inside, after)
    builder.position_at_end(inside)
    new = body(index, list(held))
    index.add_incoming(following, builder.block)
    for phi, value in zip(held, new, strict=True):
        phi.add_incoming(value, builder.block)
    builder.branch(check)
    builder.position_at_end(after)
    return index, held


def spread(builder: ir.IRBuilder, number: ir.Value, of: ir.VectorType) -> ir.Value:
    """A number in every lane of a vector."""
    undefined = ir.Constant(of, ir.Undefined)
    first = builder.insert_element(undefined, number, INT32(0))
    return builder.shuffle_vector(
        first, undefined, ir.Constant(ir.VectorType(INT32, of.count), [0] * of.count)
    )


def multiply_add(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """x * y + z of vectors of float32, rounded once."""
    kind = ir.FunctionType(z.type, [z.type] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{z.type.count}f32")
    return builder.call(function, [x, y, z])


def load(builder: ir.IRBuilder, address: ir.Value, of: ir.Type, align: int = 4) -> ir.Value:
    """What stands at an address."""
    return builder.load(pointer(builder, address, of), align=align)


def at(builder: ir.IRBuilder, base: ir.Value, *terms: tuple[ir.Value | int, ir.Value | int]) -> ir.Value:
    """base + the sum of stride * count."""
    for stride, count in terms:
        if count == 0:
            continue
        factors = [INT64(one) if isinstance(one, int) else one for one in (stride, count)]
        base = builder.add(base, builder.mul(*factors))
    return base


def opaque(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    """The same integer, of which LLVM knows nothing: it cannot derive one address from another.

    Where it does, each address of a tile waits for the one before it, a dozen additions in a row.
    """
    kind = ir.FunctionType(number.type, [number.type])
    return builder.asm(kind, "", "=r,0", [number], False)


def shuffle(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, places: list[int]) -> ir.Value:
    """Lanes of two vectors as a new one: those of y are numbered on after those of x."""
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(INT32, len(places)), places))


def transposed(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """As many vectors as each has lanes, a power of two: rows to columns, by halves (Eklundh 1972)."""
    rows, width = list(rows), len(rows)
    span = 1
    while span < width:
        for i in range(width):
            if i & span:
                continue
            pair = rows[i], rows[i + span]
            lower = [j if not j & span else width + j - span for j in range(width)]
            upper = [j + span if not j & span else width + j for j in range(width)]
            rows[i], rows[i + span] = shuffle(builder, *pair, lower), shuffle(builder, *pair, upper)
        span *= 2
    return rows
