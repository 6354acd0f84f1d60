"""The machine, the identity of the sources, and the facts of a receipt."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinylm import machine, receipt

ROOT = Path(__file__).resolve().parent.parent
STORIES = ROOT / "tinylm" / "stories260k"


def test_this_machine() -> None:
    found = machine.describe_machine()
    assert found["processor"]
    assert found["cores"] == os.cpu_count()
    assert found["memory"] is None or 2**28 < found["memory"] < 2**50
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["numpy"]
    if sys.platform == "linux":
        kilobytes = int(Path("/proc/meminfo").read_text().split()[1])
        assert found["memory"] == pytest.approx(1024 * kilobytes, rel=0.01)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for sysctl is a shell script")
def test_a_mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "sysctl"
    program.write_text(
        '#!/bin/sh\ncase "$2" in\n'
        "hw.model) echo MacBookAir10,1;;\nmachdep.cpu.brand_string) echo Apple M1;;\n"
        "hw.perflevel0.physicalcpu) echo 4;;\nhw.perflevel1.physicalcpu) echo 4;;\n"
        "*) echo unknown oid >&2; exit 1;;\nesac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.system_control("hw.model") == "MacBookAir10,1"
    assert machine.system_control("hw.nothing") is None
    assert machine.processor() == "Apple M1"
    assert machine.core_kinds() == (4, 4)


def test_the_commit_is_gits() -> None:
    asked = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if asked.returncode:
        pytest.skip("no checkout")
    assert machine.commit(ROOT) == asked.stdout.strip()[:12]


def test_commits_packed_detached_and_absent(tmp_path: Path) -> None:
    assert machine.commit(tmp_path) is None
    git = tmp_path / ".git"
    git.mkdir()
    (git / "HEAD").write_text("0123456789abcdef0123456789abcdef01234567\n")
    assert machine.commit(tmp_path) == "0123456789ab"
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert machine.commit(tmp_path) is None
    (git / "packed-refs").write_text(
        "# pack-refs with: peeled\n" + "a" * 40 + " refs/heads/other\n" + "b" * 40 + " refs/heads/main\n"
    )
    assert machine.commit(tmp_path) == "b" * 12


def test_the_commit_of_a_further_work_tree(tmp_path: Path) -> None:
    shared, own = tmp_path / "first" / ".git", tmp_path / "first" / ".git" / "worktrees" / "second"
    own.mkdir(parents=True)
    (own / "commondir").write_text("../..\n")
    (own / "HEAD").write_text("ref: refs/heads/other\n")
    (shared / "refs" / "heads").mkdir(parents=True)
    (shared / "refs" / "heads" / "other").write_text("c" * 40 + "\n")
    second = tmp_path / "second"
    second.mkdir()
    (second / ".git").write_text(f"gitdir: {own}\n")
    assert machine.commit(second) == "c" * 12


def test_the_identity_changes_with_any_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine.identity()["sources"]
    assert machine.identity()["sources"] == before
    package = tmp_path / "tinylm"
    package.mkdir()
    for name in ("machine.py", "other.py"):
        (package / name).write_bytes(b"one\r\n")
    monkeypatch.setattr(machine, "__file__", str(package / "machine.py"))
    found = [machine.identity()["sources"]]
    (package / "other.py").write_bytes(b"one\n")  # as Git for Windows may write it, or not
    found.append(machine.identity()["sources"])
    (package / "other.py").write_bytes(b"two\n")
    found.append(machine.identity()["sources"])
    assert found[0] == found[1] != found[2]


def test_files_are_told_by_size_and_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    config, weights = receipt.model_files(STORIES)
    assert (config["name"], weights["name"]) == ("config.json", "model.safetensors")
    data = (STORIES / "model.safetensors").read_bytes()
    assert (weights["bytes"], weights["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(receipt, "LARGEST_HASHED", 1000)
    assert receipt.model_files(STORIES)[1]["sha256"] is None


def test_kernel_facts_are_those_of_the_kernels() -> None:
    from tinylm.kernels.dot import DOT
    from tinylm.kernels.streams import AHEAD
    from tinylm.kernels.tile_amx import permitted

    facts = receipt.kernel_facts()
    assert (facts["int8_product"], facts["int8_lanes"]) == (DOT.kind, DOT.lanes)
    assert (facts["amx"], facts["bytes_ahead"]) == (permitted(), AHEAD)
    assert facts["cpu"]
    if "512" in DOT.kind:
        assert "avx512vnni" in facts["features"]


def test_the_first_text_comes_from_a_new_process(tmp_path: Path) -> None:
    assert receipt.first_text(STORIES, None) > 0
    with pytest.raises(RuntimeError, match="generate"):
        receipt.first_text(tmp_path / "absent", None)
