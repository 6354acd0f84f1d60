"""The register tiles of attention for few queries: keys and values are read row by row, as memory likes it.

Up to QUERIES queries meet each row at once; several rows side by side would save work and cost more in reading.
Registers run along the head; a head that does not fill them is padded with zeros on the query's side, so rows
are read a little beyond their end.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tinylm.kernels.jit import cgutils, intrinsic, types
from tinylm.kernels.simd import FLOAT, INT64, emit_prefetch, pointer
from tinylm.kernels.tile import WIDTH
from tinylm.kernels.vectors import at, load, loop, multiply_add, spread

QUERIES = 4

CHUNK = {16: 64, 8: 16, 4: 16}[WIDTH]
"""Numbers of a head whose weighted sums are kept in registers at a time; heads are padded to a multiple."""

FLOATS = ir.VectorType(FLOAT, WIDTH)


@intrinsic
def score_rows(
    typingctx: Any, queries: Any, keys: Any, key_stride: Any, rows: Any, size: Any, scores: Any, ahead: Any
) -> Any:
    """`(QUERIES, size), (rows, size) -> (rows, QUERIES)`, by addresses; the stride is in bytes.

    `size` is a multiple of CHUNK. The rows at `ahead`, of the same stride, are fetched meanwhile: the values that
    come next.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        queries, keys, key_stride, rows, size, scores, ahead = arguments
        kind = ir.FunctionType(FLOAT, [FLOAT, FLOATS])
        add_up = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{WIDTH}f32")

        def one_row(row: Any, state: list[Any]) -> list[Any]:
            here, following = at(builder, keys, (key_stride, row)), at(builder, ahead, (key_stride, row))

            def columns(column: Any, sums: list[Any]) -> list[Any]:
                emit_prefetch(builder, at(builder, following, (column, 4)))
                key = load(builder, at(builder, here, (column, 4)), FLOATS)
                left = [at(builder, queries, (column, 4), (size, 4 * query)) for query in range(QUERIES)]
                pairs = zip(left, sums, strict=True)
                return [multiply_add(builder, load(builder, one, FLOATS), key, total) for one, total in pairs]

            zeros = [ir.Constant(FLOATS, [0.0] * WIDTH)] * QUERIES
            _, sums = loop(builder, INT64(0), size, WIDTH, zeros, columns)
            for query, one in enumerate(sums):
                total = builder.call(add_up, [ir.Constant(FLOAT, 0.0), one], fastmath=("reassoc",))
                place = at(builder, scores, (row, 4 * QUERIES), (4, query))
                builder.store(total, pointer(builder, place, FLOAT))
            return state

        loop(builder, INT64(0), rows, 1, [], one_row)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate


@intrinsic
def weigh_rows(
    typingctx: Any, weights: Any, values: Any, value_stride: Any, rows: Any, size: Any, shrink: Any, sums: Any
) -> Any:
    """`(rows, QUERIES), (rows, size) -> (QUERIES, size)`: sums * shrink (QUERIES,) + weights.T @ values, in place."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        weights, values, value_stride, rows, size, shrink, sums = arguments
        every = [(query, part) for query in range(QUERIES) for part in range(CHUNK // WIDTH)]

        def spread_at(address: Any) -> Any:
            return spread(builder, load(builder, address, FLOAT), FLOATS)

        def chunk(column: Any, state: list[Any]) -> list[Any]:
            places, held = [], []
            for query, part in every:
                address = at(builder, sums, (size, 4 * query), (column, 4), (4 * WIDTH, part))
                factor = spread_at(at(builder, shrink, (4, query)))
                places.append(pointer(builder, address, FLOATS))
                held.append(builder.fmul(load(builder, address, FLOATS), factor))

            def one_row(row: Any, totals: list[Any]) -> list[Any]:
                here = at(builder, values, (value_stride, row), (column, 4))
                value = [
                    load(builder, at(builder, here, (4 * WIDTH, part)), FLOATS)
                    for part in range(CHUNK // WIDTH)
                ]
                weight = [
                    spread_at(at(builder, weights, (row, 4 * QUERIES), (4, query)))
                    for query in range(QUERIES)
                ]
                return [
                    multiply_add(builder, weight[query], value[part], total)
                    for (query, part), total in zip(every, totals, strict=True)
                ]

            _, totals = loop(builder, INT64(0), rows, 1, held, one_row)
            for place, total in zip(places, totals, strict=True):
                builder.store(total, place, align=4)
            return state

        loop(builder, INT64(0), size, CHUNK, [], chunk)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate
