"""What the team itself costs: an operation without work, one with a unit a thread, waking the threads.

python -m bench.kernels.team [--threads N]
"""

from __future__ import annotations

import numpy as np

from bench.measure import Bench, nothing, row
from tinylm.kernels.walk import AWAITED


def main() -> None:
    """Measure and print; JSON on the last line."""
    bench = Bench("team", __doc__)
    threads = bench.team.threads
    bench.add("an operation of no units", [row(nothing, 0, 1)])
    bench.add("an operation of one unit a thread", [row(nothing, threads, 1)])
    bench.add("an operation of 64 units a thread", [row(nothing, 64 * threads, 1)])
    several = [row(nothing, threads, 1) for _ in range(4)]
    for one in several[:3]:
        one[AWAITED] = 0  # nobody waits here
    several[3][AWAITED] = 4 * threads
    bench.add("four that do not wait for each other", several)
    step = np.array([row(nothing, threads, 1)], np.int64)
    bench.add_call("a step: waking the threads", lambda: bench.team.run(step))
    bench.run()


if __name__ == "__main__":
    main()
