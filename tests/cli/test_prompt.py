"""Prompts arrive whole, or with a message that says what is wrong with them."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pytest

from tinylm.cli import prompt
from tinylm.errors import ParameterError, TinylmError


def read(*words: str) -> str:
    parser = argparse.ArgumentParser()
    prompt.add_prompt_arguments(parser)
    return prompt.read_prompt(parser.parse_args(words))


def test_a_word_of_the_command_line_is_taken_as_it_is() -> None:
    assert read("Governing Law.\\n") == "Governing Law.\\n"
    assert read("") == ""


def test_escapes_are_read_on_request() -> None:
    assert read("-e", r"Governing Law.\n") == "Governing Law.\n"
    assert read("-e", r"a\\nb\t\u00e9\ud83d\ude00") == "a\\nb\té😀"


@pytest.mark.parametrize("text", [r"a\qb", "ends with \\", r"half \ud83d"])
def test_an_unknown_escape_is_named(text: str) -> None:
    with pytest.raises(ParameterError, match=r"escape|surrogate"):
        read("-e", text)


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"one\n", "one"), (b"one\r\n", "one"), (b"one\n\n", "one\n"), (b"\xef\xbb\xbfone", "one"), (b"", "")],
)
def test_files_lose_one_line_end_and_a_byte_order_mark(tmp_path: Path, data: bytes, text: str) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(data)
    assert read("--prompt-file", str(file)) == text


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("Ça va\n".encode()), encoding="latin-1"))
    assert read("-") == "Ça va"


def test_bytes_that_are_no_text_are_named_with_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9 au lait")))
    with pytest.raises(TinylmError, match=r"standard input: not valid UTF-8 \(byte 0xe9 at position 3\)"):
        read("-")
    with pytest.raises(TinylmError, match="PROMPT: not valid UTF-8"):
        read("caf\udce9")


def test_no_prompt_and_two_prompts_are_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no prompt"):
        read()
    with pytest.raises(ParameterError, match="two prompts"):
        read("one", "--prompt-file", "two")
    with pytest.raises(OSError, match="missing"):
        read("--prompt-file", str(tmp_path / "missing"))
