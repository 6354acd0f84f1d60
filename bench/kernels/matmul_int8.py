"""Matrix products with int8 weights, and what it costs to make them and to pack activations.

python -m bench.kernels.matmul_int8
"""

from __future__ import annotations

import numpy as np

from bench.measure import Bench, row
from tinylm.formats.int8 import quantize
from tinylm.kernels.matmul_int8 import (
    BLOCK_ROWS,
    matmul_int8_operation,
    pack_int8_operation,
    packed_width,
    take_int8_operation,
)
from tinylm.lowering import CHUNK_BYTES, CHUNK_ROWS

K = 576


def main() -> None:
    """Measure and print; JSON on the last line."""
    bench = Bench("matmul_int8", __doc__)
    N = bench.size(98304)
    weight = bench.numbers(N, K)
    matrix = quantize(weight, bench.team)
    for array in matrix.arrays():
        bench.keep(array)
    part = quantize(weight[:1536], bench.team)
    for array in part.arrays():
        bench.keep(array)
    for T in (1, 2, 4, 8, 16, 31, 64, 256):
        one = matrix if T <= 8 else part
        rows = one.shape[0]
        x, out = bench.numbers(T, K), bench.keep(np.zeros((T, rows), np.float32))
        packed = bench.keep(np.zeros((T, packed_width(K)), np.float32))
        chunk = CHUNK_BYTES * rows // one.nbytes if T == 1 else CHUNK_ROWS
        table = [
            row(pack_int8_operation, T, T // (4 * bench.team.threads), x, packed),
            row(matmul_int8_operation, rows, chunk // BLOCK_ROWS * BLOCK_ROWS, packed, *one.operands(), out),
        ]
        name = f"{T} x {K} by {rows}"
        if T <= 8:
            bench.add(name, table, read=one.nbytes)
        else:
            bench.add(name, table, multiply=2.0 * T * rows * K)
        if T in (1, 256):
            bench.add(f"pack {T} x {K}", table[:1], read=(4 * x.size + packed.nbytes) * (T > 1))
    indices, found = bench.keep(bench.random.integers(0, N, 256)), bench.numbers(256, K)
    rows = [row(take_int8_operation, 256, 32, *matrix.operands(), indices, found)]
    bench.add("256 rows", rows, read=5 * found.size)
    bench.add_call(f"quantize {N} x {K}", lambda: quantize(weight, bench.team), read=weight.nbytes)
    bench.run()


if __name__ == "__main__":
    main()
