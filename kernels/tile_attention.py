"""The register tiles of attention for few queries: keys and values are read row by row, as memory likes it.

Up to QUERIES queries meet each row at once. Registers run along the head; a head that does not fill them is
padded with zeros on the query's side, so rows are read a little beyond their end.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tinylm.kernels.simd import FLOAT, INT32, INT64, emit_prefetch, pointer
from tinylm.kernels.tile import WIDTH

QUERIES = 4
POSITIONS = 1
"""Rows of keys that are scored together. Side by side is slower: memory likes one row after the other."""

CHUNK = {16: 64, 8: 16, 4: 16}[WIDTH]
"""Numbers of a head whose weighted sums are kept in registers at a time; heads are padded to a multiple."""

FLOATS = ir.VectorType(FLOAT, WIDTH)


def _fma(builder: ir.IRBuilder) -> ir.Function:
    kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
    return cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{WIDTH}f32")


def _at(builder: ir.IRBuilder, base: ir.Value, stride: ir.Value, count: int) -> ir.Value:
    return builder.add(base, builder.mul(stride, INT64(count))) if count else base


def _load(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.load(pointer(builder, address, FLOATS), align=4)


def _spread(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    undefined = ir.Constant(FLOATS, ir.Undefined)
    zeros = ir.Constant(ir.VectorType(INT32, WIDTH), [0] * WIDTH)
    return builder.shuffle_vector(builder.insert_element(undefined, number, INT32(0)), undefined, zeros)


def _loop(
    builder: ir.IRBuilder, end: ir.Value, stride: int, state: list[ir.Value], body: Any
) -> list[ir.Value]:
    """`state = body(index, state)` for index = 0, stride, ... below end."""
    before, check = builder.block, builder.append_basic_block()
    inside, after = builder.append_basic_block(), builder.append_basic_block()
    builder.branch(check)
    builder.position_at_end(check)
    index = builder.phi(INT64)
    index.add_incoming(INT64(0), before)
    held = [builder.phi(value.type) for value in state]
    for phi, value in zip(held, state, strict=True):
        phi.add_incoming(value, before)
    builder.cbranch(builder.icmp_signed("<", index, end), inside, after)
    builder.position_at_end(inside)
    new = body(index, list(held))
    index.add_incoming(builder.add(index, INT64(stride)), builder.block)
    for phi, value in zip(held, new, strict=True):
        phi.add_incoming(value, builder.block)
    builder.branch(check)
    builder.position_at_end(after)
    return held


@intrinsic  # type: ignore[untyped-decorator]
def score_rows(
    typingctx: Any, queries: Any, keys: Any, key_stride: Any, rows: Any, size: Any, scores: Any, ahead: Any
) -> Any:
    """`(QUERIES, size), (rows, size) -> (rows, QUERIES)`, by addresses; the stride is in bytes.

    `size` is a multiple of CHUNK; rows are done POSITIONS at a time, so some more than asked for may be. The
    rows at `ahead`, of the same stride, are fetched meanwhile: the values that come next.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        queries, keys, key_stride, rows, size, scores, ahead = arguments
        sum_type = ir.FunctionType(FLOAT, [FLOAT, FLOATS])
        add_up = cgutils.get_or_insert_function(
            builder.module, sum_type, f"llvm.vector.reduce.fadd.v{WIDTH}f32"
        )
        fma, query_bytes = _fma(builder), builder.mul(size, INT64(4))

        def some_rows(row: Any, state: list[Any]) -> list[Any]:
            first = builder.add(keys, builder.mul(row, key_stride))

            def columns(column: Any, sums: list[Any]) -> list[Any]:
                offset = builder.mul(column, INT64(4))
                emit_prefetch(builder, builder.add(builder.add(ahead, builder.mul(row, key_stride)), offset))
                left = [
                    _load(builder, builder.add(_at(builder, queries, query_bytes, q), offset))
                    for q in range(QUERIES)
                ]
                new: list[Any] = []
                for p in range(POSITIONS):
                    key = _load(builder, builder.add(_at(builder, first, key_stride, p), offset))
                    for q in range(QUERIES):
                        new.append(builder.call(fma, [left[q], key, sums[len(new)]]))
                return new

            zeros = [ir.Constant(FLOATS, [0.0] * WIDTH)] * (POSITIONS * QUERIES)
            sums = _loop(builder, size, WIDTH, zeros, columns)
            target = builder.add(scores, builder.mul(row, INT64(4 * QUERIES)))
            for i, one in enumerate(sums):
                total = builder.call(add_up, [ir.Constant(FLOAT, 0.0), one], fastmath=("reassoc",))
                builder.store(total, pointer(builder, builder.add(target, INT64(4 * i)), FLOAT))
            return state

        _loop(builder, rows, POSITIONS, [], some_rows)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate


@intrinsic  # type: ignore[untyped-decorator]
def weigh_rows(
    typingctx: Any, weights: Any, values: Any, value_stride: Any, rows: Any, size: Any, shrink: Any, sums: Any
) -> Any:
    """`(rows, QUERIES), (rows, size) -> (QUERIES, size)`: sums * shrink (QUERIES,) + weights.T @ values, in place."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        weights, values, value_stride, rows, size, shrink, sums = arguments
        fma, parts = _fma(builder), range(CHUNK // WIDTH)
        query_bytes = builder.mul(size, INT64(4))

        def chunk(column: Any, state: list[Any]) -> list[Any]:
            offset = builder.mul(column, INT64(4))
            places, held = [], []
            for q in range(QUERIES):
                factor = _spread(
                    builder, builder.load(pointer(builder, builder.add(shrink, INT64(4 * q)), FLOAT))
                )
                for part in parts:
                    address = builder.add(
                        _at(builder, sums, query_bytes, q), builder.add(offset, INT64(4 * WIDTH * part))
                    )
                    places.append(pointer(builder, address, FLOATS))
                    held.append(builder.fmul(builder.load(places[-1], align=4), factor))

            def one_row(row: Any, totals: list[Any]) -> list[Any]:
                here = builder.add(values, builder.add(builder.mul(row, value_stride), offset))
                value = [_load(builder, builder.add(here, INT64(4 * WIDTH * part))) for part in parts]
                new: list[Any] = []
                for q in range(QUERIES):
                    address = builder.add(
                        weights, builder.add(builder.mul(row, INT64(4 * QUERIES)), INT64(4 * q))
                    )
                    weight = _spread(builder, builder.load(pointer(builder, address, FLOAT)))
                    for part in parts:
                        new.append(builder.call(fma, [weight, value[part], totals[len(new)]]))
                return new

            for place, total in zip(places, _loop(builder, rows, 1, held, one_row), strict=True):
                builder.store(total, place, align=4)
            return state

        _loop(builder, size, CHUNK, [], chunk)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate
