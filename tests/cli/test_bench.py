"""`tinylm bench`: the table, the JSON, the receipt, Ctrl-C, mistakes. No figure is held against a limit."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tinylm import __version__, cli, measuring, receipt
from tinylm.cli import bench, bench_report

SHORT = ["--prompt", "32", "--depth", "0,16", "--tokens", "4", "--repeats", "2"]
STORIES = Path(bench.__file__).resolve().parents[1] / "stories260k"


def rows(table: str) -> list[list[str]]:
    """The cells of a Markdown table without its head."""
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *SHORT, "--threads", "1,2"]) == 0
    out, err = capsys.readouterr()
    found = rows(out)
    expected = [
        [name, "int8" if name.startswith("int") else "float32", threads, test]
        for name in ("float32", "bfloat16", "int8", "int4")
        for threads in ("1", "2")
        for test in ("pp32", "tg4", "tg4 @ 16")
    ]
    assert [row[:4] for row in found] == expected
    for _, _, _, test, rate, does, memory, share in found:
        assert re.fullmatch(r"[\d,.]+ \([\d,.]+ to [\d,.]+\)", rate)
        assert re.fullmatch(r"[\d.]+ to [\d.]+ GB/s", memory)
        assert does.endswith("GFLOP/s" if test == "pp32" else " GB/s")
        assert bool(share) == (test != "pp32")
    assert f"stories260k on {receipt.describe_machine()['processor']}" in out
    assert f"tinylm {__version__} (" in out
    assert "pp32: a prompt of 32 tokens is read.\ntg4 @ 16: 4 tokens are written behind 16 others.\n" in out
    assert "(least to most) of 2 rounds in turns" in out
    assert "Interrupted" not in out
    assert [line for line in err.splitlines() if line.startswith("r")] == [
        "reading and warming up", "round 1 of 2", "round 2 of 2",
    ]  # fmt: skip


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *SHORT, "--dtype", "int8", "--threads", "2", "--json", "-q"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert found["complete"] is True
    assert (found["bench"], found["model"], found["repeats"]) == ("tinylm bench", "stories260k", 2)
    assert found["tinylm"]["version"] == __version__
    assert {"processor", "cores", "memory", "system", "python", "numpy", "numba"} <= found["machine"].keys()
    prompt, shallow, deep = found["results"]
    for one in found["results"]:
        assert (one["format"], one["threads"], len(one["samples"])) == ("int8", 2, 2)
        rates = sorted(one["tokens"] / sample["seconds"] for sample in one["samples"])
        assert [one["tokens_per_second"][name] for name in ("min", "max")] == pytest.approx(rates)
        assert rates[0] <= one["tokens_per_second"]["median"] <= rates[1]
        assert all(sample["memory_before"] > 0 and sample["memory_after"] > 0 for sample in one["samples"])
    assert (prompt["kind"], prompt["tokens"], prompt["share"], prompt["bytes_per_token"]) == (
        "prompt",
        32,
        None,
        None,
    )
    assert (deep["kind"], deep["tokens"], deep["depth"]) == ("generate", 4, 16)
    # 16 positions further, each with keys and values of 5 layers, 4 heads, 8 numbers of 2 bytes, filled up to 16
    more = deep["bytes_per_token"] - shallow["bytes_per_token"]
    assert deep["kv_dtype"] == "int8"
    assert 16 * 2 * 5 * 4 * 8 * 2 <= more <= 16 * 2 * 5 * 4 * 16 * 2
    assert 0 < deep["share"]["low"] <= deep["share"]["high"]


def test_keys_and_values_in_several_formats(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "0", "--depth", "64", "--tokens", "2", "--repeats", "1", "--dtype", "int8", "-q"]
    assert cli.main(["bench", *words, "--kv-dtype", "float32,bfloat16"]) == 0
    assert [row[:2] for row in rows(capsys.readouterr().out)] == [["int8", "float32"], ["int8", "bfloat16"]]
    assert cli.main(["bench", *words, "--kv-dtype", "float32,bfloat16", "--json"]) == 0
    wide, narrow = json.loads(capsys.readouterr().out)["results"]
    assert (wide["kv_dtype"], narrow["kv_dtype"]) == ("float32", "bfloat16")
    assert narrow["bytes_per_token"] < wide["bytes_per_token"]
    assert cli.main(["bench", *words, "--kv-dtype", "int3"]) == 2
    assert "no format is called 'int3'; there are auto, float32" in capsys.readouterr().err


def test_what_does_not_fit_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "0", "--depth", "0,1024", "--tokens", "2", "--repeats", "1", "--dtype", "float32"]
    assert cli.main(["bench", *words]) == 0
    out, err = capsys.readouterr()
    assert [row[3] for row in rows(out)] == ["tg2"]
    assert "Left out: tg2 @ 1024 (the model's context is 512)." in out
    assert "tg2 @ 1024 is left out" in err


def test_a_machine_that_is_not_steady_is_remarked() -> None:
    def caption(*memory: tuple[int, float, float]) -> str:
        one = {"test": "tg4", "kind": "generate", "tokens": 4, "depth": 0}
        results = [
            one | {"threads": threads, "memory": {"min": low, "max": high}} for threads, low, high in memory
        ]
        return " ".join(bench_report.caption({"repeats": 1, "results": results}))

    assert "of one round." in caption((2, 30e9, 40e9))
    assert "The memory gave" not in caption((2, 30e9, 40e9), (2, 28e9, 41e9))
    assert "The memory gave 20 to 41 GB/s meanwhile" in caption((2, 30e9, 41e9), (2, 20e9, 40e9))
    assert "The memory gave" not in caption((2, 30e9, 40e9), (1, 15e9, 20e9))


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_prints_what_was_measured(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = measuring.Subject.sample, []

    def sample(self: measuring.Subject, case: measuring.Case) -> measuring.Sample:
        calls.append(case)
        if len(calls) == 6:  # in the second round of three
            raise KeyboardInterrupt
        return real(self, case)

    monkeypatch.setattr(measuring.Subject, "sample", sample)
    words = ["bench", *SHORT, "--dtype", "float32", "--repeats", "3", *(["--json"] if as_json else [])]
    assert cli.main(words) == 130
    out, err = capsys.readouterr()
    assert err.endswith("\ninterrupted\n")
    if as_json:
        found = json.loads(out)
        assert found["complete"] is False
        assert [len(one["samples"]) for one in found["results"]] == [2, 2, 1]
    else:
        assert [row[3] for row in rows(out)] == ["pp32", "tg4", "tg4 @ 16"]
        assert "Interrupted: this is not all" in out


def test_ctrl_c_before_anything_was_measured_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(self: measuring.Subject, case: measuring.Case) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring.Subject, "prepare", prepare)
    assert cli.main(["bench", *SHORT]) == 130
    assert capsys.readouterr().out == ""


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start times without starting anything, which would compile every kernel."""
    times = {"cold": 12.5, "warm": 0.75, "warm_min": 0.5, "warm_max": 1.0}
    monkeypatch.setattr(receipt, "start_seconds", lambda folder, options: times)


@pytest.mark.usefixtures("start")
def test_the_receipt_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    from tinylm.kernels.dot import DOT

    assert cli.main(["bench", *SHORT, "--dtype", "int8", "--receipt", "-q"]) == 0
    out = capsys.readouterr().out
    machine = receipt.describe_machine()
    checksum = hashlib.sha256((STORIES / "model.safetensors").read_bytes()).hexdigest()
    for expected in (
        machine["processor"],
        machine["system"],
        f"Python {machine['python']}, numpy {machine['numpy']}, numba {machine['numba']}",
        f"tinylm {__version__}",
        f"sources {receipt.identity()['sources']}",
        f"int8 by {DOT.kind}, {DOT.lanes} lanes",
        f"model.safetensors, 1.0 MB, sha256 {checksum}",
        "12.50 s without compiled kernels, 0.75 s with them (0.50 to 1.00)",
    ):
        assert expected in out
    assert len(rows(out)) == 3


@pytest.mark.usefixtures("start")
def test_the_receipt_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *SHORT, "--dtype", "int8", "--receipt", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["start"]["cold"] == 12.5
    assert [file["name"] for file in found["files"]] == ["config.json", "model.safetensors"]
    assert found["kernels"]["int8_product"]
    assert found["complete"] is True


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--threads", "two"], "'two' is not of the form 1,2,4"),
        (["--threads", "0"], "threads is 0"),
        (["--dtype", "int8,int3"], "no format is called 'int3'"),
        (["--repeats", "0"], "repeats is 0"),
        (["--prompt", "0", "--tokens", "0"], "nothing to measure"),
        (["--depth", "1,-2"], "'1,-2' is not of the form"),
    ],
)
def test_misuse(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


MEMORY: dict[str, Any] = {
    "as stored": "bfloat16",
    "weights": {"float32": 64e8, "bfloat16": 32e8, "int8": 17e8, "int4": 9e8},
}


def test_formats_take_turns_where_memory_allows() -> None:
    together = [["float32", "bfloat16", "int8", "int4"]]
    assert bench.plan(MEMORY, None, 32 * 10**9) == (together, [])
    assert bench.plan(MEMORY, None, None) == (together, [])
    # 8 GB: float32 would fill it, and the others do not fit into half of it together
    groups, left_out = bench.plan(MEMORY, None, 8 * 10**9)
    assert groups == [["bfloat16"], ["int8"], ["int4"]]
    assert left_out == [
        {"format": "float32", "reason": "6.4 GB of weights, and the machine's memory is 8.0 GB"}
    ]
    # whoever asks for it gets it
    assert bench.plan(MEMORY, ["float32"], 8 * 10**9) == ([["float32"]], [])


def test_a_quantized_folder_has_one_format() -> None:
    for name in ("int8", "int4"):
        assert bench.plan({**MEMORY, "as stored": name}, None, 32 * 10**9) == ([[name]], [])
    assert bench.plan(None, None, 32 * 10**9) == ([["auto"]], [])
