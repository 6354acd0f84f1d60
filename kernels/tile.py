"""The register tile: the innermost loop of every matrix product, prefill attention included.

`(ROWS, K) @ (K, lanes) -> (ROWS, lanes)`: the accumulators stay in vector registers while K runs; each step
loads one row of the right side and broadcasts ROWS numbers of the left. The right side is *packed*: lanes
(tokens) lie side by side for each k. The left side is read where it lies, by its strides, so a weight
matrix is multiplied straight from its memory map.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from tinylm.kernels.simd import FLOAT, INT32, INT64, load_float32, pointer


def _geometry() -> tuple[int, int, int]:
    """(rows, lanes, floats in a register) such that the accumulators fill the registers of this CPU."""
    features = cpu_target.target_context.codegen().magic_tuple()[2]
    if "+avx512f" in features:
        return 12, 32, 16  # 24 of 32 registers of 16
    if "+avx2" in features:
        return 6, 16, 8  # 12 of 16 registers of 8
    return 6, 16, 4  # NEON: 24 of 32 registers of 4


ROWS, LANES, WIDTH = _geometry()
NARROW_ROWS = 12
NARROW_LANES = 8
"""The tile for few tokens: a decode step of several sequences, the group of query heads in attention."""

UNROLL = 4


def _make(rows: int, lanes: int, width: int) -> Any:
    """The tile of a geometry, as an intrinsic."""
    vector = ir.VectorType(FLOAT, width)
    parts = range(lanes // width)

    def emit(builder: ir.IRBuilder, steps: int, number_type: Any, state: Any, operands: Any) -> Any:
        """A loop over k in strides of `steps`, from (k, sums) to (k, sums)."""
        left, row_stride, k_stride, right, end = operands
        first, sums = state
        fma_type = ir.FunctionType(vector, [vector] * 3)
        fma = cgutils.get_or_insert_function(builder.module, fma_type, f"llvm.fma.v{width}f32")
        before, check = builder.block, builder.append_basic_block()
        body, after = builder.append_basic_block(), builder.append_basic_block()
        builder.branch(check)
        builder.position_at_end(check)
        k = builder.phi(INT64)
        k.add_incoming(first, before)
        held = [[builder.phi(vector) for _ in parts] for _ in range(rows)]
        for phis, values in zip(held, sums, strict=True):
            for phi, value in zip(phis, values, strict=True):
                phi.add_incoming(value, before)
        builder.cbranch(builder.icmp_signed("<=", builder.add(k, INT64(steps)), end), body, after)
        builder.position_at_end(body)
        new = [list(phis) for phis in held]
        for step in range(steps):
            here = builder.add(k, INT64(step))
            right_row = builder.add(right, builder.mul(here, INT64(4 * lanes)))
            factors = []
            for part in parts:
                address = builder.add(right_row, INT64(4 * width * part))
                factors.append(builder.load(pointer(builder, address, vector), align=4))
            left_column = builder.add(left, builder.mul(here, k_stride))
            for row in range(rows):
                address = builder.add(left_column, builder.mul(row_stride, INT64(row)))
                number = load_float32(builder, address, number_type)
                undefined = ir.Constant(vector, ir.Undefined)
                spread = builder.shuffle_vector(
                    builder.insert_element(undefined, number, INT32(0)),
                    undefined,
                    ir.Constant(ir.VectorType(INT32, width), [0] * width),
                )
                for part in parts:
                    new[row][part] = builder.call(fma, [spread, factors[part], new[row][part]])
        following = builder.add(k, INT64(steps))
        last = builder.block
        builder.branch(check)
        k.add_incoming(following, last)
        for phis, values in zip(held, new, strict=True):
            for phi, value in zip(phis, values, strict=True):
                phi.add_incoming(value, last)
        builder.position_at_end(after)
        return k, held

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        typingctx: Any, like: Any, left: Any, row_stride: Any, k_stride: Any, right: Any, K: Any, out: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, left, row_stride, k_stride, right, K, out = arguments
            operands = (left, row_stride, k_stride, right, K)
            zero = ir.Constant(vector, [0.0] * width)
            state = (INT64(0), [[zero for _ in parts] for _ in range(rows)])
            state = emit(builder, UNROLL, like.dtype, state, operands)
            _, sums = emit(builder, 1, like.dtype, state, operands)
            for row in range(rows):
                for part in parts:
                    address = builder.add(out, INT64(4 * (row * lanes + part * width)))
                    builder.store(sums[row][part], pointer(builder, address, vector), align=4)
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 6), generate

    return tile


tile = _make(ROWS, LANES, WIDTH)
"""`tile(like, left, row stride, k stride, right, K, out)`: addresses, strides in bytes, numbers as in `like`."""

narrow_tile = _make(NARROW_ROWS, NARROW_LANES, min(WIDTH, NARROW_LANES))
