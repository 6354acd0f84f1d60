"""The benches of whole models run, their last line is JSON, and their sums are right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
STORIES = ROOT / "tinylm" / "stories260k"


def run(script: str, *words: str) -> tuple[dict[str, Any], str]:
    """(the JSON of the last line, all that was printed) of a bench."""
    command = [sys.executable, str(ROOT / "bench" / script), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), result.stdout


def test_a_short_run_on_the_bundled_model() -> None:
    words = ["stories260k", "--speed-only", "--repeats", "1", "--threads", "2", "--peers"]
    record, _ = run("generate.py", *words)
    assert record["machine"]["threads"] == 2
    # The context of 512 leaves room for two cases.
    assert list(record["speed"]) == ["decode 16", "prefill 512"]
    for found in record["speed"].values():
        assert found["tinylm"]["tokens_per_second"]["median"] > 0
        assert 0 < found["tinylm"]["share_of_limit"]["low"] <= found["tinylm"]["share_of_limit"]["high"]


def test_contestants_are_processes_and_the_table_can_be_made_later(tmp_path: Path) -> None:
    cases = [
        "decode:16",
        "decode:1024",
        "prefill:32",
        "together:3",
        *(["peak:64"] if os.name != "nt" else []),
    ]
    words = ["stories260k", "--formats", "float32", "int8", "--repeats", "2", "--threads", "1"]
    words += ["--peers", "--kv-dtype", "bfloat16", "--scratch", str(tmp_path)]
    record, printed = run("peers.py", *words, "--cases", *cases)
    assert set(record["settings"]) == {"tinylm float32", "tinylm int8"}
    assert all(text.endswith("keys and values bfloat16") for text in record["settings"].values())
    found = {(one["case"], one["format"]): one for one in record["results"]}
    assert "decode 1024 is left out: the model's context is 512" in printed
    assert ("decode 1024", "int8") not in found
    for case in ("decode 16", "prefill 32", "together 3"):
        for kind in ("float32", "int8"):
            one = found[case, kind]
            assert len(one["samples"]) == 2
            assert 0 < one["share_of_limit"]["low"] <= one["share_of_limit"]["high"]
    one, three = found["decode 16", "int8"], found["together 3", "int8"]
    expected = sorted(
        3 * alone[0] / many[0] for alone, many in zip(one["samples"], three["samples"], strict=True)
    )
    assert expected[0] <= three["times_one"] <= expected[1]
    if os.name != "nt":
        assert all(found["peak 64", kind]["bytes"] > 2**24 for kind in ("float32", "int8"))
    assert list(tmp_path.glob("tinylm-int8-*/model.safetensors"))
    (tmp_path / "run.json").write_text(printed, encoding="utf-8")
    again = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "peers.py"), "--render", str(tmp_path / "run.json")],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    assert again.stdout.strip() in printed


def test_a_peer_that_is_not_there_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    from worker import NotInstalledError, RemoteRunner

    # A module of that name which cannot be imported stands for a package that is not there.
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('no such package')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(NotInstalledError, match="no such package"):
        RemoteRunner("llama.cpp F32", sys.executable, STORIES, 1, tmp_path)
    with pytest.raises(RuntimeError, match="KeyError"):
        RemoteRunner("nobody float32", sys.executable, STORIES, 1, tmp_path)


def test_the_table_of_two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    from peers_table import markdown

    def one(name: str, rate: float, **more: Any) -> dict[str, Any]:
        speed = {"median": rate, "min": rate, "max": rate}
        return {
            "case": "decode 16", "title": "decode after 16 tokens", "format": "int8", "name": name,
            "tokens_per_second": speed, **more,
        }  # fmt: skip

    peak = {"case": "peak 64", "title": "peak memory at 64 positions", "format": "int8"}
    machine = {"processor": "P", "threads": 2, "system": "S"}
    runs: list[dict[str, Any]] = [
        {
            "model": "m", "machine": machine, "repeats": 5, "settings": {"tinylm int8": "a"},
            "left_out": {"llama.cpp Q8_0": "not there"},
            "results": [one("tinylm int8", 1234.5, share_of_limit={"low": 0.85, "high": 0.9})],
        },
        {
            "model": "m", "machine": machine, "repeats": 3, "settings": {"llama.cpp Q8_0": "b"},
            "left_out": {"OpenVINO int8": "missing"},
            "results": [
                one("llama.cpp Q8_0", 617.0, tinylm_is=2.01),
                one("transformers int8", 20.25, tinylm_is=61.0),
                {**peak, "name": "tinylm int8", "bytes": 100_000_000},
                {**peak, "name": "llama.cpp Q8_0", "bytes": 200_000_000},
            ],
        },
    ]  # fmt: skip
    lines = markdown(runs).splitlines()
    assert "medians of 3 or 5 rounds" in lines[0]
    assert lines[2] == "| | tinylm | llama.cpp | transformers | tinylm to the best |"
    assert lines[4] == (
        "| decode after 16 tokens, int8 | **1,234** (85 to 90 % of the memory) | 617 | 20.2 | 2.01 x |"
    )
    assert lines[5] == "| peak memory at 64 positions, int8, MB | 100 | 200 |  | 0.50 x |"
    assert lines[7:] == ["- tinylm int8: a", "- llama.cpp Q8_0: b", "- left out: OpenVINO int8 (missing)"]


def test_beside_a_neighbour(tmp_path: Path) -> None:
    words = ["stories260k", "--contestants", "tinylm float32", "--threads", "1", "2", "--repeats", "2"]
    record, printed = run("neighbour.py", *words, "--scratch", str(tmp_path))
    found = {(one["threads"], one["state"]): one for one in record["results"]}
    assert set(found) == {(1, "quiet"), (1, "neighbour"), (2, "quiet"), (2, "neighbour")}
    assert found[1, "quiet"]["to_one_quiet_thread"] == 1
    # the best number of threads is that of the best median; in a round the other may have been faster
    assert 1 in {found[threads, "quiet"]["to_best_threads"] for threads in (1, 2)}
    one, two = found[1, "quiet"]["tokens_per_second"], found[2, "neighbour"]["tokens_per_second"]
    ratio = found[2, "neighbour"]["to_one_quiet_thread"]
    assert two["min"] / one["max"] <= ratio <= two["max"] / one["min"]
    assert printed.count("| tinylm float32 |") == 2


def test_quality_of_a_format_that_changes_nothing_and_of_one_that_rounds() -> None:
    text = ROOT / "tests" / "fixtures" / "perplexity" / "constitution.txt"
    words = ["stories260k", "--tokens", "96", "--threads", "1", "--peers", "--formats", "float32", "int8"]
    record, printed = run("quality.py", *words, "--text", str(text))
    found = {one["format"]: one for one in record["results"]}
    same = found["tinylm float32"]
    assert same["mean_kl"] == pytest.approx(0, abs=1e-12)
    assert (same["same_top"], same["perplexity_change"]) == (1, 0)
    rounded = found["tinylm int8 (cache int8)"]
    assert 0 < rounded["mean_kl"] < 0.02
    assert rounded["tokens"] == 96
    assert "| tinylm int8 (cache int8) | 0.0" in printed


def test_divergence_is_that_of_the_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    from quality import compare

    true, other = (
        np.array([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]),
        np.array([[0.25, 0.5, 0.25], [0.8, 0.1, 0.1]]),
    )
    # logits are known up to a constant a row
    found = compare(np.log(true).astype(np.float32) + 3, np.log(other).astype(np.float32) - 2, [0, 1])
    assert found["mean_kl"] == pytest.approx((0.5 * np.log(2) + 0.25 * np.log(0.5)) / 2, rel=1e-5)
    assert found["same_top"] == 0.5
    # the first row foresees token 1: 0.25 truly, 0.5 otherwise
    assert found["perplexity"] == pytest.approx(2, rel=1e-5)
    assert found["perplexity_change"] == pytest.approx(-0.5, rel=1e-5)


def test_random_weights_have_the_shape_of_a_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    from random_model import write_random

    from tinylm.checkpoint import Checkpoint
    from tinylm.engine import Engine

    config = json.loads((STORIES / "config.json").read_text(encoding="utf-8"))
    folder = write_random(config, tmp_path / "model", "bfloat16")
    with Checkpoint(folder) as made, Checkpoint(STORIES) as stored:
        assert {name: tensor.shape for name, tensor in made.tensors.items()} == {
            name: tensor.shape for name, tensor in stored.tensors.items()
        }
        assert {tensor.dtype for tensor in made.tensors.values()} == {"BF16"}
    logits = Engine.load(folder, threads=1).logits([1, 2, 3])
    assert np.isfinite(logits).all()
    assert 0.1 < logits.std() < 10


def test_the_peers_file_holds_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf")
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    from gguf_of_folder import write_gguf

    from tinylm.checkpoint import Checkpoint
    from tinylm.sources.gguf_import import half_split_rows

    folder = STORIES
    tensors = {
        tensor.name: tensor for tensor in gguf.GGUFReader(write_gguf(folder, tmp_path / "m.gguf")).tensors
    }
    with Checkpoint(folder) as checkpoint:
        assert len(tensors) == len(checkpoint.tensors)
        down = checkpoint.float32("model.layers.4.mlp.down_proj.weight")
        np.testing.assert_array_equal(tensors["blk.4.ffn_down.weight"].data, down)
        for kind in "qk":
            stored = checkpoint.float32(f"model.layers.2.self_attn.{kind}_proj.weight")
            written = tensors[f"blk.2.attn_{kind}.weight"].data
            np.testing.assert_array_equal(half_split_rows(written, 8), stored)


def test_the_peers_file_of_a_gpt_neox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf")
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    from gguf_of_folder import write_gguf
    from random_model import write_random

    from tinylm.checkpoint import Checkpoint

    config = {
        "model_type": "gpt_neox", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "vocab_size": 96, "max_position_embeddings": 64, "rotary_pct": 0.5,
    }  # fmt: skip
    folder = write_random(config, tmp_path / "model", "float32")
    reader = gguf.GGUFReader(write_gguf(folder, tmp_path / "m.gguf"))
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert reader.get_field("gptneox.rope.dimension_count").contents() == 4
    with Checkpoint(folder) as checkpoint:
        assert len(tensors) == len(checkpoint.tensors)
        np.testing.assert_array_equal(tensors["output.weight"], checkpoint.float32("embed_out.weight"))
        for kind in ("weight", "bias"):
            fused = checkpoint.float32(f"gpt_neox.layers.1.attention.query_key_value.{kind}")
            written = tensors[f"blk.1.attn_qkv.{kind}"]
            for head in range(4):
                for part in range(3):
                    # heads of 8: here queries, keys and values of a head stand together, there of all heads
                    ours = fused[24 * head + 8 * part : 24 * head + 8 * part + 8]
                    theirs = written[32 * part + 8 * head : 32 * part + 8 * head + 8]
                    np.testing.assert_array_equal(theirs, ours)
