"""Matrix products with float32 and bfloat16 weights: one token from memory, some, and a chunk of a prompt.

python -m bench.kernels.matmul
"""

from __future__ import annotations

import numpy as np

from bench.measure import Bench, row
from tinylm.formats.bfloat16 import BFloat16Matrix, narrow
from tinylm.formats.float32 import Float32Matrix
from tinylm.kernels.matmul_amx_bf16 import packed_length
from tinylm.lowering import CHUNK_BYTES, CHUNK_ROWS

K = 576


def product(bench: Bench, T: int, matrix: Float32Matrix | BFloat16Matrix) -> list[list[int]]:
    """The rows of a product: for one token `matvec`, else `matmul`, perhaps of packed tokens."""
    N = matrix.shape[0]
    x, out = bench.numbers(T, K), bench.keep(np.zeros((T, N), np.float32))
    if T == 1:
        chunk = CHUNK_BYTES * N // matrix.nbytes // matrix.grain * matrix.grain
        return [row(matrix.matvec, N, chunk, x, *matrix.operands(), out)]
    chunk = CHUNK_ROWS // matrix.grain * matrix.grain
    packing = matrix.packing
    if packing is None:
        return [row(matrix.matmul, N, chunk, x, *matrix.operands(), out)]
    packed = bench.keep(np.zeros((packed_length(T), packing.width), np.float32))
    units, tokens = packing.units
    return [
        row(packing.operation, -(-T * units // tokens), 1, x, packed),
        row(matrix.matmul, N, chunk, packed, *matrix.operands(), out),
    ]


def main() -> None:
    """Measure and print; JSON on the last line."""
    bench = Bench("matmul", __doc__)
    N = bench.size(98304)
    weight = bench.numbers(N, K)
    bits = bench.keep(narrow(weight))
    for make, stored in ((Float32Matrix, weight), (BFloat16Matrix, bits)):
        matrix, part = make(stored), make(stored[:1536])
        for T in (1, 2, 4, 8):
            bench.add(f"{make.format}, {T} x {K} by {N}", product(bench, T, matrix), read=matrix.nbytes)
        for T in (16, 64, 256):
            work = 2.0 * T * K * part.shape[0]
            bench.add(f"{make.format}, {T} x {K} by {part.shape[0]}", product(bench, T, part), multiply=work)
    bench.run()


if __name__ == "__main__":
    main()
