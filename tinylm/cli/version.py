"""`tinylm version`: what is installed, for a report of a bug."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys

from tinylm.cli.parsing import Parser

PARTS = ("numpy", "numba", "llvmlite", "safetensors", "regex", "gguf", "jinja2", "huggingface_hub")


def parser() -> Parser:
    """The words that the command takes."""
    it = Parser("version", "Print the versions of tinylm and of what it runs on.", [("tinylm version", "")])
    it.add_argument("--short", action="store_true", help="tinylm's own alone")
    return it


def run(arguments: argparse.Namespace) -> int:
    """Print them, a line each."""
    from tinylm import __version__

    print(f"tinylm {__version__}")
    if arguments.short:
        return 0
    print(f"python {platform.python_version()} ({sys.implementation.name})")
    for name in PARTS:
        try:
            print(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            print(name, "not installed")
    print(f"system {platform.system()} {platform.release()} {platform.machine()}")
    return 0
