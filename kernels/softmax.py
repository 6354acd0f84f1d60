"""The softmax of attention: a running maximum and sum for every query, block after block.

Written for vector registers, as `tile.py`: of many queries (`softmax_block`) the scores of one position lie side by
side, a lane a query; of few (`softmax_row`), those of one query, a lane a position.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from tinylm.kernels.exponential import Vectors
from tinylm.kernels.jit import cgutils, intrinsic, njit, types
from tinylm.kernels.simd import FLOAT, INT32, INT64, pointer
from tinylm.kernels.tile import LANES, WIDTH
from tinylm.kernels.tile_attention import BLOCK
from tinylm.kernels.vectors import at, load, loop, spread

LOWEST = np.float32(-1e30)
"""The score of what is hidden. Not -inf: two of them have a difference."""


def softmax_block_reference(scores, begin, last, highest, total):
    """Scores (rows, lanes) of the positions from `begin` on -> weights, new maxima and sums, shrink factors.

    The weights are exp(score - new maximum), those beyond the `last` position of a lane next to nothing; what
    came before has to shrink by exp(old maximum - new maximum). `last`, `highest`, `total` are (lanes,).
    """
    hidden = begin + np.arange(len(scores))[:, None] > last
    scores = np.where(hidden, LOWEST, scores)
    new = np.maximum(highest, scores.max(axis=0))
    weights, shrink = np.exp(scores - new), np.exp(highest - new)
    return weights, new, total * shrink + weights.sum(axis=0), shrink


@intrinsic
def _softmax_lanes(
    typingctx: Any,
    scores: Any,
    begin: Any,
    rows: Any,
    whole: Any,
    last: Any,
    highest: Any,
    total: Any,
    shrink: Any,
) -> Any:
    """`softmax_block_reference` in place, by addresses, with LANES lanes; `whole`: whether nothing is hidden."""
    parts = range(LANES // WIDTH)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, begin, rows, whole, last, highest, total, shrink = arguments
        vectors = Vectors(builder, WIDTH)

        def registers(address: Any, of: Any = vectors.floats) -> list[Any]:
            return [load(builder, at(builder, address, (4 * WIDTH, part)), of) for part in parts]

        def store(values: list[Any], address: Any) -> None:
            for part, value in enumerate(values):
                place = at(builder, address, (4 * WIDTH, part))
                builder.store(value, pointer(builder, place, vectors.floats), align=4)

        old, seen = registers(highest), registers(last, vectors.integers)

        def emit(masked: bool) -> None:
            def visible(row: Any) -> list[Any]:
                found = registers(at(builder, scores, (4 * LANES, row)))
                if not masked:
                    return found
                position = spread(builder, builder.trunc(builder.add(begin, row), INT32), vectors.integers)
                return [
                    builder.select(builder.icmp_signed("<=", position, limit), score, vectors.number(LOWEST))
                    for score, limit in zip(found, seen, strict=True)
                ]

            def compare(row: Any, state: list[Any]) -> list[Any]:
                return [vectors.larger(one, score) for one, score in zip(state, visible(row), strict=True)]

            _, new = loop(builder, INT64(0), rows, 1, old, compare)
            factors = [vectors.exp(builder.fsub(one, two)) for one, two in zip(old, new, strict=True)]
            sums = [builder.fmul(one, two) for one, two in zip(registers(total), factors, strict=True)]

            def weigh(row: Any, state: list[Any]) -> list[Any]:
                pairs = zip(visible(row), new, strict=True)
                weights = [vectors.exp(builder.fsub(score, one)) for score, one in pairs]
                store(weights, at(builder, scores, (4 * LANES, row)))
                return [builder.fadd(one, two) for one, two in zip(state, weights, strict=True)]

            store(loop(builder, INT64(0), rows, 1, sums, weigh)[1], total)
            store(new, highest)
            store(factors, shrink)

        with builder.if_else(builder.icmp_signed("!=", whole, INT64(0))) as (then, otherwise):
            with then:
                emit(masked=False)
            with otherwise:
                emit(masked=True)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), generate


@njit
def softmax_block(scores, begin, rows, last, highest, total, shrink):
    """`softmax_block_reference` in place: scores (rows * LANES,), last int32, the others float32 (LANES,)."""
    addresses = last.ctypes.data, highest.ctypes.data, total.ctypes.data, shrink.ctypes.data
    seen_by_all = last[0]
    for lane in range(LANES):
        seen_by_all = min(seen_by_all, last[lane])
    _softmax_lanes(scores.ctypes.data, begin, rows, np.int64(begin + rows - 1 <= seen_by_all), *addresses)


@intrinsic
def softmax_row(typingctx: Any, scores: Any, visible: Any, highest: Any, total: Any, shrink: Any) -> Any:
    """`softmax_block_reference` of one query whose scores (BLOCK,) lie side by side, by addresses, in place.

    The first `visible` of them count.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, visible, highest, total, shrink = arguments
        vectors = Vectors(builder, WIDTH)
        counted = ir.Constant(vectors.integers, list(range(WIDTH)))
        limit = spread(builder, builder.trunc(visible, INT32), vectors.integers)

        def place(index: Any) -> Any:
            return pointer(builder, builder.add(scores, builder.mul(index, INT64(4))), vectors.floats)

        def reduce(name: str, start: list[Any], value: Any) -> Any:
            kind = ir.FunctionType(FLOAT, [one.type for one in start] + [vectors.floats])
            function = cgutils.get_or_insert_function(
                builder.module, kind, f"llvm.vector.reduce.{name}.v{WIDTH}f32"
            )
            return builder.call(function, [*start, value], fastmath=("reassoc",))

        def number(address: Any) -> Any:
            return builder.load(pointer(builder, address, FLOAT), align=4)

        def mask_and_compare(index: Any, state: list[Any]) -> list[Any]:
            position = builder.add(counted, spread(builder, builder.trunc(index, INT32), vectors.integers))
            seen = builder.icmp_signed("<", position, limit)
            score = builder.select(seen, builder.load(place(index), align=4), vectors.number(LOWEST))
            builder.store(score, place(index), align=4)
            return [vectors.larger(state[0], score)]

        old = number(highest)
        _, (found,) = loop(
            builder, INT64(0), INT64(BLOCK), WIDTH, [spread(builder, old, vectors.floats)], mask_and_compare
        )
        new = spread(builder, reduce("fmax", [], found), vectors.floats)

        def weigh(index: Any, state: list[Any]) -> list[Any]:
            weight = vectors.exp(builder.fsub(builder.load(place(index), align=4), new))
            builder.store(weight, place(index), align=4)
            return [builder.fadd(state[0], weight)]

        _, (sums,) = loop(builder, INT64(0), INT64(BLOCK), WIDTH, [vectors.number(0)], weigh)
        factor = vectors.exp(builder.fsub(spread(builder, old, vectors.floats), new))
        first = builder.extract_element(factor, INT32(0))
        added = reduce("fadd", [ir.Constant(FLOAT, 0.0)], sums)
        builder.store(builder.fadd(builder.fmul(number(total), first), added), pointer(builder, total, FLOAT))
        builder.store(builder.extract_element(new, INT32(0)), pointer(builder, highest, FLOAT))
        builder.store(first, pointer(builder, shrink, FLOAT))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate
