"""What this processor is: as LLVM says it, kept, and told from another."""

from __future__ import annotations

from pathlib import Path

import pytest
from numba.core.registry import cpu_target

from tinylm.kernels import cache, processor, target


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of our own, and nothing known yet."""
    monkeypatch.setattr(cache, "folder", lambda: tmp_path)
    return tmp_path


def test_llvm_is_asked_once_and_what_it_said_is_kept(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = cpu_target.target_context.codegen().magic_tuple()
    assert target.target.__wrapped__() == said
    assert len(list(fresh.iterdir())) == 1
    monkeypatch.setattr("numba.core.registry.cpu_target", None)
    assert target.target.__wrapped__() == said


@pytest.mark.parametrize("spoiled", [b"", b"[1]", b"\0" * 99])
def test_a_damaged_file_is_asked_anew(fresh: Path, spoiled: bytes) -> None:
    said = target.target.__wrapped__()
    (path,) = fresh.iterdir()
    path.write_bytes(spoiled)
    assert target.target.__wrapped__() == said


def test_a_setting_makes_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CPU_NAME", raising=False)
    usual = processor.identity.__wrapped__()
    assert usual == processor.identity.__wrapped__()
    monkeypatch.setenv("NUMBA_CPU_NAME", "apple-m1")
    assert processor.identity.__wrapped__() != usual
