"""`tinylm chat`: through a pipe, and in a driven terminal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tinylm
from tinylm.sources import catalog

pytest.importorskip("jinja2")

ROOT = Path(__file__).resolve().parents[2]
REAL_MODEL = "smollm2-135m-instruct"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
# The story model writes thousands of tokens a second: nobody could stop it.
SLOWLY = """
import sys, time
from tinylm.engine import Engine
advance = Engine.advance
def slow(self, *arguments):
    time.sleep(0.02)
    return advance(self, *arguments)
Engine.advance = slow
"""
PROMPT = r"\[[\d,]+/[\d,]+\] > "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled story model with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "chatty"
    shutil.copytree(Path(tinylm.__file__).parent / "stories260k", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


def program(words: list[str], before: str = "") -> list[str]:
    return [sys.executable, "-c", f"{before}\nfrom tinylm.cli import main\nraise SystemExit(main({words!r}))"]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "TINYLM_MODEL": "", "PYTHONUNBUFFERED": "1", "TERM": "dumb"}


def pipe(folder: Path | str, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    """What the command does with a pipe before it."""
    return subprocess.run(
        program(["chat", str(folder), *words]),
        input=text, capture_output=True, encoding="utf-8", check=False, env=environment(), timeout=300,
    )  # fmt: skip


# Through a pipe


def test_each_line_of_a_pipe_is_a_message(folder: Path) -> None:
    done = pipe(folder, 'Hello.\n\n"""\ntwo\nlines"""\none \\\nline\n', "-n", "8", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    talk = tinylm.Conversation(tinylm.load(folder))
    expected = [talk.say(text, max_new_tokens=8).text for text in ("Hello.", "two\nlines", "one \nline")]
    assert done.stdout == "".join(text if text.endswith("\n") else text + "\n" for text in expected)


def test_the_prompt_is_shown_as_it_is_read(folder: Path) -> None:
    done = pipe(folder, "Hello.\n", "-n", "4", "--show-prompt", "--system", "Be kind.")
    assert "<s>system:\nBe kind.</s>\nuser:\nHello.</s>\nassistant:\n" in done.stderr


def test_commands(folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    script = [
        "/help", "Hello.", f"/save {saved}", "/stats", "/show", "/set temperature 0.7", "/set seed 3", "/retry",
        "/system Be kind.", "/system", "/drop", "/drop 2", f"/load {saved}", "/stats", "/reset", "/stats",
        "/system off", "/hepl", "//slash", "/show", "/set seed null", "/quit", "never said",
    ]  # fmt: skip
    done = pipe(folder, "\n".join(script), "-n", "6")
    assert done.returncode == 0, done.stderr
    for said in (
        "/retry             another answer", "saved 2 messages", "max_new_tokens 6, temperature 0.7\n",
        "max_new_tokens 6, seed 3, temperature 0.7", "system: Be kind.", "1 turn is forgotten",
        "0 turns are forgotten", "2 messages from", "messages    2", "everything is forgotten", "messages    0",
        "there is no system message", "there is no /hepl; did you mean /help?", "user:\n/slash</s>", "tokens/s",
        "0 of them read before", "the answer was cut after 6 tokens",
    ):  # fmt: skip
        assert said in done.stderr, said
    assert "never said" not in done.stderr
    assert [message["role"] for message in json.loads(saved.read_text())["messages"]] == ["user", "assistant"]
    # Three answers: to the first message, the retry, and the last.
    assert len(done.stdout.splitlines()) >= 3


@pytest.mark.parametrize(
    ("text", "words", "said", "code"),
    [
        ("/save\n", [], "/save FILE: a file is expected", 2),
        ("/load nowhere.json\n", [], "nowhere.json: No such file", 1),
        ("/set temperatur 1\n", [], "did you mean temperature?", 2),
        ("/set temperature -1\n", [], "temperature is -1", 2),
        ("/set temperature\n", [], "/set temperature: a value is expected; null for the model's own", 2),
        ("/drop many\n", [], "a number of turns is expected", 2),
        ("Hello.\n/save nowhere/talk.json\n", ["-n", "3"], "tinylm: nowhere/talk.json: No such file", 1),
        ("/retry\n", [], "nothing was said yet", 1),
        ("word " * 600, [], "this message is too long for this model", 1),
        ("Hello.\n", ["--system", "word " * 600], "the system message alone takes 1,8", 1),
        ("Hello.\n", ["-n", "9999"], "asks for 9,999", 1),
        ("Hello.\n", ["-r", "2", "-t", "1"], "a chat has one answer", 2),
        ("", ["--load", "nowhere.json"], "nowhere.json: No such file", 1),
    ],
)
def test_mistakes_are_told_in_a_line(folder: Path, text: str, words: list[str], said: str, code: int) -> None:
    done = pipe(folder, text, "-q", *words)
    assert said in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_an_answer_may_be_shorter_than_asked_for_where_the_context_ends(folder: Path) -> None:
    done = pipe(folder, "the cat sat " * 20 + "\n/retry\n", "-n", "500")
    assert done.returncode == 0, done.stderr
    assert "asks for" not in done.stderr
    talk = tinylm.Conversation(tinylm.load(folder))
    expected = talk.say("the cat sat " * 20, max_new_tokens=300).text.strip()
    assert done.stdout.count(expected) == 2


def test_nothing_is_said_of_an_answer_that_cannot_be(folder: Path) -> None:
    done = pipe(folder, "/retry\n")
    assert done.stderr.strip() == "tinylm: there is nothing to answer again: nothing was said yet"


def test_generate_asks_a_chat_model(folder: Path) -> None:
    words = ["Hello.", "--model", str(folder), "-n", "8", "-q"]
    talk = tinylm.Conversation(tinylm.load(folder), system="Be kind.")
    expected = talk.say("Hello.", max_new_tokens=8).text

    def generate(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            program(["generate", *words, *more]),
            capture_output=True, encoding="utf-8", check=False, env=environment(), timeout=300,
        )  # fmt: skip

    done = generate("--chat", "--system", "Be kind.", "--show-prompt")
    assert done.stdout == expected + "\n"
    assert done.stderr == "<s>system:\nBe kind.</s>\nuser:\nHello.</s>\nassistant:\n\n"
    assert generate("--show-prompt").stderr == "<s> Hello.\n"
    assert "give --chat too" in generate("--system", "Be kind.").stderr
    assert "a chat has one answer" in generate("--chat", "-r", "2", "-t", "1").stderr


def test_a_model_without_a_template_says_so() -> None:
    done = pipe("stories260k", "Hello.\n")
    assert done.returncode == 1
    assert "this model has no chat template" in done.stderr


def test_bytes_that_are_no_text(folder: Path) -> None:
    done = subprocess.run(
        program(["chat", str(folder), "-q"]),
        input=b"caf\xe9\n",
        capture_output=True,
        check=False,
        env=environment(),
    )
    assert done.returncode == 1
    assert b"not valid UTF-8" in done.stderr


# In a terminal

Terminal = Callable[..., Any]


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """Starts the command in a terminal of its own, and waits for its first prompt."""
    pexpect = pytest.importorskip("pexpect")
    if sys.platform == "win32":
        pytest.skip("no pseudo-terminal here")
    children = []

    def start(*words: str, before: str = "", wait: bool = True) -> Any:
        command, *arguments = program(["chat", *words], before)
        child = pexpect.spawn(
            command, arguments, env=environment(), encoding="utf-8", timeout=300, dimensions=(50, 300)
        )
        child.delaybeforesend = 0.02
        children.append(child)
        if wait:
            child.expect(PROMPT)
        return child

    yield start
    for child in children:
        child.close(force=True)


def ask(child: Any, text: str) -> str:
    """Say something; what is shown until the next prompt."""
    child.sendline(text)
    child.expect_exact(text)
    child.expect(PROMPT)
    return str(child.before).replace("\r\n", "\n")


def leave(child: Any) -> None:
    """Ctrl-D ends it, and well."""
    import pexpect

    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def context_used(child: Any) -> int:
    """The count that the last prompt showed."""
    return int(str(child.after).split("/")[0].strip("[").replace(",", ""))


def test_a_person_talks(folder: Path, terminal: Terminal) -> None:
    child = terminal(str(folder), "-n", "12")
    assert "chatty: 512 tokens of context. /help shows the commands" in child.before
    assert context_used(child) == 0
    talk = tinylm.Conversation(tinylm.load(folder))
    for text in ("Hello.", "More."):
        expected = talk.say(text, max_new_tokens=12).text
        assert expected.strip() in ask(child, text)
        assert context_used(child) == talk.used_tokens
    # A message of several lines.
    child.sendline("one \\")
    child.expect_exact("... ")
    child.sendline("line")
    child.expect(PROMPT)
    assert "user:\none \nline</s>" in ask(child, "/show")
    ask(child, "/reset")
    assert context_used(child) == 0
    leave(child)


def test_an_answer_streams_and_can_be_stopped(folder: Path, terminal: Terminal) -> None:
    import pexpect

    child = terminal(str(folder), before=SLOWLY)
    child.sendline("Tell me a long story.")
    child.expect(r"story\.\r\n\S+")  # the first words are there,
    assert child.expect([PROMPT, pexpect.TIMEOUT], timeout=0.2) == 1  # and the answer is not at its end
    child.sendintr()
    child.expect("stopped")
    child.expect(PROMPT)
    used = context_used(child)
    assert 0 < used < 400
    # The program goes on, and what there was of the answer belongs to the conversation.
    assert ask(child, "/show").count("assistant:\n") == 2
    child.sendline("Another one.")
    child.expect(r"one\.\r\n\S+")
    child.sendintr()
    child.expect("stopped")
    child.expect(PROMPT)
    assert context_used(child) > used
    leave(child)


def test_ctrl_c_at_the_prompt(folder: Path, terminal: Terminal) -> None:
    import pexpect

    child = terminal(str(folder), "-n", "5")
    child.send("half a mess")
    child.expect_exact("half a mess")
    child.sendintr()
    child.expect(PROMPT)
    assert context_used(child) == 0
    child.sendline('"""')
    child.expect_exact("... ")
    child.sendline("within a block")
    child.expect_exact("... ")
    child.sendintr()
    child.expect(PROMPT)
    assert context_used(child) == 0
    ask(child, "Hello.")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_saved_and_loaded(folder: Path, terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "my talk.json"
    child = terminal(str(folder), "-n", "12")
    answer = ask(child, "Hello.")
    used = context_used(child)
    assert f"saved 2 messages to {file}" in ask(child, f"/save {file}")
    leave(child)
    child = terminal(str(folder), "--load", str(file))
    assert context_used(child) == used
    shown = ask(child, "/show")
    assert answer.strip().splitlines()[0] in shown
    ask(child, "/reset")
    assert "No such file" in ask(child, f"/load {file}.not")
    assert "2 messages from" in ask(child, f"/load {file}")
    assert context_used(child) == used
    leave(child)


def test_a_full_context_leaves_the_choice(folder: Path, terminal: Terminal) -> None:
    child = terminal(str(folder), "-n", "20", "--system", "Be kind.")
    for number in range(3):
        ask(child, f"Turn {number}: " + "the cat sat " * 10)
    used = context_used(child)
    long = "the dog ran " * 60
    child.sendline(long)
    child.expect(r"the context is full: with this message the conversation has \d+ tokens")
    child.expect(r"d  drop the (oldest turn|\d oldest turns) \(([\d,]+) tokens\), from 'Turn 0")
    child.expect("a  drop the 3 oldest turns")
    child.expect("k  keep all")
    child.expect_exact("drop? ")
    child.sendline("k")
    child.expect(PROMPT)
    assert context_used(child) == used
    child.sendline(long)
    child.expect_exact("drop? ")
    child.sendline("d")
    child.expect(PROMPT)
    shown = ask(child, "/show")
    assert "Be kind." in shown
    assert "Turn 0" not in shown
    assert "the dog ran the dog ran" in shown
    leave(child)


def test_the_history_is_at_hand(folder: Path, terminal: Terminal) -> None:
    pytest.importorskip("readline")
    child = terminal(str(folder), "-n", "5")
    ask(child, "Something to be said twice.")
    child.send("\x10\r")  # Ctrl-P: the line before
    child.expect_exact("Something to be said twice.")
    child.expect(PROMPT)
    assert ask(child, "/show").count("Something to be said twice.") == 2
    leave(child)


def test_a_real_model(terminal: Terminal, tmp_path: Path) -> None:
    if catalog.folder_of(REAL_MODEL) is None:
        pytest.skip(f"{REAL_MODEL} is not here: tinylm pull {REAL_MODEL}")
    child = terminal(REAL_MODEL)
    assert "Paris" in ask(child, "What is the capital of France?")
    child.sendline("Count from one to a thousand, in words.")
    child.expect(r"words\.\r\n\S+")
    child.sendintr()
    child.expect("stopped")
    child.expect(PROMPT)
    shown = ask(child, "/stats")
    assert "of them read before" in shown
    assert "interrupted" in shown
    file = tmp_path / "talk.json"
    ask(child, f"/save {file}")
    ask(child, "/reset")
    assert context_used(child) == 0
    ask(child, f"/load {file}")
    assert "Paris" in ask(child, "/show")
    leave(child)
