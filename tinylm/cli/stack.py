"""`tinylm stack`: a deeper model whose blocks are those of another, repeated."""

from __future__ import annotations

import argparse

from tinylm.cli.parsing import Parser
from tinylm.cli.terminal import ProgressBar, note


def parser() -> Parser:
    """The words that the command takes."""
    it = Parser(
        "stack",
        "Write a deeper model: the blocks of another, all of them in order, several times after each other. "
        "Embedding, final norm and head are there once. It is where depth-stacked training begins (G_stack, "
        "arXiv:2405.15319), and it runs as it is.",
        [("tinylm stack ./model-30-layers ./model-120-layers --times 4", "")],
    )
    it.add_argument("model", metavar="MODEL", help="a name that 'tinylm list' shows, or a folder")
    it.add_argument("folder", metavar="FOLDER", help="the folder to make; it must not exist yet")
    it.add_argument("--times", type=int, required=True, metavar="N", help="how often the blocks are repeated")
    it.add_argument("-q", "--quiet", action="store_true", help="no progress, no notes")
    return it


def run(arguments: argparse.Namespace) -> int:
    """Write the folder, and say on standard output where it is."""
    from tinylm.sources.catalog import resolve
    from tinylm.stack import stack

    bar = None if arguments.quiet else ProgressBar(arguments.folder)
    progress = (lambda done, total: bar("writing", done, total)) if bar else None
    try:
        written = stack(resolve(arguments.model), arguments.folder, arguments.times, progress)
    finally:
        if bar:
            bar.close()
    print(written.folder)
    if not arguments.quiet:
        (shallow, deep), (fewer, more) = written.layers, written.parameters
        note(f"{shallow} -> {deep} blocks, {fewer:,} -> {more:,} parameters")
    return 0
