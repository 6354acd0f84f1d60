"""Two products with integer weights, gated and packed for the next product, in one.

An MLP is widest between its matrices. There, 64 rows of both products (a group of what comes next) are gated and rounded
as soon as a few tokens have met them: their float32 numbers stay in the caches, and never are all there at once.
"""

from __future__ import annotations

from tinylm.kernels.activation import BLOCK, gate
from tinylm.kernels.dot import COLUMNS, ROWS
from tinylm.kernels.hadamard import GROUP
from tinylm.kernels.jit import Function, Operation, njit, operation
from tinylm.kernels.matmul_integers import groups_of, pack_group, steps_of
from tinylm.kernels.operands import float32_1d_at, float32_2d, float32_2d_at
from tinylm.kernels.simd import scratch

GATED_TOKENS = 48
"""Tokens at a time: whole tiles of any size (`matmul_integers.MANY`)."""


def make_gated(bits: int, tokens: int, product: Function) -> Function:
    """The kernel for weights of so many bits, so many tokens at a time, by their `product`."""

    @njit
    def gated(packed, gates, gate_scales, ups, up_scales, K, N, T, kind, out, begin, end):
        """Groups `begin` to `end` of gate_reference(kind, x @ gates.T, x @ ups.T), packed: out (T, packed_width(N)).

        packed: x as `pack` makes it, (T, packed_width(K)); both weights (N, K) and their scales by address.
        """
        block_bytes, scale_bytes = ROWS * COLUMNS * steps_of(K, bits), 2 * ROWS * groups_of(K)
        size = 4 * tokens * GROUP + 256
        room, other_room, third = scratch(size), scratch(size), scratch(size)
        for first in range(0, T, tokens):
            token = max(0, min(first, T - tokens))  # the last ones are some of those before again
            count = min(tokens, T - token)
            x = packed[token : token + count]
            for group in range(begin, end):
                block = group * (GROUP // ROWS)
                rows = min(GROUP, N - group * GROUP)
                numbers, factors = float32_2d_at(room, count, rows), float32_2d_at(other_room, count, rows)
                weights, scales = block * block_bytes, block * scale_bytes
                product(x, gates + weights, gate_scales + scales, K, numbers, 0, rows)
                product(x, ups + weights, up_scales + scales, K, factors, 0, rows)
                size = count * rows
                flat, other = float32_1d_at(room, size), float32_1d_at(other_room, size)
                gate(kind, flat, other, float32_1d_at(third, size), 0, (size + BLOCK - 1) // BLOCK)
                for i in range(count):
                    target = out.ctypes.data + 4 * out.shape[1] * (token + i)
                    pack_group(third + 4 * rows * i, N, group, target)

    return gated


def gated_operation(name: str, gated: Function) -> Operation:
    """The operation of a kernel that `make_gated` made; a unit is a group of rows."""

    def run(operands, begin, end):
        """packed (3), gates, their scales, K, ups, their scales, K, N, T, kind (1 each), out (3)."""
        packed, out = float32_2d(operands, 0), float32_2d(operands, 12)
        gates, gate_scales, K, ups, up_scales = operands[3], operands[4], operands[5], operands[6], operands[7]
        N, T, kind = operands[9], operands[10], operands[11]
        gated(packed, gates, gate_scales, ups, up_scales, K, N, T, kind, out, begin, end)

    run.__name__ = f"gated_{name}_operation"
    return operation(run)
