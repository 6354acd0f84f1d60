"""Rotary embedding of the queries of a chunk of a prompt, and of one token.

python -m bench.kernels.rope
"""

from __future__ import annotations

import numpy as np

from bench.measure import Bench, row
from tinylm.kernels.rope import frequencies, rope_operation, rope_table

HEAD_DIM = 64


def main() -> None:
    """Measure and print; JSON on the last line."""
    bench = Bench("rope", __doc__)
    for rotary in (64, 16):
        table = bench.keep(rope_table(frequencies(rotary, 10_000.0), 2048))
        for T, H in ((256, 9), (1, 9)):
            x, out = bench.numbers(T, H * HEAD_DIM), bench.numbers(T, H * HEAD_DIM)
            positions = bench.keep(np.arange(1024, 1024 + T))
            chunk = T // (4 * bench.team.threads)
            rows = [row(rope_operation, T, chunk, x, positions, table, HEAD_DIM, out)]
            bench.add(
                f"{T} tokens, {H} heads, {rotary} of {HEAD_DIM} turn",
                rows,
                read=8 * x.size + 4 * T * rotary if T > 1 else 0,
            )
    bench.run()


if __name__ == "__main__":
    main()
