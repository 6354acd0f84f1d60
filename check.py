#!/usr/bin/env python3
"""Sets up and checks everything, with one command on every system: `python3 check.py`.

Needs Python 3.10 and nothing else. Outside a virtual environment it makes `.venv` beside this
file and goes on in it. Continuous integration runs this same file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
REAL_MODEL = "smollm2-135m-instruct"
PARTS = {
    "setup": "install tinylm in place, with what the checks need",
    "model": f"fetch {REAL_MODEL}, so that the tests on a real model run",
    "lint": "ruff check",
    "format": "ruff format --check",
    "types": "mypy, strict on tinylm/",
    "tests": "pytest",
}


def main(argv: list[str] | None = None) -> int:
    """Run the parts that were asked for, all of them by default; 0 when every one is fine."""
    arguments = parse(argv)
    if sys.version_info < (3, 10):  # noqa: UP036  (an older Python can get here: nothing is installed yet)
        print(
            "check: tinylm needs Python 3.10 or newer, and this is " + sys.version.split()[0], file=sys.stderr
        )
        return 2
    if sys.prefix == sys.base_prefix:
        return continue_in_environment(sys.argv[1:] if argv is None else argv)
    parts = arguments.parts or list(PARTS)
    failed = []
    for part in parts:
        say(f"{part}: {PARTS[part]}")
        started = time.monotonic()
        good = run_part(part, arguments)
        say(f"{part}: {'fine' if good else 'FAILED'} after {time.monotonic() - started:.0f} s")
        if not good:
            failed.append(part)
            if part == "setup":
                break
    say("failed: " + ", ".join(failed) if failed else "all fine: " + ", ".join(parts))
    return 1 if failed else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; words after `--` belong to pytest."""
    words = sys.argv[1:] if argv is None else argv
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        description="Set up and check everything.",
        epilog="parts, in the order in which all of them run:\n"
        + "\n".join(f"  {name:8} {purpose}" for name, purpose in PARTS.items())
        + "\n\nexamples:\n"
        "  python3 check.py                                 everything\n"
        "  python3 check.py lint types                      two parts, nothing installed\n"
        "  python3 check.py tests -- tests/cli -k generate  some tests",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)} (default: all)")
    parser.add_argument(
        "--oracles",
        action="store_true",
        help="also install torch and transformers, so that the comparisons with them (tests/oracle) run",
    )
    arguments = parser.parse_args(words[:cut])
    arguments.pytest = words[cut + 1 :]
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return arguments


def continue_in_environment(words: list[str]) -> int:
    """Make `.venv` where there is none, and run this file again with its Python."""
    folder = ROOT / ".venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        say(f"making a virtual environment in {folder}")
        if not run(sys.executable, "-m", "venv", str(folder)):
            say("could not make it (on Debian and Ubuntu: apt install python3-venv)")
            return 1
        named = [word for word in words if word in PARTS]
        if named and "setup" not in named:
            words = ["setup", *words]
    return subprocess.run([str(python), str(ROOT / "check.py"), *words], check=False).returncode


def run_part(part: str, arguments: argparse.Namespace) -> bool:
    """Run one part of the checks; True when it is fine."""
    if part == "setup":
        extras = "test,oracle" if arguments.oracles else "test"
        quiet = [] if sys.stdout.isatty() else ["--quiet"]
        return run(sys.executable, "-m", "pip", "install", *quiet, "-e", f".[{extras}]")
    if part == "model":
        if not run(sys.executable, "-m", "tinylm", "pull", REAL_MODEL):
            say(f"{REAL_MODEL} could not be fetched (no network?): the tests that need it will be skipped")
        return True
    if part == "lint":
        return run(sys.executable, "-m", "ruff", "check", ".")
    if part == "format":
        return run(sys.executable, "-m", "ruff", "format", "--check", ".")
    if part == "types":
        if not (ROOT / "tinylm" / "kernels").is_dir():
            say(
                "skipped: tinylm/kernels is no link in this checkout (clone with `git -c core.symlinks=true`)"
            )
            return True
        if sys.version_info < (3, 11):
            say(
                "skipped: this Python's last NumPy describes its types otherwise; they are checked on newer ones"
            )
            return True
        return run(sys.executable, "-m", "mypy")
    return run(sys.executable, "-m", "pytest", "-rs", *arguments.pytest)


def run(*command: str) -> bool:
    """Show a command, run it in the checkout, and say whether it ended well."""
    print("$ " + " ".join(command), flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def say(message: str) -> None:
    """Print a line of our own, so marked that it stands out from the tools' lines."""
    print(f"check: {message}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
