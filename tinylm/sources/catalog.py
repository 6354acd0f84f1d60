"""Names of models -> folders: what is bundled, what was pulled, what can be pulled."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tinylm.checkpoint import read_json_object
from tinylm.errors import CheckpointError, MissingModelError, SourceError
from tinylm.home import home
from tinylm.sources.gguf_import import SOURCE_FILE
from tinylm.sources.hub import pull_hub, resolve_hub
from tinylm.sources.hub_cache import (
    cache_folder,
    cached_models,
    find_snapshot,
    is_hub_id,
    missing_files,
    parse_hub_id,
    remove_cached,
)
from tinylm.sources.wheel import WHEELS, Progress, pull_wheel
from tinylm.sources.write import explained, scratch_folder

DEFAULT = "stories260k"

BUNDLED = {DEFAULT: Path(__file__).parents[1] / "stories260k"}

DESCRIPTIONS = {
    "stories260k": "260 thousand parameters; writes small stories; part of tinylm",
    "smollm2-135m-instruct": "135 million parameters; writes and chats in English; Apache-2.0",
}


@dataclass(frozen=True)
class Model:
    """A line of the list: `folder` is None where the model is not here; `nbytes` is its size on the disk.

    `source` says where it comes from; `pullable`, whether `tinylm pull` can fetch it again.
    """

    name: str
    folder: Path | None
    nbytes: int
    source: str
    description: str
    pullable: bool


def models_folder() -> Path:
    """Where pulled models lie. It may not exist yet."""
    return home() / "models"


def names() -> list[str]:
    """The names of the catalog."""
    return [*BUNDLED, *WHEELS]


def list_models() -> list[Model]:
    """The catalog's models, whatever else is in the folder of pulled ones, and those in the hub's cache."""
    found = names()
    if models_folder().is_dir():
        found += sorted(entry.name for entry in models_folder().iterdir() if _is_here(entry))
    fetched = [
        Model(str(model.id), model.folder, model.nbytes, "Hugging Face hub", _what_it_is(model.folder), True)
        for model in cached_models()
        if _what_it_is(model.folder)
    ]
    return [_describe(name) for name in dict.fromkeys(found)] + fetched


def folder_of(name: str) -> Path | None:
    """The folder of a named model, None where it is not here."""
    if name in BUNDLED:
        return BUNDLED[name]
    if is_hub_id(name):
        snapshot = find_snapshot(parse_hub_id(name))
        return None if snapshot is None or missing_files(snapshot) else snapshot
    if name in ("", ".", "..") or set(name) & set("/\\:\0"):
        return None
    folder = models_folder() / name
    return folder if _is_here(folder) else None


def resolve(name_or_path: str | Path = DEFAULT, offline: bool = False) -> Path:
    """The folder of a model that was asked for by a folder, a name of the list, or a hub id.

    A folder goes before a name. Opens no socket: what is not here is fetched by `pull`, never unasked.
    Raises MissingModelError, saying what is possible.
    """
    asked = str(name_or_path)
    path = Path(name_or_path).expanduser()
    if "\0" in asked or not asked:
        raise MissingModelError(f"{asked!r} is not the name of a model; possible: {', '.join(_known())}")
    with explained(path):
        if path.is_dir() and (path / "config.json").exists():
            return path
        if path.is_file():
            raise MissingModelError(_explain_file(path))
        folder = folder_of(asked)
        if folder is not None:
            return folder
        if asked in WHEELS:
            raise MissingModelError(f"{asked} is not here yet; fetch it with: tinylm pull {asked}")
        if path.is_dir():
            raise MissingModelError(f"{path}: this folder has no config.json, so it is not a model's")
    if isinstance(name_or_path, str) and is_hub_id(asked):
        return resolve_hub(asked, offline)
    raise MissingModelError(_explain_missing(asked, path))


def is_pullable(name: str) -> bool:
    """Whether this is a name of the catalog, or a hub id, that is not here and that `pull` can fetch."""
    return (name in WHEELS or is_hub_id(name)) and folder_of(name) is None


def pull(
    name: str, progress: Progress | None = None, offline: bool = False, wheel: str | Path | None = None
) -> Path:
    """Fetches a model of the catalog or of the hub and returns its folder.

    At once where it is already here; a branch of the hub is looked at for something newer. `wheel` is the
    file of the wheel where a person has it. Raises MissingModelError for other names, SourceError where
    it fails.
    """
    folder = folder_of(name)
    if is_hub_id(name) and wheel is None and (folder is None or not offline):
        return pull_hub(name, progress, offline)
    if folder is not None:
        return folder
    if name not in WHEELS:
        raise MissingModelError(
            f"{name!r} cannot be pulled{_suggest(name, WHEELS)}; possible: {', '.join(WHEELS)}, or "
            "OWNER/NAME of the Hugging Face hub"
        )
    if offline and wheel is None:
        raise SourceError(f"{name} is not here, and to fetch it a network is needed, which --offline forbids")
    return pull_wheel(WHEELS[name], models_folder() / name, progress, wheel)


def remove(name: str) -> int:
    """Deletes a pulled model and returns the bytes that this freed.

    Raises MissingModelError where it is not here, SourceError where it is part of tinylm or in use.
    """
    if name in BUNDLED:
        raise SourceError(f"{name} is part of tinylm and cannot be removed")
    if is_hub_id(name):
        id = parse_hub_id(name)
        if str(id) != id.repository:
            raise SourceError(f"the revisions of a model are removed together: give {id.repository}")
        with explained(cache_folder()):
            return remove_cached(id)
    folder = folder_of(name)
    if folder is None:
        pulled = [model.name for model in list_models() if model.folder and model.name not in BUNDLED]
        raise MissingModelError(
            f"{name!r} is not here; {'there are ' + ', '.join(pulled) if pulled else 'none is'}"
        )
    freed = _size(folder)
    with explained(folder), scratch_folder(folder) as scratch:
        folder.rename(scratch / folder.name)  # at once gone from the list, however long the deleting takes
    return freed


def _is_here(folder: Path) -> bool:
    return not folder.name.startswith(".") and (folder / "config.json").is_file()


def _describe(name: str) -> Model:
    folder, wheel = folder_of(name), WHEELS.get(name)
    description = DESCRIPTIONS.get(name, "")
    if name in BUNDLED:
        return Model(name, folder, _size(BUNDLED[name]), "part of tinylm", description, False)
    source = f"package index: {wheel.requirement}" if wheel else ""
    if folder is None:
        return Model(name, None, wheel.model_bytes if wheel else 0, source, description, wheel is not None)
    return Model(
        name, folder, _size(folder), source or _recorded_source(folder), description, wheel is not None
    )


def _what_it_is(folder: Path) -> str:
    """The type of a model that writes text; empty for other things, which the hub's cache may hold too."""
    try:
        config = read_json_object(folder / "config.json")
    except CheckpointError:
        return ""
    writes = any(str(name).endswith("ForCausalLM") for name in config.get("architectures") or ())
    return str(config.get("model_type")) if writes else ""


def _recorded_source(folder: Path) -> str:
    try:
        record = read_json_object(folder / SOURCE_FILE)
    except CheckpointError:
        return ""
    return str(record.get("package") or record.get("gguf") or "")


def _size(folder: Path) -> int:
    return sum(
        file.stat().st_size
        for file in folder.rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc")
    )


def _known() -> list[str]:
    return [model.name for model in list_models()]


def _suggest(asked: str, possible: Iterable[str]) -> str:
    by_lower_case = {name.lower(): name for name in possible}
    close = difflib.get_close_matches(asked.lower(), list(by_lower_case), n=1, cutoff=0.5)
    return f" (did you mean {by_lower_case[close[0]]}?)" if close else ""


def _explain_file(path: Path) -> str:
    if path.suffix == ".gguf":
        return (
            f"{path}: a GGUF file is not run as it is; make a model folder of it first: "
            f"tinylm import {path} {path.with_suffix('')}"
        )
    if path.name == "config.json" or path.suffix == ".safetensors":
        return f"{path}: give the folder of the model instead: {path.parent}"
    return (
        f"{path}: a file, where a model's folder or name is expected; possible names: {', '.join(_known())}"
    )


def _explain_missing(asked: str, path: Path) -> str:
    known = _known()
    try:
        neighbours = [str(path.parent / entry.name) for entry in path.parent.iterdir() if _is_here(entry)]
    except OSError:
        neighbours = []
    return (
        f"no model {asked!r}{_suggest(asked, [*known, *neighbours])}; "
        f"possible: a model's folder, or one of {', '.join(known)}"
    )
