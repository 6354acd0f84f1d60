"""Looking rows up, adding biases, taking heads apart.

python -m bench.kernels.rows
"""

from __future__ import annotations

import numpy as np

from bench.measure import Bench, row
from tinylm.kernels.rows import (
    add_bias_operation,
    heads_operation,
    take_bfloat16_operation,
    take_operation,
)

D, H, HEAD_DIM = 576, 9, 64


def main() -> None:
    """Measure and print; JSON on the last line."""
    bench = Bench("rows", __doc__)
    V = bench.size(49152)
    table = bench.numbers(V, D)
    bits = bench.keep((table.view(np.uint32) >> 16).astype(np.uint16))
    bias = bench.numbers(D)
    for T in (256, 1):
        indices = bench.keep(bench.random.integers(0, V, T))
        x, fused = bench.numbers(T, D), bench.numbers(T, 3 * D)
        chunk = T // (4 * bench.team.threads)
        some = T > 1
        bench.add(
            f"{T} rows of float32", [row(take_operation, T, chunk, table, indices, x)], read=8 * T * D * some
        )
        bench.add(
            f"{T} rows of bfloat16",
            [row(take_bfloat16_operation, T, chunk, bits, indices, x)],
            read=6 * T * D * some,
        )
        bench.add(f"bias, {T} x {D}", [row(add_bias_operation, T, chunk, x, bias)], read=8 * T * D * some)
        rows = [row(heads_operation, T, chunk, fused, 0, HEAD_DIM, 3 * HEAD_DIM, x)]
        bench.add(f"queries of {H} fused heads, {T} tokens", rows, read=8 * T * D * some)
    bench.run()


if __name__ == "__main__":
    main()
