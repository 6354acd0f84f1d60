"""Figures that need a process of their own: time to the first token, and peak memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

POSITIONS = 1024
PEERS_IN_A_PROCESS = ("tinylm", "llama.cpp", "transformers")

CHILD = """
import sys, resource
from pathlib import Path
sys.path.insert(0, sys.argv[6])
from runners import installed_runners
name, folder, threads, dtype, scratch = sys.argv[1:6]
runner = installed_runners([name], Path(folder), int(threads), dtype, Path(scratch))[0]
ids = [3 + i % 200 for i in range(int(sys.argv[7]))]
runner.prefill(ids)
runner.decode(ids, 16)
try:  # on Linux, getrusage tells of the process that started this one too
    lines = open("/proc/self/status").read().splitlines()
    print(1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))))
except OSError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


class HasBytes(Protocol):
    """The bytes of a model's weights, and of keys and values a position."""

    weights: int
    position: int


def first_token(folder: Path, threads: int, dtype: str, home: str | None) -> float:
    """Seconds from the start of `tinylm generate` to the first byte of its text."""
    environment = dict(os.environ)
    if home is not None:
        environment["TINYLM_HOME"] = home
    command = [sys.executable, "-m", "tinylm", "generate", "The sea is", "--quiet", "--max-new-tokens", "4"]
    command += ["--model", str(folder), "--threads", str(threads), "--dtype", dtype]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)
    seconds = time.perf_counter() - started
    process.stdout.read()
    if process.wait() != 0:
        raise RuntimeError(f"{' '.join(command)} failed")
    process.stdout.close()
    return seconds


def measure_start(folder: Path, threads: int, dtype: str) -> dict[str, float]:
    """Cold: an empty cache of kernels. Warm: the cache that the cold start left. Seconds."""
    with tempfile.TemporaryDirectory() as home:
        cold = first_token(folder, threads, dtype, home)
        warm = [first_token(folder, threads, dtype, home) for _ in range(5)]
    with tempfile.TemporaryDirectory() as home:
        started = time.perf_counter()
        command = [sys.executable, "-m", "tinylm", "warmup", "--quiet"]
        subprocess.run(command, env={**os.environ, "TINYLM_HOME": home}, check=True)
        everything = time.perf_counter() - started
    result = {
        "first_token_cold": cold,
        "first_token_warm": statistics.median(warm),
        "first_token_warm_max": max(warm),
        "warmup_of_every_kernel": everything,
    }
    print("\nfrom process start, seconds")
    for name, seconds in result.items():
        print(f"  {name.replace('_', ' '):24} {seconds:6.2f}")
    return result


def measure_peak(names: list[str], folder: Path, threads: int, dtype: str, work: HasBytes) -> dict[str, Any]:
    """Peak resident memory of a process that reads POSITIONS tokens and writes 16, mapped weights included."""
    if sys.platform == "win32":
        print("peak memory: not measured on Windows")
        return {}
    needed = work.weights + work.position * (POSITIONS + 16)
    print(
        f"\npeak memory at {POSITIONS} positions; weights and their keys and values are {needed / 1e6:.0f} MB"
    )
    result: dict[str, Any] = {"weights_and_cache": needed}
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            words = [name, folder, threads, dtype, scratch, Path(__file__).parent, POSITIONS]
            command = [sys.executable, "-c", CHILD, *map(str, words)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peak = json.loads(output.splitlines()[-1])
        print(f"  {name:13} {peak / 1e6:7.0f} MB, {peak / needed:.2f} x")
        result[name] = peak
    return result
