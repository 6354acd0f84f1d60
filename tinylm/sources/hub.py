"""Models of the Hugging Face hub: found in its cache, fetched through huggingface_hub (extra `hub`).

What is looked up is looked up in the cache, and no socket is opened for it; only `pull_hub` uses the
network. It fetches what a model needs to run, never code and never pickled weights, checks each file
against the hash that the hub keeps for it, and leaves everything in the hub's own cache.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tinylm.checkpoint import INDEX_FILE, SINGLE_FILE, read_json_object
from tinylm.errors import MissingExtraError, MissingModelError, SourceError, TinylmError
from tinylm.sources.hub_cache import (
    ONE_FILE_TOKENIZER,
    HubId,
    cache_folder,
    find_snapshot,
    is_offline,
    missing_files,
    parse_hub_id,
    repository_folder,
    shards,
)
from tinylm.sources.write import check_room, explained

SMALL_FILES = (
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
POLL_SECONDS = 0.1
WRONG_SIZE = "Consistency check failed"
"""How huggingface_hub's message begins for a file whose size is not what the hub said."""
BROKEN_CONNECTIONS = (
    "ChunkedEncodingError",
    "ConnectionError",
    "RemoteProtocolError",
    "ReadError",
    "ReadTimeout",
)
"""What the HTTP libraries under huggingface_hub call it; they changed with its versions."""

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)` in bytes; the stages are "downloading" and "checking"."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its size in bytes and its hash (SHA-256, or git's SHA-1 for small files)."""

    name: str
    nbytes: int
    sha256: str | None
    git_sha1: str | None

    @property
    def blob(self) -> str:
        """Its name among the cache's blobs."""
        return self.sha256 or self.git_sha1 or ""


def endpoint() -> str:
    """The address of the hub: HF_ENDPOINT, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def resolve_hub(id: str, offline: bool = False) -> Path:
    """The folder of a model of the hub that is in the cache; no socket is opened.

    Raises MissingModelError where it is not here, or only in part, saying how to fetch it.
    """
    wanted = parse_hub_id(id)
    snapshot = find_snapshot(wanted)
    forbidden = offline or is_offline()
    way = "a network is needed to fetch it, which --offline or HF_HUB_OFFLINE forbids"
    if not forbidden:
        way = f"fetch it with: tinylm pull {wanted}"
    if snapshot is None:
        raise MissingModelError(f"{wanted} is not in the hub's cache ({cache_folder()}); {way}")
    missing = missing_files(snapshot)
    if missing:
        raise MissingModelError(f"{wanted} is here only in part, without {', '.join(missing)}; {way}")
    return snapshot


def pull_hub(id: str, progress: Progress | None = None, offline: bool = False) -> Path:
    """Fetches `owner/name[@revision]` into the hub's cache and returns its folder.

    What is there already is not fetched again. A connection that breaks is taken up where it broke; what
    is whole stays in the cache whatever happens. Raises MissingModelError for a name that is none,
    SourceError where it fails: offline, no network, no such repository or revision, gated, a model in
    another form, a full disk, a file that differs from its hash. Raises MissingExtraError without
    huggingface_hub.
    """
    wanted = parse_hub_id(id)
    require_network(wanted, offline)
    report = progress or (lambda stage, done, total: None)
    with explained(repository_folder(wanted)), explained_hub(wanted), quiet_bars():
        commit, files = look_up(wanted)
        # The first file by the revision's name, for which the hub's library notes the commit.
        first = fetch(wanted, files["config.json"], wanted.revision)
        if first.parent.name != commit:
            raise SourceError(f"{wanted} was changed just now; pull it again")
        needed = [*small_files(files), *choose_weights(wanted, files, commit)]
        left = [file for file in needed if not (first.parent / file.name).exists()]
        check_room(cache_folder(), sum(file.nbytes for file in left))
        fetch_all(wanted, left, commit, report)
    return first.parent


def remote_size(id: str) -> int:
    """The bytes of the files that `pull_hub` would fetch for a model; asks the hub, and fetches none of them.

    Raises what `pull_hub` raises.
    """
    wanted = parse_hub_id(id)
    require_network(wanted, False)
    with explained_hub(wanted), quiet_bars():
        _, files = look_up(wanted)
    weights = [files[SINGLE_FILE]] if SINGLE_FILE in files else []
    if not weights:  # of an index only the hub's copy knows the shards: these are their usual names
        weights = [files[INDEX_FILE]]
        weights += [
            file for name, file in files.items() if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)
        ]
    return sum(file.nbytes for file in (files["config.json"], *small_files(files), *weights))


def require_network(id: HubId, offline: bool) -> None:
    """Raises SourceError where the network is forbidden, MissingExtraError without huggingface_hub."""
    if offline or is_offline():
        raise SourceError(f"{id}: a network is needed, which --offline or HF_HUB_OFFLINE forbids")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise MissingExtraError("hub", f"fetching {id} from the hub") from None


def look_up(id: HubId) -> tuple[str, dict[str, RemoteFile]]:
    """The commit of a revision and its files by name, as the hub describes them; checked to be a model."""
    import huggingface_hub

    info = huggingface_hub.HfApi(endpoint=endpoint()).model_info(
        id.repository, revision=id.revision, files_metadata=True
    )
    files = {file.name: file for file in remote_files(info)}
    check_form(id, files)
    return str(info.sha), files


def remote_files(info: Any) -> Iterator[RemoteFile]:
    """The files of a repository, from huggingface_hub's description of it."""
    for entry in info.siblings or ():
        lfs = entry.lfs
        sha256 = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
        yield RemoteFile(entry.rfilename, entry.size or 0, sha256, None if sha256 else entry.blob_id)


def small_files(files: dict[str, RemoteFile]) -> list[RemoteFile]:
    """The files beside config.json and the weights that are needed."""
    return [
        file
        for name, file in sorted(files.items())
        if any(
            fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in SMALL_FILES
        )
    ]


def check_form(id: HubId, files: dict[str, RemoteFile]) -> None:
    """Raises SourceError for a repository in which there is no model that can be run."""
    if SINGLE_FILE not in files and INDEX_FILE not in files:
        found = "no weights"
        if any(name.endswith(".bin") for name in files):
            found = "only pickled weights (*.bin), which can carry code and are never loaded"
        elif any(name.endswith(".gguf") for name in files):
            found = "only GGUF files (download one, and make a folder of it: tinylm import FILE.gguf DIR)"
        elif "adapter_config.json" in files:
            found = "only an adapter, to be merged into its model first"
        raise SourceError(f"{id}: a model.safetensors is needed, and there are {found}")
    for name in ("config.json", ONE_FILE_TOKENIZER):
        if name not in files:
            raise SourceError(f"{id}: there is no {name}, without which the model cannot be run")


def choose_weights(id: HubId, files: dict[str, RemoteFile], commit: str) -> list[RemoteFile]:
    """The files of weights: the single one, or the index's shards, as the checkpoint reader would."""
    if SINGLE_FILE in files:
        return [files[SINGLE_FILE]]
    index = fetch(id, files[INDEX_FILE], commit)
    names = shards(read_json_object(index))
    for name in names:
        if name not in files:
            raise SourceError(f"{id}: {INDEX_FILE} names {name}, which is not there")
    return [files[name] for name in names]


def fetch_all(id: HubId, files: list[RemoteFile], commit: str, report: Progress) -> None:
    """Fetches files under one progress."""
    total, before = sum(file.nbytes for file in files), 0
    if files:
        report("downloading", 0, total)

    def report_all(stage: str, done: int, _: int) -> None:
        report(stage, before + done, total)

    for file in files:
        fetch(id, file, commit, report_all)
        before += file.nbytes
    if files:
        report("downloading", total, total)


def fetch(id: HubId, file: RemoteFile, revision: str, progress: Progress | None = None) -> Path:
    """One file from the hub or the cache -> its path in the cache, checked if it is new."""
    report = progress or (lambda stage, done, total: None)
    blobs = repository_folder(id) / "blobs"
    is_new = not (blobs / file.blob).exists()
    with watched(blobs, file, report):
        path = download(id, file, revision, blobs)
    if is_new:
        check_hash(id, file, path, report)
    return path


def download(id: HubId, file: RemoteFile, revision: str, blobs: Path) -> Path:
    """One file by huggingface_hub, which takes up a broken connection now in this call, now in the next.

    So there is a next, as long as what came before it was kept and grew.
    """
    from huggingface_hub import hf_hub_download

    kept = -1
    while True:
        try:
            return Path(
                hf_hub_download(
                    id.repository, file.name, revision=revision, cache_dir=cache_folder(), endpoint=endpoint()
                )
            )
        except Exception as error:
            parts = [part for part in blobs.glob(f"{file.blob}*.incomplete") if file.blob]
            if WRONG_SIZE in str(error):
                for part in parts:
                    part.unlink()
                raise
            before, kept = kept, sum(part.stat().st_size for part in parts)
            if type(error).__name__ not in BROKEN_CONNECTIONS or kept <= max(before, 0):
                raise


@contextmanager
def watched(blobs: Path, file: RemoteFile, report: Progress) -> Iterator[None]:
    """Reports how much of a file is here while it is being fetched.

    The parts lie beside the blobs under a name that begins with the blob's; the progress hooks of
    huggingface_hub changed from version to version, this did not.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            with suppress(OSError):
                here = sum(part.stat().st_size for part in blobs.glob(f"{file.blob}*"))
                report("downloading", min(here, file.nbytes), file.nbytes)

    watcher = threading.Thread(target=watch, daemon=True)
    if file.blob:
        watcher.start()
    try:
        yield
    finally:
        done.set()
        if file.blob:
            watcher.join()


def check_hash(id: HubId, file: RemoteFile, path: Path, report: Progress) -> None:
    """Compares a fetched file with the hub's hash; removes it and raises SourceError where they differ.

    huggingface_hub compares sizes alone.
    """
    expected = file.sha256 or file.git_sha1
    if not expected:
        return
    digest = hashlib.sha256()
    if not file.sha256:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)  # as git does
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            if file.nbytes > 1 << 26:
                report("checking", stream.tell(), file.nbytes)
    if digest.hexdigest() == expected:
        return
    blob = Path(os.path.realpath(path))
    for damaged in {path, blob}:
        damaged.unlink(missing_ok=True)
    raise SourceError(
        f"{id}: {file.name} arrived damaged (its hash is {digest.hexdigest()[:16]}..., the hub says "
        f"{expected[:16]}...). It was removed; pull again"
    )


@contextmanager
def quiet_bars() -> Iterator[None]:
    """Keeps huggingface_hub's own progress bars and warnings out of the way of ours."""
    utils: Any = importlib.import_module("huggingface_hub.utils")  # whose names are there only when asked for
    verbosity, shown = utils.logging.get_verbosity(), not utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        utils.logging.set_verbosity(verbosity)
        if shown:
            utils.enable_progress_bars()


@contextmanager
def explained_hub(id: HubId) -> Iterator[None]:
    """Turns the errors of huggingface_hub into SourceErrors that say what to do; the system's it lets pass."""
    try:
        yield
    except TinylmError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and type(error).__module__ == "builtins":
            raise
        raise SourceError(explain(id, error)) from None


def explain(id: HubId, error: BaseException) -> str:
    """What went wrong, for a person."""
    from huggingface_hub import errors

    hub = endpoint()
    page = f"{hub}/{id.repository}"
    login = "log in with `hf auth login`, or set HF_TOKEN to a token of yours"
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, errors.HfHubHTTPError):
        cause = cause.__cause__
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(cause, errors.GatedRepoError):
        if status == 401:
            return (
                f"{id} is gated: its authors ask for consent. Open {page} in a browser, log in and accept "
                f"their terms; then {login} ({hub}/settings/tokens) and pull again"
            )
        return (
            f"{id} is gated, and the account of your token has no access. Open {page} in a browser with "
            "that account and accept the terms (some authors answer only after a while), then pull again"
        )
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"{id.repository} has no revision {id.revision!r}; see {page}/tree/main"
    if isinstance(cause, errors.RepositoryNotFoundError):
        return (
            f"the hub at {hub} has no {id.repository}, or it is private and not shown to you: check the "
            f"spelling, or {login}"
        )
    if isinstance(cause, errors.EntryNotFoundError):
        return f"{id}: a file is not there any more; pull it again"
    if status == 401:
        return f"the hub does not accept your token: {login}"
    if status == 403:
        return f"{id}: the hub forbids it (403): your token may lack the right to read; {login}"
    if status == 429:
        return f"{id}: the hub is asked too often from here (429); wait a little, or {login}"
    if status is not None:
        return f"{id}: the hub at {hub} answers {status}; try again later"
    if WRONG_SIZE in str(error):
        return f"{id}: a file came with another size than the hub says; it was not kept, pull again"
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    said = re.sub(r"\s+", " ", str(root)).strip()[:200] or type(root).__name__
    return f"{id}: the hub at {hub} cannot be reached or does not answer as a hub: {said}"
