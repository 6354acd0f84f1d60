"""docs/expected-m1.md holds what its script computes, and that is what the shapes say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    found = importlib.util.spec_from_file_location("expected_m1", ROOT / "scripts" / "expected_m1.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, "expected_m1", module)
    found.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(script: ModuleType) -> None:
    page = (ROOT / "docs" / "expected-m1.md").read_text(encoding="utf-8")
    assert f"{script.BEGIN}\n{script.table()}\n{script.END}" in page


def test_the_bytes_are_those_of_the_shapes(script: ModuleType) -> None:
    program = script.program_of(*script.shapes()["SmolLM2-135M"])
    # attention (q, o; k, v), gate, up and down, the head; norms are no matrices
    numbers = 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536) + 49_152 * 576
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        assert script.bytes_per_token(program, dtype, 0) == size * numbers
        assert script.bytes_per_token(program, dtype, 1000) == size * numbers + 1000 * 2 * 30 * 3 * 64 * 4
    # a byte a number and two bytes for each 64, all sizes here being whole groups
    assert script.bytes_per_token(program, "int8", 0) == numbers + 2 * numbers // 64
    # int4: half a byte and two for each 64, but for the head
    head = 49_152 * 576
    assert script.bytes_per_token(program, "int4", 0) == (numbers - head) // 2 + head + 2 * numbers // 64
    # beside int8, keys and values are int8 too: a byte each, and six for the scales of a position in each head
    assert script.bytes_per_token(program, "int8", 1000) == numbers + 2 * numbers // 64 + 1000 * 30 * 3 * (
        2 * 64 + 6
    )


def test_an_untied_embedding_is_not_read(script: ModuleType) -> None:
    program = script.program_of(*script.shapes()["KeyLM-75M"])
    matrices = 24 * (2 * 512 * 512 + 2 * 512 * 128 + 3 * 512 * 1280) + 12_020 * 512
    assert script.bytes_per_token(program, "float32", 0) == 4 * matrices
