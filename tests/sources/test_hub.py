"""Fetching from the hub: the real huggingface_hub before a local stand-in of the hub's server."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import tinylm
from tinylm.cli import main
from tinylm.errors import MissingExtraError, SourceError, TinylmError
from tinylm.sources.hub import pull_hub, remote_size, resolve_hub

ROOT = Path(__file__).resolve().parents[2]
COMMIT, OLDER = "a" * 40, "b" * 40
BIG = bytes(range(256)) * 4096  # a megabyte


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """What the server serves, and what it was asked for."""

    def __init__(self) -> None:
        small = {
            "config.json": b'{"model_type": "llama"}',
            "tokenizer.json": b'{"version": "1.0"}',
            "tokenizer_config.json": b"{}",
            "generation_config.json": b"{}",
            "chat_template.jinja": b"{{ messages }}",
            "README.md": b"# A model",
            "modeling_evil.py": b"raise SystemExit",
            "pytorch_model.bin": b"pickle",
            "training_args.bin": b"pickle",
            "onnx/model.onnx": b"onnx",
            "onnx/config.json": b"{}",
        }
        self.files = {
            COMMIT: {**small, "model.safetensors": BIG},
            OLDER: {**small, "model.safetensors": BIG[:999]},
        }
        self.revisions = {"main": COMMIT, "v1.0": OLDER, COMMIT: COMMIT, OLDER: OLDER}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.private = self.gated = False
        self.accepted_tokens: set[str] = set()
        self.cut_after: int | None = None  # cut the next answers' bodies after so many bytes
        self.held: threading.Event | None = None  # half of the weights are sent, the rest when this is set
        self.damaged: bytes | None = None  # what is sent instead of the weights
        self.damaged_config = False
        self.status = 0  # answer everything so

    def is_lfs(self, name: str) -> bool:
        return name.endswith((".safetensors", ".bin", ".onnx"))


class Handler(BaseHTTPRequestHandler):
    """The parts of the hub's interface that huggingface_hub uses: model info, HEAD and GET of files."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        body = json.dumps({"error": message}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer(self, with_body: bool) -> None:
        hub = self.server.hub
        hub.requests.append(
            (self.command, self.path, {key.lower(): value for key, value in self.headers.items()})
        )
        path = self.path.partition("?")[0]
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if hub.status:
            return self.refuse(hub.status, message="as it was told")
        if path.startswith("/cdn/"):
            return self.send_file(path.removeprefix("/cdn/"), {}, with_body)
        if token and token not in hub.accepted_tokens | {"no-access"}:
            return self.refuse(401, message="Invalid credentials in Authorization header")
        parts = path.strip("/").split("/")
        is_info = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if is_info else parts
        if (owner, name) != ("someone", "small-model") or (hub.private and token not in hub.accepted_tokens):
            return self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        revision = rest[1] if rest else "main"
        if revision not in hub.revisions:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        commit = hub.revisions[revision]
        if is_info:
            return self.send_info(commit)
        if hub.gated and token not in hub.accepted_tokens:
            return self.refuse(403 if token else 401, "GatedRepo", "Access to this model is restricted")
        file = "/".join(rest[2:])
        if file not in hub.files[commit]:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        content = hub.files[commit][file]
        headers = {"X-Repo-Commit": commit}
        if not hub.is_lfs(file):
            return self.send_file(
                f"{commit}/{file}", {**headers, "ETag": f'"{git_sha1(content)}"'}, with_body
            )
        # Large files lie elsewhere: a redirect to another host, where no token may go.
        self.send_response(302)
        headers |= {
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"http://localhost:{self.server.server_port}/cdn/{commit}/{file}",
            "Content-Length": "0",
        }
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        return None

    def send_info(self, commit: str) -> None:
        hub = self.server.hub
        siblings = []
        for name, content in hub.files[commit].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
            if hub.is_lfs(name):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        body = json.dumps({"id": "someone/small-model", "sha": commit, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, place: str, headers: dict[str, str], with_body: bool) -> None:
        hub = self.server.hub
        commit, _, name = place.partition("/")
        content = hub.files[commit][name]
        if hub.damaged_config and name == "config.json":
            content = content.replace(b"llama", b"LLAMA")
        if hub.damaged is not None and name.endswith(".safetensors"):
            content = hub.damaged
        start, status = 0, 200
        if "Range" in self.headers:
            start, status = int(self.headers["Range"].removeprefix("bytes=").split("-")[0]), 206
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content) - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if not with_body:
            return
        if hub.cut_after is not None and name.endswith(".safetensors"):
            self.wfile.write(content[start : start + hub.cut_after])
            self.wfile.flush()
            hub.cut_after = None
            self.close_connection = True
            self.connection.shutdown(2)
            return
        half = len(content) // 2
        if hub.held is not None and name.endswith(".safetensors"):
            self.wfile.write(content[start:half])
            self.wfile.flush()
            hub.held.wait(60)
            start = half
        self.wfile.write(content[start:])


class Server(ThreadingHTTPServer):
    """The stand-in."""

    hub: Hub
    daemon_threads = True


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no settings of the person who runs the tests."""
    for name in [*os.environ]:
        if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_OFFLINE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    return tmp_path


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(home / "token"))
    with Server(("127.0.0.1", 0), Handler) as it:
        it.hub = Hub()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{it.server_port}")
        thread = threading.Thread(target=lambda: it.serve_forever(0.02), daemon=True)
        thread.start()
        yield it
        it.shutdown()


def run(code: str) -> subprocess.CompletedProcess[str]:
    """A new process, which reads the environment anew."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def pull(id: str = "someone/small-model") -> Path:
    """The folder of a pulled model, with a look at its progress."""
    seen: list[tuple[str, int, int]] = []
    folder = pull_hub(id, lambda *parts: seen.append(parts))
    if seen:
        assert seen[-1][1] == seen[-1][2] > 0
        assert len({total for stage, _, total in seen if stage == "downloading"}) == 1, (
            "one bar for all files"
        )
    return folder


def fail(id: str = "someone/small-model") -> str:
    """What is said of a pull that fails."""
    with pytest.raises(SourceError) as caught:
        pull_hub(id)
    return str(caught.value)


def test_pull_fetches_what_is_needed_and_nothing_else(home: Path, server: Server) -> None:
    folder = pull()
    assert folder == home / "hub" / "models--someone--small-model" / "snapshots" / COMMIT
    assert sorted(file.name for file in folder.rglob("*")) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert (folder / "model.safetensors").read_bytes() == BIG
    asked = [path for _, path, _ in server.hub.requests]
    assert not [path for path in asked if path.endswith((".bin", ".py", ".md", ".onnx"))]
    assert resolve_hub("someone/small-model", offline=True) == folder

    # A second time no file is fetched.
    server.hub.requests.clear()
    assert (
        pull_hub("someone/small-model", lambda *parts: pytest.fail(f"nothing is fetched, but {parts}"))
        == folder
    )
    assert not [path for command, path, _ in server.hub.requests if command == "GET" and "/api/" not in path]


def test_the_cache_is_one_that_the_hubs_library_reads(
    home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pull()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = run(
        "from huggingface_hub import snapshot_download\n"
        "print(snapshot_download('someone/small-model', allow_patterns=['*.json', '*.safetensors']))"
    )
    assert Path(done.stdout.strip()) == folder, done.stderr


def test_revisions(server: Server) -> None:
    newer, older = pull(), pull("someone/small-model@v1.0")
    assert (newer.name, older.name) == (COMMIT, OLDER)
    assert (older / "model.safetensors").read_bytes() == BIG[:999]
    assert pull(f"someone/small-model@{OLDER}") == older
    assert fail("someone/small-model@v9").startswith("someone/small-model has no revision 'v9'")


def test_a_cut_connection_is_taken_up_where_it_broke(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = BIG * 12  # huggingface_hub keeps what came in steps of 10 MB
    server.hub.files[COMMIT]["model.safetensors"] = weights
    server.hub.cut_after = 11_000_000
    assert (pull() / "model.safetensors").read_bytes() == weights
    ranges = [headers["range"] for _, path, headers in server.hub.requests if "range" in headers]
    assert len(ranges) == 1
    assert 0 < int(ranges[0].removeprefix("bytes=").rstrip("-")) <= 11_000_000
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_leaves_nothing_and_the_next_pull_works(home: Path, server: Server) -> None:
    if sys.platform == "win32":
        pytest.skip("no SIGINT for one process")
    server.hub.held = threading.Event()
    child = subprocess.Popen(
        [sys.executable, "-m", "tinylm", "pull", "someone/small-model"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        while not any("/cdn/" in asked and way == "GET" for way, asked, _ in [*server.hub.requests]):
            time.sleep(0.02)
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
        server.hub.held.set()
    assert (child.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted"
    assert (pull() / "model.safetensors").read_bytes() == BIG
    large = [file for file in home.rglob("blobs/*") if file.stat().st_size > 1000]
    assert [file.stat().st_size for file in large] == [len(BIG)]


def test_gated(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.hub.gated = True
    server.hub.accepted_tokens = {"hf_mine"}
    said = fail()
    assert "is gated: its authors ask for consent" in said
    assert f"http://127.0.0.1:{server.server_port}/someone/small-model in a browser" in said
    assert "`hf auth login`" in said
    assert "HF_TOKEN" in said
    monkeypatch.setenv("HF_TOKEN", "no-access")
    assert "the account of your token has no access" in fail()
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "does not accept your token" in fail()
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert (pull() / "model.safetensors").read_bytes() == BIG
    told = [path for _, path, headers in server.hub.requests if "hf_mine" in headers.get("authorization", "")]
    assert told
    assert not [path for path in told if path.startswith("/cdn/")]


def test_private_and_unknown(server: Server) -> None:
    assert "has no someone/other, or it is private" in fail("someone/other")
    server.hub.private = True
    assert "has no someone/small-model, or it is private" in fail()


@pytest.mark.parametrize("status", [403, 500])
def test_a_hub_in_trouble(server: Server, status: int) -> None:
    server.hub.status = status
    said = fail()
    assert said.startswith("someone/small-model")
    assert str(status) in said


def test_no_hub_at_all(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fail().startswith("someone/small-model: the hub at http://127.0.0.1:9 cannot be reached")


@pytest.mark.parametrize("sent", [BIG[:-1] + b"x", BIG + b"more", b""])
def test_a_file_of_another_hash_or_size_is_not_kept(home: Path, server: Server, sent: bytes) -> None:
    server.hub.damaged = sent
    said = fail()
    assert "damaged" in said if len(sent) == len(BIG) else "another size" in said
    assert not [file for file in (home / "hub").rglob("*") if file.is_file() and file.stat().st_size > 1000]
    server.hub.damaged = None
    assert (pull() / "model.safetensors").read_bytes() == BIG


def test_a_small_file_of_another_hash_is_not_kept(server: Server) -> None:
    server.hub.damaged_config = True
    assert "config.json arrived damaged" in fail()
    server.hub.damaged_config = False
    assert (pull() / "config.json").read_bytes() == server.hub.files[COMMIT]["config.json"]


def test_shards_are_those_of_the_index(server: Server) -> None:
    files = server.hub.files[COMMIT]
    del files["model.safetensors"]
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    files["model.safetensors.index.json"] = json.dumps(
        {"weight_map": dict(zip("ab", names, strict=True))}
    ).encode()
    files |= {names[0]: b"one", names[1]: b"two", "consolidated.safetensors": b"three"}
    assert sorted(file.name for file in pull().glob("*.safetensors")) == names


@pytest.mark.parametrize("escape", ["../../evil.safetensors", "gone.safetensors", 5])
def test_an_index_that_names_other_things(server: Server, escape: object) -> None:
    files = server.hub.files[COMMIT]
    del files["model.safetensors"]
    files["model.safetensors.index.json"] = json.dumps({"weight_map": {"a": escape}}).encode()
    with pytest.raises(TinylmError, match=r"gone.safetensors, which is not there|does not name files"):
        pull()


@pytest.mark.parametrize(
    ("gone", "added", "said"),
    [
        ("model.safetensors", "", "only pickled weights"),
        ("tokenizer.json", "", "there is no tokenizer.json"),
        ("config.json", "", "there is no config.json"),
        ("pytorch_model.bin training_args.bin model.safetensors", "model.gguf", "only GGUF files"),
        ("pytorch_model.bin training_args.bin model.safetensors", "adapter_config.json", "only an adapter"),
        ("pytorch_model.bin training_args.bin model.safetensors", "", "there are no weights"),
    ],
)
def test_a_repository_without_a_model_is_told_before_the_download(
    server: Server, gone: str, added: str, said: str
) -> None:
    for name in gone.split():
        del server.hub.files[COMMIT][name]
    if added:
        server.hub.files[COMMIT][added] = b"x"
    assert said in fail()
    assert not [path for _, path, _ in server.hub.requests if "/api/" not in path]


def test_offline_nothing_is_fetched(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="forbids"):
        pull_hub("someone/small-model", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "forbids" in fail()
    assert server.hub.requests == []


def test_a_full_disk_is_told_before_the_download(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinylm.sources.write._free", lambda place: 1000)
    assert "are needed on this disk" in fail()
    assert not [path for command, path, _ in server.hub.requests if command == "GET" and "/cdn/" in path]


def test_without_huggingface_hub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tinylm\[hub\]'"):
        pull_hub("someone/small-model")


def test_the_size_is_known_before_anything_is_fetched(server: Server) -> None:
    files = server.hub.files[COMMIT]
    needed = [name for name in files if not name.endswith((".md", ".py", ".bin")) and "/" not in name]
    assert remote_size("someone/small-model") == sum(len(files[name]) for name in needed)
    assert remote_size("someone/small-model@v1.0") == remote_size("someone/small-model") - len(BIG) + 999
    del files["model.safetensors"]
    files |= {"model.safetensors.index.json": b"{}", "model-00001-of-00001.safetensors": b"three"}
    small = sum(len(files[name]) for name in needed if name != "model.safetensors")
    assert remote_size("someone/small-model") == small + len(b"{}three")
    assert not [path for _, path, _ in server.hub.requests if "/api/" not in path]


def test_a_person_is_asked_with_the_size(home: Path, server: Server) -> None:
    pexpect = pytest.importorskip("pexpect")
    if sys.platform == "win32":
        pytest.skip("no pseudo-terminal here")
    bundled = Path(tinylm.__file__).parent / "stories260k"
    server.hub.files[COMMIT] = {file.name: file.read_bytes() for file in bundled.glob("*.[js]*")}
    words = ["-m", "tinylm", "generate", "Once upon a time", "-n", "5", "--model", "someone/small-model"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    for answer, said in (("n", "fetch it with: tinylm pull someone"), ("y", ", there was a little")):
        child = pexpect.spawn(sys.executable, words, env=variables, encoding="utf-8", timeout=120)
        child.expect_exact("fetch it (from the Hugging Face hub, 1.1 MB)? [y/N] ")
        child.sendline(answer)
        child.expect_exact(said)
        child.expect(pexpect.EOF)
        child.close()
    assert child.exitstatus == 0


def test_from_an_id_to_a_text(
    home: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TINYLM_MODEL", raising=False)
    bundled = Path(tinylm.__file__).parent / "stories260k"
    server.hub.files[COMMIT] = {file.name: file.read_bytes() for file in bundled.glob("*.[js]*")}
    assert main(["generate", "Once upon a time", "-n", "5", "--model", "someone/small-model"]) == 1
    assert "fetch it with: tinylm pull someone/small-model" in capsys.readouterr().err
    words = ["generate", "Once upon a time", "-n", "5", "--model", "someone/small-model", "--yes"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.out.startswith(", there was a little")
    told = [line for line in said.err.splitlines() if "someone" in line]
    assert told == ["downloading someone/small-model (1.1 MB)"]
    assert main(["pull", "someone/small-model", "-q"]) == 0
    assert Path(capsys.readouterr().out.strip()).name == COMMIT
    assert main(["list"]) == 0
    assert "someone/small-model" in capsys.readouterr().out
    assert main(["remove", "someone/small-model", "--yes"]) == 0
    assert not (home / "hub" / "models--someone--small-model").exists()
