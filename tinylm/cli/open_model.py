"""From `--model` to a loaded model: finding it, offering to fetch it, and loading it with notes."""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm.cli.terminal import ask, can_ask, note, size

if TYPE_CHECKING:
    from tinylm.language_model import LanguageModel


def add_pull_options(parser: argparse.ArgumentParser) -> None:
    """`--yes`."""
    parser.add_argument(
        "-y", "--yes", action="store_true", help="fetch the model without asking if it is not here"
    )


def locate(arguments: argparse.Namespace) -> Path:
    """The folder of `--model`; one that can be fetched is fetched after a yes. Raises MissingModelError."""
    from tinylm.errors import MissingModelError
    from tinylm.sources import catalog

    name = arguments.model
    try:
        return catalog.resolve(name, arguments.offline)
    except MissingModelError:
        if arguments.offline or not catalog.is_pullable(name) or not (arguments.yes or wants(name)):
            raise
    from tinylm.cli.pull import pull

    return pull(name, arguments.quiet)


def wants(name: str) -> bool:
    """Whether the person before the terminal, if there is one, wants a model to be fetched."""
    from tinylm.sources import catalog
    from tinylm.sources.hub import remote_size

    if not can_ask():
        return False
    model = next((model for model in catalog.list_models() if model.name == name), None)
    if model is None:
        what = f"from the Hugging Face hub, {size(remote_size(name))}"
    else:
        what = f"{model.source}, {size(model.nbytes)} on disk"
    return ask(f"{name} is not here yet; fetch it ({what})?")


def open_model(folder: Path, arguments: argparse.Namespace) -> tuple[LanguageModel, float]:
    """The model of a folder, and the seconds that loading took; what is to be said of it becomes notes."""
    import tinylm

    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        model = tinylm.load(
            folder,
            dtype=arguments.dtype,
            kv_dtype=arguments.kv_dtype,
            threads=arguments.threads,
            architecture=arguments.architecture,
            tensor_names=arguments.tensor_names,
            offline=arguments.offline,
        )
    seconds = time.perf_counter() - started
    for warning in told:
        if not arguments.quiet:
            note(str(warning.message))
    return model, seconds
