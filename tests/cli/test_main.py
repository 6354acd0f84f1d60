"""The command line as a whole: help, mistakes, exit codes, pipes, and how little it imports."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tinylm import __version__, cli
from tinylm.errors import ContextError, ParameterError

ROOT = Path(__file__).resolve().parents[2]


class Command:
    """Stands for a command's module; `run` does what the test says."""

    def __init__(self, action: object) -> None:
        self.action = action

    def parser(self) -> object:
        from tinylm.cli.parsing import Parser

        return Parser("version", "Stands for a command.", [])

    def run(self, arguments: object) -> int:
        if isinstance(self.action, BaseException):
            raise self.action
        return int(str(self.action))


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(re.search(rf"^  {name} +\S", out, re.MULTILINE) for name in cli.COMMANDS)


def test_no_command_is_a_misuse_and_prints_nothing_on_standard_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert (out, "usage: tinylm" in err) == ("", True)


@pytest.mark.parametrize("words", [["--version"], ["-V"], ["version", "--short"]])
def test_version(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"tinylm {__version__}\n"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("genrate", "did you mean 'tinylm generate'?"),
        ("Once upon a time", "tinylm generate PROMPT"),
        ("xyz", "there are"),
    ],
)
def test_an_unknown_command_gets_a_hint(name: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert name in err
    assert hint in err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_each_command_teaches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    parser = cli.command(name).parser()
    assert f"usage: tinylm {name}" in out
    assert "examples:" in out
    for action in parser._actions:
        assert action.help, f"{action.dest} is not explained"
    for example, _ in parser.examples:
        check_line(example)


def check_line(line: str) -> None:
    """A shell line that is shown to people must parse, each call of tinylm in it."""
    for part in re.split(r"\||&&|;", line):
        words = shlex.split(re.split(r"\s[<>]", part)[0], comments=True)
        if words and Path(words[0]).name == "tinylm":
            name, *rest = words[1:]
            if name.startswith("-"):
                continue
            cli.command(name).parser().parse_args(rest)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/decisions.md"])
def test_commands_in_the_documents_parse(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            check_line(line)
    for name in re.findall(r"`tinylm ([a-z]+)", text):
        assert name in cli.COMMANDS or name == "COMMAND", f"{document} shows 'tinylm {name}'"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "--temprature", "1", "x"], "--temprature"),
        (["generate", "--temp", "1", "x"], "--temp"),
        (["generate", "--top-k", "many", "x"], "many"),
        (["generate", "--logit-bias", "13", "x"], "ID=NUMBER"),
        (["completion", "powershell"], "powershell"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize(
    ("action", "code", "said"),
    [
        (0, 0, ""),
        (1, 1, ""),
        (ParameterError("temperature is -1"), 2, "tinylm: temperature is -1\n"),
        (ContextError("too long"), 1, "tinylm: too long\n"),
        (
            FileNotFoundError(2, "No such file or directory", "a.txt"),
            1,
            "tinylm: a.txt: No such file or directory\n",
        ),
        (OSError(28, "No space left on device"), 1, "tinylm: No space left on device\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_exit_codes(
    action: object, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "command", lambda name: Command(action))
    assert cli.main(["version"]) == code
    assert capsys.readouterr() == ("", said)


def test_debug_shows_where_an_error_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "command", lambda name: Command(ContextError("too long")))
    with pytest.raises(ContextError):
        cli.main(["version", "--debug"])
    with pytest.raises(ContextError):
        cli.main(["--debug", "version"])
    monkeypatch.setenv("TINYLM_DEBUG", "1")
    with pytest.raises(ContextError):
        cli.main(["version"])


def test_our_own_mistakes_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "command", lambda name: Command(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["version"])


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["generate", "--help"], ["completion", "bash"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from tinylm.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'numpy', 'numba', 'regex', 'safetensors', 'gguf', 'jinja2', 'huggingface_hub'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(os.name == "nt", reason="pipes end differently on Windows")
def test_a_reader_that_leaves_is_no_failure() -> None:
    code = "import sys; from tinylm.cli import main; sys.exit(main(['completion', 'bash']))"
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(0.5)\n" + code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0
    process.stderr.close()


def test_output_is_utf_8_whatever_the_locale() -> None:
    code = "import sys; from tinylm import cli; cli.prepare_output(); print('Ça va, \\udc80 😀')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=ROOT, env=environment, check=False
    )
    assert (result.returncode, result.stdout) == (0, "Ça va, ? 😀\n".encode())
