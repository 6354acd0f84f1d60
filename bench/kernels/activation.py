"""Activations, gates and sums, for a chunk of a prompt and for one token.

python -m bench.kernels.activation
"""

from __future__ import annotations

from bench.measure import Bench, row
from tinylm.kernels.activation import (
    ACTIVATIONS,
    BLOCK,
    activate_operation,
    add_operation,
    gate_operation,
)

F = 1536


def main() -> None:
    """Measure and print; JSON on the last line."""
    bench = Bench("activation", __doc__)
    for T in (256, 1):
        n = T * F
        x, y, out = (bench.numbers(n) for _ in range(3))
        units = -(-n // BLOCK)
        chunk = units // (4 * bench.team.threads)
        for kind, name in enumerate(ACTIVATIONS):
            rows = [row(activate_operation, units, chunk, kind, x, out)]
            bench.add(f"{name}, {T} x {F}", rows, read=8 * n if T > 1 else 0)
        for kind, name in enumerate(ACTIVATIONS[:2]):
            rows = [row(gate_operation, units, chunk, kind, x, y, out)]
            bench.add(f"gate of {name}, {T} x {F}", rows, read=12 * n if T > 1 else 0)
        rows = [row(add_operation, units, chunk, x, y, out)]
        bench.add(f"sum, {T} x {F}", rows, read=12 * n if T > 1 else 0)
    bench.run()


if __name__ == "__main__":
    main()
