"""Offline, and for what is here, not one socket is opened."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tinylm

ROOT = Path(__file__).resolve().parents[2]
FORBID = """
import socket, sys

def forbid(event, arguments):
    if event.startswith("socket."):
        raise SystemExit(f"a socket was used: {event} {arguments}")

class NoSocket(socket.socket):
    def __init__(self, *arguments, **keywords):
        raise SystemExit("a socket was opened")

sys.addaudithook(forbid)
socket.socket = NoSocket
"""


def run(code: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {
        "HF_HOME": str(home),
        "TINYLM_MODEL": "",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        **variables,
    }
    return subprocess.run(
        [sys.executable, "-c", FORBID + code],
        capture_output=True, text=True, check=False, timeout=300, env=environment,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The story model in the hub's cache, as `someone/stories`."""
    repository = tmp_path / "hub" / "models--someone--stories"
    snapshot = repository / "snapshots" / ("a" * 40)
    shutil.copytree(Path(tinylm.__file__).parent / "stories260k", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40, encoding="ascii")
    return snapshot


def test_the_net_is_tight() -> None:
    for code in (
        "socket.socket()",
        "import _socket; _socket.socket()",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
    ):
        done = run(code, ROOT)
        assert done.returncode == 1
        assert "a socket was" in done.stderr


@pytest.mark.parametrize("offline", [True, False])
def test_the_library_opens_none_for_what_is_here(folder: Path, tmp_path: Path, offline: bool) -> None:
    code = f"""
import tinylm
for name in (None, {str(folder)!r}, "someone/stories", "someone/stories@main"):
    lm = tinylm.load(**({{}} if name is None else {{"model": name}}), offline={offline})
    assert lm.generate("Once", max_new_tokens=3).text
for name in ("someone/else", "smollm2-135m-instruct-x", "no/such/folder"):
    try:
        tinylm.load(name, offline={offline})
    except tinylm.errors.MissingModelError as error:
        print(error)
"""
    done = run("import tinylm.errors" + code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert ("forbids" if offline else "tinylm pull someone/else") in done.stdout


@pytest.mark.parametrize("variables", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_the_command_line_opens_none(folder: Path, tmp_path: Path, variables: dict[str, str]) -> None:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        code = f"from tinylm.cli import main\nraise SystemExit(main({list(words)!r}))"
        return run(code, tmp_path, **variables)

    offline = [] if variables else ["--offline"]
    for model in (str(folder), "someone/stories", "stories260k"):
        done = command("generate", "Once", "-n", "3", "-q", "--model", model, *offline)
        assert (done.returncode, done.stdout.strip() != "") == (0, True), done.stderr
    listed = json.loads(command("list", "--json").stdout)
    assert [entry["name"] for entry in listed if entry["source"] == "Hugging Face hub"] == ["someone/stories"]
    for words in (["generate", "Once", "--model", "someone/else", "--yes"], ["pull", "someone/else"]):
        done = command(*words, *offline)
        assert done.returncode == 1
        assert "forbids" in done.stderr
        assert "socket" not in done.stderr
