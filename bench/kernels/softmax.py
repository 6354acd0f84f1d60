"""The softmax of attention over blocks of scores, lanes of many queries and of few, on one thread.

python -m bench.kernels.softmax
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from bench.measure import Bench, row
from tinylm.kernels.attention import BLOCK
from tinylm.kernels.jit import operation
from tinylm.kernels.operands import float32_2d
from tinylm.kernels.simd import memory
from tinylm.kernels.softmax import softmax_block
from tinylm.kernels.tile import LANES
from tinylm.kernels.tile_attention import QUERIES


@operation
def softmax_of_blocks(operands: Any, begin: int, end: int) -> None:
    """scores (3): a row is a block; last positions (address), state (3): maxima, sums, shrink factors."""
    scores, state = float32_2d(operands, 0), float32_2d(operands, 4)
    lanes = state.shape[1]
    last = carray(memory(operands[3]), (lanes,), np.int32)
    rows = scores.shape[1] // lanes
    for block in range(begin, end):
        softmax_block(scores[block], block * rows, rows, last, state[0], state[1], state[2])


def main() -> None:
    """Measure and print; JSON on the last line."""
    bench = Bench("softmax", __doc__)
    for lanes in (LANES, QUERIES):
        scores, state = bench.numbers(16, BLOCK * lanes), bench.numbers(3, lanes)
        last = bench.keep(np.full(lanes, 10_000, np.int32))
        rows = [row(softmax_of_blocks, 16, 16, scores, last.ctypes.data, state)]
        bench.add(f"16 blocks of {BLOCK} positions x {lanes}", rows, read=8 * scores.size)
    bench.run()


if __name__ == "__main__":
    main()
