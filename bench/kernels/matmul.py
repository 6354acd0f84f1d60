"""Matrix products with float32 and bfloat16 weights: one token from memory, some, and a chunk of a prompt.

python -m bench.kernels.matmul
"""

from __future__ import annotations

import numpy as np

from bench.measure import Bench, row
from tinylm.kernels.jit import Operation
from tinylm.kernels.matmul import (
    BLOCK_ROWS,
    matmul_bfloat16_operation,
    matmul_operation,
    matvec_bfloat16_operation,
    matvec_operation,
    pack_operation,
    packed_length,
)
from tinylm.kernels.tile import LANES
from tinylm.lowering import CHUNK_BYTES, CHUNK_ROWS

K = 576


def product(
    bench: Bench, T: int, weight: np.ndarray, kernels: tuple[Operation, Operation]
) -> list[list[int]]:
    """The rows of a product: for one token `matvec`, else `pack` and `matmul`."""
    N = len(weight)
    x, out = bench.numbers(T, K), bench.keep(np.zeros((T, N), np.float32))
    if T == 1:
        chunk = CHUNK_BYTES // (weight.itemsize * K) // BLOCK_ROWS * BLOCK_ROWS
        return [row(kernels[0], N, chunk, x, weight, out)]
    packed = bench.keep(np.zeros((packed_length(T), K), np.float32))
    units = -(-T // LANES)
    chunk = CHUNK_ROWS // BLOCK_ROWS * BLOCK_ROWS
    return [row(pack_operation, units, 1, x, packed), row(kernels[1], N, chunk, packed, weight, out, 0)]


def main() -> None:
    """Measure and print; JSON on the last line."""
    bench = Bench("matmul", __doc__)
    N = bench.size(98304)
    weight = bench.numbers(N, K)
    bits = bench.keep((weight.view(np.uint32) >> 16).astype(np.uint16))
    formats = {
        "float32": (weight, (matvec_operation, matmul_operation)),
        "bfloat16": (bits, (matvec_bfloat16_operation, matmul_bfloat16_operation)),
    }
    for name, (stored, kernels) in formats.items():
        for T in (1, 2, 4, 8):
            rows = product(bench, T, stored, kernels)
            bench.add(f"{name}, {T} x {K} by {N}", rows, read=stored.nbytes)
        part = stored[:1536]
        for T in (16, 64, 256):
            rows = product(bench, T, part, kernels)
            bench.add(f"{name}, {T} x {K} by {len(part)}", rows, multiply=2.0 * T * part.size)
    bench.run()


if __name__ == "__main__":
    main()
