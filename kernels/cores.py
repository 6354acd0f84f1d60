"""How many threads are worth having: the performance cores, or less where the system grants less."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from pathlib import Path


def default_threads() -> int:
    """The performance cores on macOS; elsewhere the affinity mask, cut to the control group's quota."""
    if sys.platform == "darwin":
        return _darwin_performance_cores() or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min(cores, _cgroup_quota() or cores))


def _darwin_performance_cores() -> int | None:
    """`hw.perflevel0.physicalcpu`; the efficiency cores would hold the others up."""
    try:
        system = ctypes.CDLL(None)
        value, size = ctypes.c_int32(0), ctypes.c_size_t(4)
        name = b"hw.perflevel0.physicalcpu"
        failed = system.sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    except (OSError, AttributeError):
        return None
    return value.value if not failed and value.value > 0 else None


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Whole cores of the CPU quota of control groups, version 2 or 1; None if there is no limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max" or -1: no limit
        return None
    return max(1, math.ceil(cores)) if cores > 0 else None
