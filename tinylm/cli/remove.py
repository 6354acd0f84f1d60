"""`tinylm remove`: delete a fetched model."""

from __future__ import annotations

import argparse

from tinylm.cli.parsing import Parser
from tinylm.cli.terminal import ask, can_ask, note, size


def parser() -> Parser:
    """The words that the command takes."""
    it = Parser(
        "remove",
        "Delete a model that was pulled. It asks first.",
        [
            ("tinylm remove smollm2-135m-instruct", ""),
            ("tinylm remove smollm2-135m-instruct --yes", "without asking"),
        ],
    )
    it.add_argument("model", metavar="MODEL", help="a name that 'tinylm list' shows")
    it.add_argument("-y", "--yes", action="store_true", help="do not ask")
    return it


def run(arguments: argparse.Namespace) -> int:
    """Ask, delete, and say what that freed."""
    from tinylm.errors import ParameterError
    from tinylm.sources import catalog

    folder = catalog.folder_of(arguments.model)
    if folder is not None and arguments.model not in catalog.BUNDLED and not arguments.yes:
        if not can_ask():
            raise ParameterError(f"{arguments.model}: nobody is here to ask; give --yes to delete {folder}")
        if not ask(f"delete {folder}?"):
            note("nothing was deleted")
            return 1
    freed = catalog.remove(arguments.model)
    note(f"{arguments.model} is gone; {size(freed)} are free again")
    return 0
