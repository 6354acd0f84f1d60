"""Two products with integer weights, gated and packed for the next product, in one.

An MLP is widest between its matrices. There, 64 rows of both products (a group of what comes next) are gated and
rounded as soon as a few tokens have met them: their float32 numbers never leave the caches.
"""

from __future__ import annotations

from tinylm.kernels.activation import BLOCK, gate
from tinylm.kernels.dot import COLUMNS, ROWS
from tinylm.kernels.hadamard import GROUP
from tinylm.kernels.jit import Function, Operation, njit, operation
from tinylm.kernels.matmul_integers import groups_of, pack_group, steps_of
from tinylm.kernels.operands import float32_1d_at, float32_2d, float32_2d_at
from tinylm.kernels.simd import GUARD, scratch

GATED_TOKENS = 48
"""Tokens at a time: whole tiles of any size (`matmul_integers.MANY`)."""

FEWEST = 16
"""Tokens at a time at least, where there are as many: fewer go through smaller tiles."""


def make_gated(bits: int, tokens: int, product: Function) -> Function:
    """The kernel for weights of so many bits, so many tokens at a time, by their `product`."""

    @njit
    def gated(packed, gates, ups, K, N, T, kind, out, begin, end):
        """Groups `begin` to `end` of gate_reference(kind, x @ gates.T, x @ ups.T), packed: out (T, packed_width(N)).

        packed: x as `pack` makes it, (T, packed_width(K)). gates, ups: weights (N, K) and their scales, two addresses.
        """
        block_bytes, scale_bytes = ROWS * COLUMNS * steps_of(K, bits), 2 * ROWS * groups_of(K)
        size = 4 * tokens * GROUP + GUARD
        left, right, result = scratch(size), scratch(size), scratch(size)
        for first in range(0, T, tokens):
            token = min(first, max(0, T - FEWEST))  # the last ones may be some of those before again
            count = min(tokens, T - token)
            x = packed[token : token + count]
            for group in range(begin, end):
                block = group * (GROUP // ROWS)
                weights, scales = block * block_bytes, block * scale_bytes
                rows = min(GROUP, N - group * GROUP)
                n = count * rows
                product(
                    x, gates[0] + weights, gates[1] + scales, K, float32_2d_at(left, count, rows), 0, rows
                )
                product(x, ups[0] + weights, ups[1] + scales, K, float32_2d_at(right, count, rows), 0, rows)
                numbers = float32_1d_at(result, n)
                gate(
                    kind,
                    float32_1d_at(left, n),
                    float32_1d_at(right, n),
                    numbers,
                    0,
                    (n + BLOCK - 1) // BLOCK,
                )
                for i in range(count):
                    target = out.ctypes.data + 4 * out.shape[1] * (token + i)
                    pack_group(result + 4 * rows * i, N, group, target)

    return gated


def gated_operation(name: str, gated: Function) -> Operation:
    """The operation of a kernel that `make_gated` made; a unit is a group of rows."""

    def run(operands, begin, end):
        """packed (3), gates, their scales, K, ups, their scales, K, N, T, kind (1 each), out (3)."""
        packed, out = float32_2d(operands, 0), float32_2d(operands, 12)
        gates, ups = (operands[3], operands[4]), (operands[6], operands[7])
        K, N, T, kind = operands[5], operands[9], operands[10], operands[11]
        gated(packed, gates, ups, K, N, T, kind, out, begin, end)

    run.__name__ = f"gated_{name}_operation"
    return operation(run)
