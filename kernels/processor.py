"""What this processor is, by what the system says of it."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache
from pathlib import Path

TOLD_APART = {
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features", "isa", "uarch",
}  # fmt: skip
"""Lines of /proc/cpuinfo that tell processors apart; others, such as the clock, change with every look."""


def _described() -> list[str]:
    """What the system says of its (first) processor."""
    if sys.platform == "darwin":
        value, size = ctypes.create_string_buffer(256), ctypes.c_size_t(256)
        name = b"machdep.cpu.brand_string"
        ctypes.CDLL(None).sysctlbyname(name, value, ctypes.byref(size), None, ctypes.c_size_t(0))
        return [value.value.decode(errors="replace")]
    try:
        first = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
    except OSError:
        return [platform.processor()]
    return [line for line in first.splitlines() if line.split(":")[0].strip() in TOLD_APART]


@cache
def identity() -> tuple[str, ...]:
    """Tells one processor from another, and what a person set for it; kernels of one may be wrong on another."""
    asked = [os.environ.get(name, "") for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_OPT")]
    return (sys.platform, platform.machine(), *asked, *_described())
