"""The machine as a bench reports it: what it is, and how fast it reads and multiplies at this moment."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

import numpy as np

from tinylm.kernels.bandwidth import Bandwidth
from tinylm.kernels.team import Team
from tinylm.machine import package_version, processor


def describe(threads: int) -> dict[str, Any]:
    """What a reader must know to compare figures."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": package_version("numba"),
    }


class Limits:
    """What the machine can do right now: bytes a second that a team reads, float32 operations a second."""

    def __init__(self, threads: int) -> None:
        self._bandwidth = Bandwidth(Team(threads))
        random = np.random.default_rng(0)
        self._left = random.standard_normal((512, 1536), np.float32)
        self._right = random.standard_normal((1536, 1536), np.float32)

    def bandwidth(self) -> float:
        """Bytes a second; some passes over 256 MiB, their median."""
        return self._bandwidth.measure()

    def multiplication(self) -> float:
        """Operations a second of NumPy's float32 matrix product, the best of three; threads are NumPy's own."""
        operations = 2 * self._left.shape[0] * self._right.size
        rates = []
        for _ in range(3):
            started = time.perf_counter()
            self._left @ self._right.T
            rates.append(operations / (time.perf_counter() - started))
        return max(rates)
