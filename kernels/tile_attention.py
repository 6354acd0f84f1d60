"""The register tiles of attention for few queries: keys and values are read once, in the order of memory.

Of a strip of positions the keys lie transposed, so that a register holds as many positions of one column and no
sum is ever added up across a register; the values lie row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from tinylm.kernels.jit import intrinsic, types
from tinylm.kernels.narrow_floats import bytes_of, load_wide
from tinylm.kernels.simd import FLOAT, INT64, pointer
from tinylm.kernels.tile import WIDTH
from tinylm.kernels.vectors import at, load, loop, multiply_add, spread

STRIP = 48
"""Positions whose keys lie side by side: a multiple of the rows of every tile."""

BLOCK = 2 * STRIP
"""Positions of a block of the cache, whose scores are held at a time."""

MOST = 4
"""Queries that a tile takes at most."""

POSITIONS = {16: 3, 8: 3, 4: 6}[WIDTH]
"""Registers of positions that meet each query: a strip, or as much of it as this CPU has registers for."""

COLUMNS = {16: 4, 8: 2, 4: 4}[WIDTH]
"""Registers of a head's columns whose weighted sums are kept at a time; what is left over goes in STEP."""

STEP = 16
"""Rows of values are padded to a multiple of this, on every CPU."""

FLOATS = ir.VectorType(FLOAT, WIDTH)


def _spread_at(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return spread(builder, load(builder, address, FLOAT), FLOATS)


def _sums(
    builder: ir.IRBuilder, numbers: list[ir.Value], parts: list[ir.Value], totals: list[ir.Value]
) -> list[ir.Value]:
    """The totals, query by query and part by part, with the products added."""
    pairs = [(number, part) for number in numbers for part in parts]
    return [multiply_add(builder, *pair, total) for pair, total in zip(pairs, totals, strict=True)]


def _make_score(queries: int) -> Any:
    """`score(like, queries, stride, keys, K, out)`: `(queries, K) @ (K, STRIP) -> (queries, STRIP)`, by addresses.

    The stride of the queries is in bytes, that of the result BLOCK numbers; the keys are numbers such as `like`.
    """

    @intrinsic
    def score(typingctx: Any, like: Any, left: Any, stride: Any, keys: Any, K: Any, out: Any) -> Any:
        size = bytes_of(like)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, left, stride, keys, K, out = arguments

            def some_positions(first: Any, state: list[Any]) -> list[Any]:
                def column(k: Any, sums: list[Any]) -> list[Any]:
                    row = at(builder, keys, (k, size * STRIP), (first, size))
                    places = [at(builder, row, (size * WIDTH, part)) for part in range(POSITIONS)]
                    parts = [load_wide(builder, place, like, WIDTH) for place in places]
                    places = [at(builder, left, (stride, query), (k, 4)) for query in range(queries)]
                    return _sums(builder, [_spread_at(builder, place) for place in places], parts, sums)

                zeros = [ir.Constant(FLOATS, [0.0] * WIDTH)] * (queries * POSITIONS)
                _, sums = loop(builder, INT64(0), K, 1, zeros, column)
                for i, total in enumerate(sums):
                    query, part = divmod(i, POSITIONS)
                    place = at(builder, out, (4 * BLOCK, query), (first, 4), (4 * WIDTH, part))
                    builder.store(total, pointer(builder, place, FLOATS), align=4)
                return state

            loop(builder, INT64(0), INT64(STRIP), POSITIONS * WIDTH, [], some_positions)
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 5), generate

    return score


def _make_weigh(queries: int) -> Any:
    """`weigh(like, weights, values, rows, size, shrink, sums)`: sums = sums * shrink + weights @ values, in place.

    By addresses: weights (queries, BLOCK), of which `rows` count; values (rows, size) such as `like`; shrink
    (queries,); sums (queries, size). `size` is a multiple of STEP.
    """

    @intrinsic
    def weigh(
        typingctx: Any, like: Any, weights: Any, values: Any, rows: Any, size: Any, shrink: Any, sums: Any
    ) -> Any:
        width = bytes_of(like)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, weights, values, rows, size, shrink, sums = arguments

            def columns(parts: int) -> Callable[[Any, list[Any]], list[Any]]:
                def some_columns(column: Any, state: list[Any]) -> list[Any]:
                    places, held = [], []
                    for query in range(queries):
                        factor = _spread_at(builder, at(builder, shrink, (4, query)))
                        for part in range(parts):
                            place = at(builder, sums, (size, 4 * query), (column, 4), (4 * WIDTH, part))
                            places.append(pointer(builder, place, FLOATS))
                            held.append(builder.fmul(load(builder, place, FLOATS), factor))

                    def one_row(row: Any, totals: list[Any]) -> list[Any]:
                        here = at(builder, values, (builder.add(builder.mul(row, size), column), width))
                        there = [at(builder, here, (width * WIDTH, part)) for part in range(parts)]
                        numbers = [
                            at(builder, weights, (4 * BLOCK, query), (row, 4)) for query in range(queries)
                        ]
                        return _sums(
                            builder,
                            [_spread_at(builder, place) for place in numbers],
                            [load_wide(builder, place, like, WIDTH) for place in there],
                            totals,
                        )

                    _, totals = loop(builder, INT64(0), rows, 1, held, one_row)
                    for place, total in zip(places, totals, strict=True):
                        builder.store(total, place, align=4)
                    return state

                return some_columns

            column, _ = loop(builder, INT64(0), size, COLUMNS * WIDTH, [], columns(COLUMNS))
            loop(builder, column, size, STEP, [], columns(STEP // WIDTH))
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 6), generate

    return weigh


score_1, score_2, score_3, score_4 = (_make_score(queries) for queries in range(1, MOST + 1))
weigh_1, weigh_2, weigh_3, weigh_4 = (_make_weigh(queries) for queries in range(1, MOST + 1))
