"""Published tokenizers and texts, each with the same tokenizer in the `tokenizers` library: the oracle."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import tokenizers

from tinylm.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"


class Pair(NamedTuple):
    """The same tokenizer.json, read by us and by the library."""

    ours: Tokenizer
    library: tokenizers.Tokenizer


def read_text(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


@cache
def pair_of(name: str) -> Pair:
    if name == "stories260k":
        text = (ROOT / "tinylm" / "stories260k" / "tokenizer.json").read_text(encoding="utf-8")
    else:
        text = read_text(FIXTURES / "tokenizers" / name / "tokenizer.json.gz")
    library = tokenizers.Tokenizer.from_str(text)
    # Leftovers of training that published files carry, and that we do not act on.
    library.no_padding()
    library.no_truncation()
    return Pair(Tokenizer.from_json(text), library)


@pytest.fixture(scope="session")
def published() -> Callable[[str], Pair]:
    """A published tokenizer by its name."""
    return pair_of


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    """Real texts by their names."""
    return {path.name.partition(".")[0]: read_text(path) for path in (FIXTURES / "text").glob("*.txt.gz")}
