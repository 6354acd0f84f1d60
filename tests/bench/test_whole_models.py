"""The bench of whole models runs, and its last line is JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_a_short_run_on_the_bundled_model() -> None:
    words = ["stories260k", "--speed-only", "--repeats", "1", "--threads", "2", "--peers"]
    command = [sys.executable, str(ROOT / "bench" / "generate.py"), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout.splitlines()[-1])
    assert record["machine"]["threads"] == 2
    # The context of 512 leaves room for one case.
    assert list(record["speed"]) == ["decode 16"]
    assert record["speed"]["decode 16"]["tinylm"]["tokens_per_second"]["median"] > 0


def test_the_peers_file_holds_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf")
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    from gguf_of_folder import write_gguf

    from tinylm.checkpoint import Checkpoint
    from tinylm.sources.gguf_import import half_split_rows

    folder = ROOT / "tinylm" / "stories260k"
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
