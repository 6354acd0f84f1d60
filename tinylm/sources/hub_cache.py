"""The cache of the Hugging Face hub on this machine, read without its library and without a network.

It is the cache that transformers and others fill too: `models--OWNER--NAME` with `refs/REVISION` (a file
that holds a commit), `snapshots/COMMIT/FILE` and `blobs`. Environment variables as huggingface_hub's.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tinylm.checkpoint import INDEX_FILE, SINGLE_FILE, read_json_object
from tinylm.errors import CheckpointError, MissingModelError

PART = r"(?=[\w.-]{1,96}(?:/|@|$))\w(?:[\w.-]*\w)?"
HUB_ID = re.compile(rf"({PART}/{PART})(?:@([\w][\w./-]{{0,199}}))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
DEFAULT_REVISION = "main"
ONE_FILE_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class HubId:
    """A repository of the hub, `owner/name`, at a branch, a tag or a commit."""

    repository: str
    revision: str = DEFAULT_REVISION

    def __str__(self) -> str:
        at = "" if self.revision == DEFAULT_REVISION else f"@{self.revision}"
        return self.repository + at


@dataclass(frozen=True)
class CachedModel:
    """A model in the hub's cache: its id, the folder of its files, and its bytes on the disk."""

    id: HubId
    folder: Path
    nbytes: int


def is_hub_id(text: str) -> bool:
    """Whether this has the form `owner/name` or `owner/name@revision`."""
    match = HUB_ID.fullmatch(text)
    return (
        bool(match) and not any(bad in text for bad in ("..", "--", "//", "@/")) and not text.endswith(".git")
    )


def parse_hub_id(text: str) -> HubId:
    """`owner/name[@revision]` taken apart. Raises MissingModelError for anything else."""
    match = HUB_ID.fullmatch(text)
    if match is None or not is_hub_id(text):
        raise MissingModelError(
            f"{text!r} is not a model of the hub; the form is owner/name or owner/name@revision, "
            "of letters, digits, '-', '_' and '.'"
        )
    return HubId(match[1], match[2] or DEFAULT_REVISION)


def is_true(value: str | None) -> bool:
    """Whether an environment variable is switched on, as huggingface_hub reads it."""
    return (value or "").upper() in {"1", "ON", "YES", "TRUE"}


def is_offline() -> bool:
    """Whether the environment forbids the hub's network: HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE."""
    return is_true(os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE"))


def cache_folder() -> Path:
    """The hub's cache: HF_HUB_CACHE, else `hub` in HF_HOME, else in the user's cache. It may not exist."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(caches, "huggingface")
    folder = (
        os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    )
    return Path(os.path.expandvars(os.path.expanduser(folder)))


def repository_folder(id: HubId) -> Path:
    """Where a repository lies in the cache, all its revisions together."""
    return cache_folder() / f"models--{id.repository.replace('/', '--')}"


def find_snapshot(id: HubId) -> Path | None:
    """The folder with the files of a revision, whole or not; None where nothing of it is here."""
    folder = repository_folder(id)
    commit = id.revision
    if not COMMIT.fullmatch(commit):
        try:
            commit = (folder / "refs" / id.revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
        if not COMMIT.fullmatch(commit):
            return None
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def weight_files(folder: Path) -> list[str]:
    """The files of weights that a model folder needs, by its index where it has one."""
    if (folder / SINGLE_FILE).exists() or not (folder / INDEX_FILE).exists():
        return [SINGLE_FILE]
    try:
        return shards(read_json_object(folder / INDEX_FILE))
    except CheckpointError:
        return [INDEX_FILE]


def shards(index: dict[str, object]) -> list[str]:
    """The files that an index of shards names. Raises CheckpointError where it names other things."""
    weight_map = index.get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or not all(
        isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names
    ):
        raise CheckpointError(f"{INDEX_FILE}: 'weight_map' does not name files of weights")
    return sorted(str(name) for name in names)


def missing_files(folder: Path) -> list[str]:
    """What a snapshot lacks to be run: an interrupted download leaves some files out."""
    needed: Iterable[str] = ("config.json", ONE_FILE_TOKENIZER, *weight_files(folder))
    return [name for name in needed if not (folder / name).exists()]


def cached_models() -> list[CachedModel]:
    """The whole models in the cache, each at the revision that was fetched by name (or by commit)."""
    found = []
    try:
        folders = sorted(cache_folder().glob("models--*--*"))
    except OSError:
        return []
    for folder in folders:
        repository = "/".join(folder.name.split("--")[1:])
        if not is_hub_id(repository):
            continue
        refs = [file for file in (folder / "refs").rglob("*") if file.is_file()]
        names = [file.relative_to(folder / "refs").as_posix() for file in refs]
        named = [
            HubId(repository, name)
            for name in sorted(names, key=lambda name: (name != DEFAULT_REVISION, name))
        ]
        known = {snapshot for id in named if (snapshot := find_snapshot(id))}
        others = [
            HubId(repository, path.name) for path in (folder / "snapshots").glob("*") if path not in known
        ]
        for id in (*named, *others):
            snapshot = find_snapshot(id)
            if snapshot is not None and not missing_files(snapshot):
                found.append(CachedModel(id, snapshot, folder_bytes(snapshot)))
    return found


def folder_bytes(folder: Path) -> int:
    """The bytes of the files in a snapshot, wherever its links lead."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def remove_cached(id: HubId) -> int:
    """Deletes a repository, with all its revisions, from the cache; the bytes that this freed."""
    folder = repository_folder(id)
    if not folder.is_dir():
        raise MissingModelError(f"{id} is not in the hub's cache ({cache_folder()})")
    freed = sum(
        file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink()
    )
    shutil.rmtree(folder)
    return freed
