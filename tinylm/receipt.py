"""What a stranger must know to believe figures: the machine, the software, the kernels, the model, the start."""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinylm.machine import describe_machine, identity

WARM_STARTS = 3

LARGEST_HASHED = 4 * 10**9
"""Bytes of a file of weights: larger ones are told by their size alone, so that nobody waits for a checksum."""

FEATURES = ("avx2", "fma", "avxvnni", "avx512f", "avx512vnni", "avx512bf16", "amx-int8", "dotprod", "i8mm", "bf16",
            "fullfp16", "sve")  # fmt: skip
"""Of all that LLVM calls a processor's features, those that decide how fast matrices are multiplied."""


def receipt(folder: Path, options: Sequence[str] = ()) -> dict[str, Any]:
    """All but the figures, such that JSON can hold it. `options`: words for `tinylm generate` on this folder."""
    return {
        "machine": describe_machine(),
        "tinylm": identity(),
        "kernels": kernel_facts(),
        "files": model_files(folder),
        "start": start_seconds(folder, options),
    }


def kernel_facts() -> dict[str, Any]:
    """For which processor the kernels are compiled, and what they chose of it."""
    from tinylm.kernels.dot import DOT
    from tinylm.kernels.streams import AHEAD
    from tinylm.kernels.target import target
    from tinylm.kernels.tile_amx import permitted

    triple, cpu, features = target()
    have = set(features.split(","))
    return {
        "triple": triple,
        "cpu": cpu,
        "features": [name for name in FEATURES if f"+{name}" in have],
        "int8_product": DOT.kind,
        "int8_lanes": DOT.lanes,
        "amx": permitted(),
        "bytes_ahead": AHEAD,
    }


def model_files(folder: Path) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of the config and of each file of weights."""
    found = []
    for file in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        if not file.is_file():
            continue
        size = file.stat().st_size
        found.append(
            {"name": file.name, "bytes": size, "sha256": sha256(file) if size <= LARGEST_HASHED else None}
        )
    return found


def sha256(file: Path) -> str:
    """The checksum of a file, read in pieces."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def start_seconds(folder: Path, options: Sequence[str] = ()) -> dict[str, float]:
    """Seconds from the start of a process to its first text: cold without compiled kernels, warm with those it left."""
    with tempfile.TemporaryDirectory() as home:
        cold = first_text(folder, home, options)
        warm = [first_text(folder, home, options) for _ in range(WARM_STARTS)]
    return {"cold": cold, "warm": statistics.median(warm), "warm_min": min(warm), "warm_max": max(warm)}


def first_text(folder: Path, home: str | None, options: Sequence[str] = ()) -> float:
    """Seconds from the start of `tinylm generate` to the first byte of its text; `home` holds compiled kernels."""
    environment = dict(os.environ)
    beside = Path(__file__).resolve().parent.parent
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(beside), environment.get("PYTHONPATH")]))
    if home is not None:
        environment["TINYLM_HOME"] = home
    command = [sys.executable, "-m", "tinylm", "generate", "The sea is", "--quiet", "--max-new-tokens", "4"]
    command += ["--model", str(folder), *options]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - started
        process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed")
    return seconds
