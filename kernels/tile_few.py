"""A row of weights times one token or a few: read once, in the order of memory, at its speed.

The tile that many tokens have would read a dozen rows side by side, which takes twice the time that one takes.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from llvmlite import ir

from tinylm.kernels.jit import intrinsic, types
from tinylm.kernels.narrow_floats import bytes_of, load_wide
from tinylm.kernels.simd import CACHE_LINE, FLOAT, INT32, INT64, emit_prefetch, pointer
from tinylm.kernels.streams import emit_ahead
from tinylm.kernels.tile import WIDTH
from tinylm.kernels.vectors import at, load, loop, multiply_add, shuffle

SUMS = 8
"""Sums that grow side by side: with fewer a multiplication would wait for the one before."""

AHEAD = 2048
"""Bytes by which the weights of several tokens are asked for ahead: eight loads of tokens for each of theirs leave the
processor no eye for what comes."""


def totals(builder: ir.IRBuilder, vectors: list[ir.Value]) -> list[ir.Value]:
    """The sum of the lanes of each vector; the vectors are as many as a power of two."""
    lanes = vectors[0].type.count  # of each sum, in groups that stand one after the other
    while lanes > 1:
        pairs = list(zip(vectors[::2], vectors[1::2], strict=False)) or [(vectors[0], vectors[0])]
        places = range(min(2, len(vectors)) * vectors[0].type.count)
        halves = [[i for i in places if i % lanes // (lanes // 2) == half] for half in range(2)]
        vectors = [builder.fadd(*(shuffle(builder, x, y, half) for half in halves)) for x, y in pairs]
        lanes //= 2
    return [builder.extract_element(one, INT32(i)) for one in vectors for i in range(one.type.count)]


def _ask(builder: ir.IRBuilder, address: ir.Value, tokens: int) -> None:
    """Ask for weights that come after those at an address."""
    if tokens > 1:
        emit_prefetch(builder, builder.add(address, INT64(AHEAD)))
    else:
        emit_ahead(builder, address)


def _make(tokens: int) -> Any:
    """The products of so many tokens, as an intrinsic."""
    chains = SUMS // tokens

    @intrinsic
    def dots(
        typingctx: Any,
        like: Any,
        weights: Any,
        K: Any,
        x: Any,
        stride: Any,
        count: Any,
        out: Any,
        out_stride: Any,
    ) -> Any:
        size = bytes_of(like)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, weights, K, x, stride, count, out, out_stride = arguments
            last = builder.sub(count, INT64(1))
            numbers = [
                builder.select(builder.icmp_signed("<", INT64(i), last), INT64(i), last)
                for i in range(tokens)
            ]
            rows = [at(builder, x, (stride, number)) for number in numbers]

            def some(width: int, steps: int) -> Any:
                def body(k: Any, sums: list[Any]) -> list[Any]:
                    for step in range(steps):
                        here = builder.add(k, INT64(step * width))
                        place = at(builder, weights, (here, size))
                        if width > 1 and step * width * size % CACHE_LINE == 0:
                            _ask(builder, place, tokens)
                        found = load_wide(builder, place, like, width)
                        for i, row in enumerate(rows):
                            factor = load(builder, at(builder, row, (here, 4)), found.type)
                            chain = step * tokens + i
                            sums[chain] = multiply_add(builder, found, factor, sums[chain])
                    return sums

                return body

            zeros = [ir.Constant(ir.VectorType(FLOAT, WIDTH), [0.0] * WIDTH)] * SUMS
            k, sums = loop(builder, INT64(0), K, chains * WIDTH, zeros, some(WIDTH, chains))
            sums = [reduce(builder.fadd, sums[i::tokens]) for i in range(tokens)]
            k, sums = loop(builder, k, K, WIDTH, sums, some(WIDTH, 1))
            one = ir.VectorType(FLOAT, 1)
            ends = [builder.bitcast(total, one) for total in totals(builder, sums)]
            _, ends = loop(builder, k, K, 1, ends, some(1, 1))
            for number, end in zip(numbers, ends, strict=True):
                builder.store(end, pointer(builder, at(builder, out, (out_stride, number)), one), align=4)
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 7), generate

    return dots


dots_8, dots_4, dots_1 = _make(8), _make(4), _make(1)
"""`dots_8(like, weights, K, x, stride, count, out, stride of out)`: a row (K,) of weights such as `like`, by address,
times `count` tokens, 1 to 8, at a stride in bytes, to as many places at another."""
