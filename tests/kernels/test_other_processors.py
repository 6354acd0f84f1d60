"""The tiles that other x86 processors use, tried on this one: AVX2, and no more than SSE4."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TESTS = [
    "test_tile.py",
    "test_rope.py",
    "test_tile_few.py",
    "test_softmax.py",
    "test_tile_attention.py",
    "test_narrow_floats.py",
    "test_attention.py",
    "test_softmax_int8.py",
    "test_attention_int8.py",
    "test_matmul.py",
    "test_matmul_integers.py",
    "test_gated_integers.py",
]

PROCESSORS = {
    "haswell": "+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+popcnt,+sse4.2,+ssse3",
    "nehalem": "+popcnt,+sse4.2,+ssse3",
}


def flags() -> set[str]:
    """What this processor can do, where the system says so."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    lines = [line for line in text.splitlines() if line.startswith("flags")]
    return set(lines[0].split()) if lines else set()


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="another kind of processor")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_kernels_of_another_processor(processor: str) -> None:
    if processor == "haswell" and not {"avx2", "fma"} <= flags():
        pytest.skip("this processor has no AVX2, or the system does not say")
    environment = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": PROCESSORS[processor]}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(str(HERE / name) for name in TESTS)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
