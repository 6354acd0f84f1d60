"""`tinylm inspect`: facts for people and machines, the program, the condition numbers."""

from __future__ import annotations

import json
import re

import pytest

from tinylm import cli

Captured = pytest.CaptureFixture[str]


def run(capsys: Captured, *words: str) -> str:
    assert cli.main(["inspect", *words]) == 0
    return capsys.readouterr().out


def test_facts_for_people(capsys: Captured) -> None:
    out = run(capsys)
    for line in (
        "architecture        llama (all 47 tensors fit)",
        "key/value heads     4",
        "parameters          260,032",
        "  head              the embedding",
        "  special tokens    <unk> 0, <s> 1, </s> 2",
        "chat template       none",
    ):
        assert f"\n{line}\n" in out
    assert re.search(r"\n  float32 +1\.0 MB +2\.1 MB   as stored\n", out)


def test_facts_for_machines(capsys: Captured) -> None:
    facts = json.loads(run(capsys, "stories260k", "--json"))
    assert facts["parameters"] == 260_032
    assert (facts["layers"], facts["heads"], facts["key/value heads"]) == (5, 8, 4)
    assert "program" not in facts


def test_the_program(capsys: Captured) -> None:
    lines = run(capsys, "--program").splitlines()
    assert lines[0] == "embed (T, 64) = embed(float32 512x64)"
    assert "blocks.0.mlp.post (T, 172) = gate(blocks.0.mlp.pre, blocks.0.mlp.pre_linear; kind=silu)" in lines
    assert lines[-1] == "logits (L, 512) = matmul(ln_final; float32 512x64)"
    assert len(lines) == 1 + 5 * 15 + 3
    assert json.loads(run(capsys, "--program", "--json"))["program"] == lines


def test_the_condition_numbers(capsys: Captured) -> None:
    lines = run(capsys, "--spectra", "-q").splitlines()
    assert lines[0].split() == ["condition", "numbers", "matrices", "median", "mean", "p95", "max"]
    assert [line[:18].strip() for line in lines[1:-1]] == [
        "attention q", "attention k", "attention v", "attention o", "attention", "MLP", "head", "all",
    ]  # fmt: skip
    facts = json.loads(run(capsys, "--spectra", "--json", "-q"))
    assert len(facts["spectra"]) == 36
    group = facts["condition numbers"]["attention q"]
    assert group["count"] == 5
    assert group["max"] == max(one["condition"] for one in facts["spectra"] if one["group"] == "attention q")
    assert f"{group['max']:,.1f}" in lines[1]
