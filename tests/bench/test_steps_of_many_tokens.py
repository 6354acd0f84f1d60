"""The benches of steps of many tokens run, and their last line is JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_many_sequences_at_once() -> None:
    command = [sys.executable, str(ROOT / "bench" / "together.py"), "stories260k", "--repeats", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout.splitlines()[-1])
    assert list(record["decode"]) == ["16"], "the context of 512 ends before the other depth"
    assert list(record["decode"]["16"]) == ["1", "2", "4", "8", "16"]
    assert set(record["queue"]) == {"1", "8"}


def test_prompt_lookup(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    folder = tmp_path / "long"
    shutil.copytree(ROOT / "tinylm" / "stories260k", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 8192}), encoding="utf-8"
    )
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    words = [str(folder), "--repeats", "1", "--tokens", "30"]
    command = [sys.executable, str(ROOT / "bench" / "prompt_lookup.py"), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout.splitlines()[-1])
    assert record["steps"]["16"]["1"] == 1
    assert len(record["answers"]) == 7
    assert all(0 <= answer["accepted"] <= answer["drafted"] for answer in record["answers"].values())
