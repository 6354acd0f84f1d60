"""RMSNorm and LayerNorm of a chunk of a prompt, of one token, and of its heads.

python -m bench.kernels.norm
"""

from __future__ import annotations

from bench.measure import Bench, row
from tinylm.kernels.norm import layernorm_operation, rmsnorm_operation


def main() -> None:
    """Measure and print; JSON on the last line."""
    bench = Bench("norm", __doc__)
    for R, D in ((256, 576), (9 * 256, 64), (1, 576), (9, 64)):
        x, out = bench.numbers(R, D), bench.numbers(R, D)
        weight, bias = bench.numbers(D), bench.numbers(D)
        chunk, read = R // (4 * bench.team.threads), 8 * R * D if R > 9 else 0
        rows = [row(rmsnorm_operation, R, chunk, x, weight, 1e-5, out)]
        bench.add(f"RMSNorm, {R} x {D}", rows, read=read)
        rows = [row(layernorm_operation, R, chunk, x, weight, bias, 1e-5, out)]
        bench.add(f"LayerNorm, {R} x {D}", rows, read=read)
    bench.run()


if __name__ == "__main__":
    main()
