"""`tinylm list`: the models that are here, and those to be had."""

from __future__ import annotations

import argparse
import json

from tinylm.cli.parsing import Parser
from tinylm.cli.terminal import note, size


def parser() -> Parser:
    """The words that the command takes."""
    it = Parser(
        "list",
        "Show the models that are here, with their sizes, and those that 'tinylm pull' can fetch.",
        [("tinylm list", ""), ("tinylm list --json", "for machines")],
    )
    shape = it.add_mutually_exclusive_group()
    shape.add_argument(
        "--names", action="store_true", help="the names of the models that are here, nothing else"
    )
    shape.add_argument("--json", action="store_true", help="a JSON list of objects")
    return it


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each."""
    from tinylm.sources.catalog import list_models, models_folder

    models = list_models()
    if arguments.names:
        print("\n".join(model.name for model in models if model.folder))
        return 0
    if arguments.json:
        records = [
            {
                "name": model.name,
                "folder": str(model.folder) if model.folder else None,
                "bytes": model.nbytes,
                "source": model.source,
                "description": model.description,
                "pullable": model.pullable,
            }
            for model in models
        ]
        print(json.dumps(records, ensure_ascii=False))
        return 0
    width = max(len(model.name) for model in models)
    for model in models:
        state = "here" if model.folder else "to pull"
        what = model.description or model.source
        print(f"{model.name:{width}}  {state:7}  {size(model.nbytes):>9}  {what}".rstrip())
    note(f"\npulled models are kept in {models_folder()}")
    return 0
