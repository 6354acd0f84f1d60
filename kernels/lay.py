"""Rows of numbers laid side by side: `(rows, K) -> (K, rows)`, as the right side of a register tile is read."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tinylm.kernels.jit import intrinsic, types
from tinylm.kernels.narrow_floats import bytes_of, load_wide
from tinylm.kernels.simd import FLOAT, INT64, pointer
from tinylm.kernels.tile import LANES, WIDTH
from tinylm.kernels.vectors import at, loop, transposed


def make_lay(lanes: int) -> Any:
    """The transposition of so many rows, whole registers, as an intrinsic."""
    vector = ir.VectorType(FLOAT, WIDTH)

    @intrinsic
    def lay(typingctx: Any, like: Any, x: Any, stride: Any, K: Any, out: Any, out_stride: Any) -> Any:
        size = bytes_of(like)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, x, stride, K, out, out_stride = arguments

            def columns(k: Any, state: list[Any]) -> list[Any]:
                for part in range(0, lanes, WIDTH):
                    places = [at(builder, x, (stride, part + i), (size, k)) for i in range(WIDTH)]
                    rows = [load_wide(builder, place, like, WIDTH) for place in places]
                    for i, column in enumerate(transposed(builder, rows)):
                        place = at(builder, out, (out_stride, k), (out_stride, i), (4, part))
                        builder.store(column, pointer(builder, place, vector), align=4)
                return state

            done, _ = loop(builder, INT64(0), K, WIDTH, [], columns)
            return done

        return types.int64(like, *[types.int64] * 5), generate

    return lay


lay_side_by_side = make_lay(LANES)
"""`lay_side_by_side(like, x, stride, K, out, stride)`: LANES rows of numbers such as `like` as (K, LANES) float32, by
addresses, at strides in bytes; returns the first column left to do. Done are whole registers of columns.
"""
