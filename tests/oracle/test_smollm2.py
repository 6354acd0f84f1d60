"""A real model beside transformers on the same folder: every logit over a text, in any way of reading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinylm.engine import Engine
from tinylm.sources.catalog import folder_of
from tinylm.tokenizer import Tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NAME = "smollm2-135m-instruct"
FOLDER = folder_of(NAME)
TEXT = Path(__file__).resolve().parent.parent / "fixtures" / "perplexity" / "constitution.txt"
LENGTH = 500

TOLERANCE = 2e-5
"""Of the largest logit of a position, after thirty layers; what was asked for is 1e-4."""

pytestmark = pytest.mark.skipif(FOLDER is None, reason=f"needs a network once: tinylm pull {NAME}")


@pytest.fixture(scope="module")
def ids() -> list[int]:
    assert FOLDER is not None
    return Tokenizer.from_folder(FOLDER).encode(TEXT.read_text(encoding="utf-8"))[:LENGTH]


@pytest.fixture(scope="module")
def expected(ids: list[int]) -> np.ndarray:
    """(500, V) by transformers, float32."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    with torch.inference_mode():
        found: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
    return found


@pytest.fixture(scope="module")
def engine() -> Engine:
    assert FOLDER is not None
    return Engine.load(FOLDER, threads=2)


def check(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    share = np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert share.max() < TOLERANCE, f"{share.max():.1e} of the largest logit at {share.argmax()}"


def test_the_text_has_the_same_ids(ids: list[int]) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(FOLDER)
    assert theirs(TEXT.read_text(encoding="utf-8"))["input_ids"][:LENGTH] == ids


def test_every_logit_over_five_hundred_tokens(engine: Engine, ids: list[int], expected: np.ndarray) -> None:
    assert expected.shape == (LENGTH, 49152)
    check(engine.logits(ids), expected)


def test_every_logit_token_by_token(engine: Engine, ids: list[int], expected: np.ndarray) -> None:
    sequence = engine.new_sequence()
    found = [engine.decode([sequence], [token])[0] for token in ids]
    check(np.array(found), expected)


@pytest.mark.parametrize("length", [1, 17, 256, 257, 385, LENGTH])
def test_the_last_logits_of_a_prompt(
    engine: Engine, ids: list[int], expected: np.ndarray, length: int
) -> None:
    check(engine.prefill(engine.new_sequence(), ids[:length])[None], expected[length - 1 : length])


def test_texts_of_different_length_together(engine: Engine, ids: list[int], expected: np.ndarray) -> None:
    lengths = [3, 100, 400, 499, 31]
    sequences = [engine.new_sequence() for _ in lengths]
    for sequence, length in zip(sequences, lengths, strict=True):
        engine.prefill(sequence, ids[:length])
    check(engine.decode(sequences, [ids[length] for length in lengths]), expected[lengths])


@pytest.mark.parametrize("threads", [1, 5])
def test_any_number_of_threads_gives_the_same_bits(engine: Engine, ids: list[int], threads: int) -> None:
    assert FOLDER is not None
    other = Engine.load(FOLDER, threads=threads)
    mine, theirs = engine.new_sequence(), other.new_sequence()
    np.testing.assert_array_equal(engine.prefill(mine, ids[:300]), other.prefill(theirs, ids[:300]))
    np.testing.assert_array_equal(engine.decode([mine], ids[300:301]), other.decode([theirs], ids[300:301]))
