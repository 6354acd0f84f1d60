"""Rotary position embedding, half-split: number i of a head is rotated with number i + half.

The interleaved convention (i with i + 1) of the original code is not used by any checkpoint in Hugging Face
form. Only the first `2 * half` numbers of a head turn (`rotary_pct`, `partial_rotary_factor`); the rest pass.
One unit of work is one token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from tinylm.kernels.jit import intrinsic, njit, operation, types
from tinylm.kernels.operands import float32_2d, int64_1d
from tinylm.kernels.simd import FLOAT, INT64, pointer
from tinylm.kernels.tile import WIDTH
from tinylm.kernels.vectors import at, load, loop, multiply_add


def rope_reference(x, positions, table, head_dim):
    """`(T, H * Dh), (T,), (S, 2 * half) -> (T, H * Dh)` (Su et al. 2021, arXiv:2104.09864).

    A row of `table` holds the cosines and then the sines of a position.
    """
    half = table.shape[1] // 2
    heads = x.reshape(x.shape[0], -1, head_dim)
    cosine, sine = table[positions, None, :half], table[positions, None, half:]
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    turned = [first * cosine - second * sine, second * cosine + first * sine, rest]
    return np.concatenate(turned, axis=-1).reshape(x.shape)


@intrinsic
def turn_head(
    typingctx: Any, source: Any, cosines: Any, sines: Any, half: Any, size: Any, target: Any
) -> Any:
    """Turn the numbers i and i + half of a head of `size` numbers at an address, to another or the same; keep the rest.

    Written in registers: LLVM compared the addresses of four arrays for each head, which took longer than turning it.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, cosines, sines, half, size, target = arguments

        def some(width: int) -> Any:
            kind = ir.VectorType(FLOAT, width)

            def turn(i: Any, state: list[Any]) -> list[Any]:
                lower, upper = (at(builder, source, (i, 4), (4, part)) for part in (0, half))
                first, second = load(builder, lower, kind), load(builder, upper, kind)
                cosine, sine = (load(builder, at(builder, table, (i, 4)), kind) for table in (cosines, sines))
                less = builder.fneg(builder.fmul(second, sine))
                turned = multiply_add(builder, first, cosine, less)
                more = multiply_add(builder, second, cosine, builder.fmul(first, sine))
                for number, part in ((turned, 0), (more, half)):
                    place = at(builder, target, (i, 4), (4, part))
                    builder.store(number, pointer(builder, place, kind), align=4)
                return state

            return turn

        done, _ = loop(builder, INT64(0), half, WIDTH, [], some(WIDTH))
        loop(builder, done, half, 1, [], some(1))

        def keep(width: int) -> Any:
            kind = ir.VectorType(FLOAT, width)

            def copy(i: Any, state: list[Any]) -> list[Any]:
                here, there = (at(builder, one, (i, 4)) for one in (source, target))
                builder.store(load(builder, here, kind), pointer(builder, there, kind), align=4)
                return state

            return copy

        done, _ = loop(builder, builder.add(half, half), size, WIDTH, [], keep(WIDTH))
        loop(builder, done, size, 1, [], keep(1))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


@njit
def rope(x, positions, table, head_dim, out, begin, end):
    """Tokens `begin` to `end` of `rope_reference` into out (T, H * Dh), which may be x."""
    half = table.shape[1] // 2
    for token in range(begin, end):
        cosines = table.ctypes.data + 8 * half * positions[token]
        source, target = x.ctypes.data + x.strides[0] * token, out.ctypes.data + out.strides[0] * token
        for head in range(0, x.shape[1], head_dim):
            turn_head(source + 4 * head, cosines, cosines + 4 * half, half, head_dim, target + 4 * head)


@operation
def rope_operation(operands, begin, end):
    """x (3), positions (2), table (3), head_dim (1), out (3)."""
    x, positions, table = float32_2d(operands, 0), int64_1d(operands, 3), float32_2d(operands, 5)
    rope(x, positions, table, operands[8], float32_2d(operands, 9), begin, end)


def frequencies(head_dim, theta):
    """(head_dim / 2,) float32 angles a position: theta ** (-2 i / head_dim), rounded as transformers rounds."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # float32's own power is off by a bit here and there, which torch's is not: 3e-4 of the logits at 4,000 positions.
    powers = np.power(np.float64(np.float32(theta)), exponents.astype(np.float64)).astype(np.float32)
    return np.float32(1) / powers


def rope_table(inverse_frequencies, positions, scale=1.0):
    """`(half,), S -> (S, 2 * half)` float32: cosines and sines of every position below `positions`."""
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse_frequencies[None, :]
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    return (table * np.float32(scale)).astype(np.float32)
