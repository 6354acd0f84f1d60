"""`tinylm perplexity`: figures for people and machines, several texts, mistakes."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest

from tinylm import cli

STORY = "Once upon a time, there was a little dog. The dog was happy.\n"


@pytest.fixture
def story(tmp_path: Path) -> str:
    (tmp_path / "story.txt").write_bytes(STORY.encode())
    return str(tmp_path / "story.txt")


def test_figures_for_people(story: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["perplexity", story, "--stride", "16", "--context", "64"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{story}\n  perplexity ")
    assert "protocol: windows of 64 tokens, 16 apart; each text begins with the model's token" in out
    assert "reading" in err


def test_figures_for_machines(story: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.txt").write_text("There was a big red ball.")
    files = [story, str(tmp_path / "other.txt")]
    assert cli.main(["perplexity", *files, "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert found["protocol"] == {"context": 512, "stride": 256, "bos": True, "dtype": "auto"}
    assert [one["file"] for one in found["files"]] == files
    one, two, total = *found["files"], found["total"]
    assert one["scored_bytes"] == len(STORY.encode())
    assert total["nll"] == pytest.approx(one["nll"] + two["nll"])
    mean = (one["nll"] + two["nll"]) / (one["scored_tokens"] + two["scored_tokens"])
    assert total["perplexity"] == pytest.approx(math.exp(mean))
    # a story that the model could have written is well foreseen
    assert total["perplexity"] < 10


def test_a_text_from_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(STORY.encode())))
    assert cli.main(["perplexity", "-", "--json", "-q", "--bos", "no"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"][0]["file"] == "-"
    assert found["protocol"]["bos"] is False
    assert found["total"]["scored_bytes"] == len(STORY.encode()) - len("Once")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--context", "9999"], 2, "context is 9999; expected 2 to the model's 512"),
        (["--stride", "0"], 2, "stride is 0"),
        (["--bos", "perhaps"], 2, "perhaps"),
    ],
)
def test_misuse(
    words: list[str], code: int, said: str, story: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["perplexity", story, *words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_files_that_cannot_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_bytes(b"")
    for name, said in (("absent.txt", "No such file"), ("latin.txt", "not valid UTF-8 (byte 0xe9 at 3)")):
        assert cli.main(["perplexity", str(tmp_path / name)]) == 1
        assert said in capsys.readouterr().err
    assert cli.main(["perplexity", str(tmp_path / "empty.txt"), "-q"]) == 1
    assert "empty.txt: a text of 1 tokens has nothing to foresee" in capsys.readouterr().err
