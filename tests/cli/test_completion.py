"""The completion scripts are run by the shells themselves, where they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tinylm import cli
from tinylm.cli import completion

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment whose `tinylm` is the command under test."""
    program = tmp_path / "bin" / "tinylm"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m tinylm "$@"\n', encoding="utf-8"
    )
    program.chmod(0o755)
    return os.environ | {
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "TINYLM_HOME": str(tmp_path / "home"),
        "HOME": str(tmp_path),
    }


def run(name: str, script: str, environment: dict[str, str], folder: Path) -> list[str]:
    """What a shell prints for a script; skips where the shell is missing."""
    program = shutil.which(name)
    if program is None or os.name == "nt":
        pytest.skip(f"{name} is not installed")
    result = subprocess.run(
        [program, "-c", script], capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    assert result.stderr == ""
    return result.stdout.split()


LINES = [
    ("tinylm gen", {"generate"}),
    ("tinylm generate --temp", {"--temperature"}),
    ("tinylm generate --dtype bf", {"bfloat16"}),
    ("tinylm generate --model stor", {"stories260k"}),
    ("tinylm completion f", {"fish"}),
    ("tinylm inspect stor", {"stories260k"}),
    ("tinylm generate --prompt-file lett", {"letter.txt"}),
]


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_bash(line: str, expected: set[str], shell: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    words = line.split()
    script = f"{completion.bash()}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _tinylm; echo ${{COMPREPLY[@]}}"
    assert set(run("bash", script, shell, tmp_path)) == expected


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_fish(line: str, expected: set[str], shell: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    printed = run(
        "fish", f"{completion.fish()}\ncomplete -C '{line}' | string split -f 1 \\t", shell, tmp_path
    )
    assert set(printed) == expected


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_zsh(line: str, expected: set[str], shell: dict[str, str], tmp_path: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    program = shutil.which("zsh")
    if program is None or os.name == "nt":
        pytest.skip("zsh is not installed")
    (tmp_path / "letter.txt").touch()
    (tmp_path / "tinylm.zsh").write_text(completion.zsh(), encoding="utf-8")
    terminal = pexpect.spawn(
        program, ["-f", "-i"], env=shell | {"TERM": "dumb"}, cwd=str(tmp_path), encoding="utf-8"
    )
    terminal.sendline("unsetopt zle_bracketed_paste; PS1='> '; autoload -Uz compinit; compinit -u -D")
    terminal.sendline("source ./tinylm.zsh; echo rea''dy")
    terminal.expect("ready", timeout=30)
    # A key that shows the line as it is after completion, without running it.
    terminal.sendline(
        "show() { print -r -- \"<<$BUFFER>>\"; BUFFER= }; zle -N show; bindkey '^X' show; echo se''t"
    )
    terminal.expect("set", timeout=30)
    terminal.send(line + "\t\x18")
    terminal.expect("<<(.*?)>>", timeout=30)
    assert {terminal.match[1].split()[-1]} == expected
    terminal.close(force=True)


@pytest.mark.parametrize("name", cli.COMMANDS)
@pytest.mark.parametrize("script", [completion.bash, completion.zsh, completion.fish])
def test_every_long_option_is_in_every_script(name: str, script: object) -> None:
    text = script()  # type: ignore[operator]
    for action in completion.options(cli.command(name).parser()):
        word = action.option_strings[-1]
        assert word in text or f"-l {word[2:]}" in text
