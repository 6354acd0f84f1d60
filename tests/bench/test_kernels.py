"""Every kernel has a bench that runs, whose last line is JSON with a share of a limit for each case."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHES = sorted(path.stem for path in (ROOT / "bench" / "kernels").glob("*.py"))


@pytest.mark.parametrize("name", BENCHES)
def test_a_quick_run(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"bench.kernels.{name}", "--quick", "--threads", "2"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["bench"] == name
    assert record["machine"]["threads"] == 2
    assert record["bandwidth"] > 0
    assert len(record["cases"]) >= 2
    for case in record["cases"]:
        assert 0 < case["seconds"]["low"] <= case["seconds"]["median"] <= case["seconds"]["high"]
        assert case["share"]["median"] > 0


def test_the_benches_mirror_the_kernels() -> None:
    assert set(BENCHES) <= {path.stem for path in (ROOT / "kernels").glob("*.py")}
