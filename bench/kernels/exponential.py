"""exp in a loop that becomes SIMD, beside NumPy's on one thread.

python -m bench.kernels.exponential
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.measure import Bench, row
from tinylm.kernels.exponential import exp
from tinylm.kernels.jit import operation
from tinylm.kernels.operands import float32_1d

BLOCK = 4096


@operation
def exp_of_all(operands: Any, begin: int, end: int) -> None:
    """x (2), out (2); a unit is BLOCK numbers."""
    x, out = float32_1d(operands, 0), float32_1d(operands, 2)
    x, out = x[begin * BLOCK : end * BLOCK], out[begin * BLOCK : end * BLOCK]
    for i in range(x.shape[0]):
        out[i] = exp(x[i])


def main() -> None:
    """Measure and print; JSON on the last line."""
    bench = Bench("exponential", __doc__)
    x, out = bench.numbers(64 * BLOCK), bench.numbers(64 * BLOCK)
    bench.add("ours", [row(exp_of_all, 64, 4, x, out)], read=8 * x.size)
    bench.add_call("NumPy, one thread", lambda: np.exp(x, out=out), read=8 * x.size)
    bench.run()


if __name__ == "__main__":
    main()
