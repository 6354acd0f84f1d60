"""Figures that need a process of their own: time to the first token, and peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker import RemoteRunner

from tinylm.measuring import Work
from tinylm.receipt import start_seconds

POSITIONS = 1024
WRITTEN = 16


def measure_start(folder: Path, threads: int, dtype: str) -> dict[str, float]:
    """Cold: an empty cache of kernels. Warm: the cache that the cold start left. Seconds."""
    found = start_seconds(folder, ["--threads", str(threads), "--dtype", dtype])
    with tempfile.TemporaryDirectory() as home:
        started = time.perf_counter()
        command = [sys.executable, "-m", "tinylm", "warmup", "--quiet"]
        subprocess.run(command, env={**os.environ, "TINYLM_HOME": home}, check=True)
        everything = time.perf_counter() - started
    result = {
        "first_token_cold": found["cold"],
        "first_token_warm": found["warm"],
        "first_token_warm_max": found["warm_max"],
        "warmup_of_every_kernel": everything,
    }
    print("\nfrom process start, seconds")
    for name, seconds in result.items():
        print(f"  {name.replace('_', ' '):24} {seconds:6.2f}")
    return result


def peak_memory(runner: RemoteRunner, positions: int, written: int = WRITTEN) -> int:
    """Peak resident memory of a new runner that reads so many tokens and writes others; it is closed. Bytes."""
    ids = [3 + i % 200 for i in range(positions)]
    runner.prefill(ids)
    runner.decode(ids, written)
    peak = runner.peak()
    runner.close()
    return peak


def measure_peak(
    names: Sequence[str], folder: Path, threads: int, work: Work, scratch: Path
) -> dict[str, Any]:
    """Peak memory of runners, mapped weights included, beside the bytes of weights and cache."""
    if sys.platform == "win32":
        print("peak memory: not measured on Windows")
        return {}
    needed = work.weights + work.position * (POSITIONS + WRITTEN)
    print(
        f"\npeak memory at {POSITIONS} positions; weights and their keys and values are {needed / 1e6:.0f} MB"
    )
    result: dict[str, Any] = {"weights_and_cache": needed}
    for name in names:
        peak = peak_memory(RemoteRunner(name, sys.executable, folder, threads, scratch), POSITIONS)
        label = name.partition(" ")[0]
        print(f"  {label:13} {peak / 1e6:7.0f} MB, {peak / needed:.2f} x")
        result[label] = peak
    return result
