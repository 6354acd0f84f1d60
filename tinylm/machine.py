"""The machine and the software that figures were measured on, as far as the system tells."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "numba", "llvmlite")


def describe_machine() -> dict[str, Any]:
    """What a reader must know to compare figures; None for what the system does not tell."""
    fast, slow = core_kinds()
    return {
        "model": system_control("hw.model"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "performance_cores": fast,
        "efficiency_cores": slow,
        "memory": memory_bytes(),
        "system": system_name(),
        "python": platform.python_version(),
        **{name: package_version(name) for name in PACKAGES},
    }


def processor() -> str:
    """The processor's name."""
    if sys.platform == "darwin":
        return system_control("machdep.cpu.brand_string") or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def system_control(name: str) -> str | None:
    """An entry of macOS's `sysctl`; None on other systems, and where there is no such entry."""
    if sys.platform != "darwin":
        return None
    try:
        asked = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return asked.stdout.strip() or None


def core_kinds() -> tuple[int | None, int | None]:
    """(performance cores, efficiency cores) of a Mac; (None, None) where cores are alike or nothing is known."""
    counts = [system_control(f"hw.perflevel{level}.physicalcpu") for level in (0, 1)]
    fast, slow = (int(count) if count and count.isdigit() else None for count in counts)
    return fast, slow


def memory_bytes() -> int | None:
    """Bytes of physical memory."""
    if sys.platform == "win32":
        return _windows_memory()
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _windows_memory() -> int | None:
    """`GetPhysicallyInstalledSystemMemory`, which counts in units of 1024."""
    kilobytes = ctypes.c_ulonglong(0)
    asked = getattr(ctypes, "windll").kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))  # noqa: B009
    return kilobytes.value * 1024 if asked else None


def system_name() -> str:
    """`macOS 14.5 arm64`, `Linux 6.1 x86_64`, `Windows 11 AMD64`."""
    version = platform.mac_ver()[0] if sys.platform == "darwin" else platform.release()
    name = "macOS" if sys.platform == "darwin" else platform.system()
    return f"{name} {version} {platform.machine()}"


def package_version(name: str) -> str | None:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def identity() -> dict[str, str | None]:
    """Which tinylm this is: its version, a digest of its sources, and the commit of a checkout."""
    from tinylm import __version__

    folder = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for source in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).as_posix()):
        digest.update(source.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(source.read_bytes().replace(b"\r\n", b"\n"))
    return {"version": __version__, "sources": digest.hexdigest()[:12], "commit": commit(folder.parent)}


def commit(folder: Path) -> str | None:
    """The commit that a checkout stands on, read from `.git` without running git; None where there is none."""
    git = common = folder / ".git"
    try:
        if (
            git.is_file()
        ):  # one of several work trees: it names its own folder, which names the one they share
            git = folder / git.read_text(encoding="utf-8").removeprefix("gitdir: ").strip()
            common = git / (git / "commondir").read_text(encoding="utf-8").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head[:12] or None
        name = head[len("ref: ") :]
        loose = common / name
        if loose.is_file():
            return loose.read_text(encoding="utf-8").strip()[:12]
        for line in (common / "packed-refs").read_text(encoding="utf-8").splitlines():
            if line.endswith(f" {name}"):
                return line.partition(" ")[0][:12]
    except (OSError, UnicodeDecodeError):
        return None
    return None
