"""The softmax of attention, block after block: of many queries and of few.

python -m bench.kernels.softmax
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.measure import Bench, row
from tinylm.kernels.jit import carray, operation
from tinylm.kernels.operands import float32_2d
from tinylm.kernels.simd import memory
from tinylm.kernels.softmax import softmax_block, softmax_row
from tinylm.kernels.tile import LANES
from tinylm.kernels.tile_attention import BLOCK

QUERIES = 3


@operation
def softmax_of_blocks(operands: Any, begin: int, end: int) -> None:
    """scores (3): a row is a block; last positions (address), state (3): maxima, sums, shrink factors."""
    scores, state = float32_2d(operands, 0), float32_2d(operands, 4)
    lanes = state.shape[1]
    last = carray(memory(operands[3]), (lanes,), np.int32)
    rows = scores.shape[1] // lanes
    for block in range(begin, end):
        softmax_block(scores[block], block * rows, rows, last, state[0], state[1], state[2])


@operation
def softmax_of_rows(operands: Any, begin: int, end: int) -> None:
    """scores (3): a row is a block of QUERIES; state (3): maxima, sums, shrink factors."""
    scores, state = float32_2d(operands, 0), float32_2d(operands, 3)
    queries = state.shape[1]
    for block in range(begin, end):
        for query in range(queries):
            place = 4 * (BLOCK * queries * block + BLOCK * query)
            softmax_row(
                scores.ctypes.data + place,
                BLOCK,
                state.ctypes.data + 4 * query,
                state.ctypes.data + 4 * (queries + query),
                state.ctypes.data + 4 * (2 * queries + query),
            )


def main() -> None:
    """Measure and print; JSON on the last line."""
    bench = Bench("softmax", __doc__)
    scores, state = bench.numbers(16, BLOCK * LANES), bench.numbers(3, LANES)
    last = bench.keep(np.full(LANES, 10_000, np.int32))
    rows = [row(softmax_of_blocks, 16, 16, scores, last.ctypes.data, state)]
    bench.add(f"16 blocks of {BLOCK} positions x {LANES}", rows, read=8 * scores.size)
    scores, state = bench.numbers(16, BLOCK * QUERIES), bench.numbers(3, QUERIES)
    rows = [row(softmax_of_rows, 16, 16, scores, state)]
    bench.add(f"16 blocks of {BLOCK} positions x {QUERIES}", rows, read=8 * scores.size)
    bench.run()


if __name__ == "__main__":
    main()
