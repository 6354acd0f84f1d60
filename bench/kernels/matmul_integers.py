"""Matrix products with int8 and int4 weights, and what it costs to make them and to pack activations.

python -m bench.kernels.matmul_integers
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.measure import Bench, row
from tinylm.formats.table import QUANTIZED
from tinylm.kernels.matmul_integers import BLOCK_ROWS, pack_int8_operation, packed_width
from tinylm.lowering import CHUNK_BYTES, CHUNK_ROWS

K = 576


def main() -> None:
    """Measure and print; JSON on the last line."""
    bench = Bench("matmul_integers", __doc__)
    N = bench.size(98304)
    weight = bench.numbers(N, K)
    for name in QUANTIZED:
        add(bench, name, weight)
    for T in (1, 256):
        x, packed = bench.numbers(T, K), bench.keep(np.zeros((T, packed_width(K)), np.float32))
        table = [row(pack_int8_operation, T, T // (4 * bench.team.threads), x, packed)]
        bench.add(f"pack {T} x {K}", table, read=(4 * x.size + packed.nbytes) * (T > 1))
    bench.run()


def add(bench: Bench, name: str, weight: NDArray[np.float32]) -> None:
    """The cases of one format."""
    form, N = QUANTIZED[name], len(weight)
    matrix, part = form.quantize(weight, bench.team), form.quantize(weight[:1536], bench.team)
    for array in (*matrix.arrays(), *part.arrays()):
        bench.keep(array)
    for T in (1, 2, 4, 8, 16, 31, 64, 256):
        one = matrix if T <= 8 else part
        rows = one.shape[0]
        x, out = bench.numbers(T, K), bench.keep(np.zeros((T, rows), np.float32))
        packed = bench.keep(np.zeros((T, packed_width(K)), np.float32))
        chunk = CHUNK_BYTES * rows // one.nbytes if T == 1 else CHUNK_ROWS
        table = [
            row(pack_int8_operation, T, T // (4 * bench.team.threads), x, packed),
            row(form.matmul, rows, chunk // BLOCK_ROWS * BLOCK_ROWS, packed, *one.operands(), out),
        ]
        label = f"{name}: {T} x {K} by {rows}"
        if T <= 8:
            bench.add(label, table, read=one.nbytes)
        else:
            bench.add(label, table, multiply=2.0 * T * rows * K)
    indices, found = bench.keep(bench.random.integers(0, N, 256)), bench.numbers(256, K)
    rows_of = [row(form.take, 256, 32, *matrix.operands(), indices, found)]
    bench.add(f"{name}: 256 rows", rows_of, read=(32 + form.bits) * found.size // 8)
    bench.add_call(
        f"{name}: quantize {N} x {K}", lambda: form.quantize(weight, bench.team), read=weight.nbytes
    )


if __name__ == "__main__":
    main()
