"""Steps of several tokens of several sequences: the logits are those of steps of one."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy as np
import pytest

from tinylm.engine import Engine
from tinylm.kernels.attention import BLOCK, SPLIT
from tinylm.sources.catalog import BUNDLED

STORIES = BUNDLED["stories260k"]
GOLDEN = Path(__file__).resolve().parent / "fixtures" / "stories260k" / "golden.json"

TOLERANCE = 1e-5
"""Of the largest logit: what float32 rounding comes to over five layers, and no more."""


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(STORIES, threads=2)


@pytest.fixture(scope="module")
def text() -> list[int]:
    """Stories, one after the other: they need not make sense together."""
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]
    ids = [token for case in cases for token in (*case["prompt_ids"], *case["greedy_ids"])]
    return (ids * (1 + 512 // len(ids)))[:512]


@pytest.fixture(scope="module")
def expected(engine: Engine, text: list[int]) -> np.ndarray:
    """(T, V): what the reference executor, plain NumPy, makes of it."""
    return engine.trace(text)["logits"]


def test_sequences_may_advance_by_different_counts(
    engine: Engine, text: list[int], expected: np.ndarray
) -> None:
    lengths, counts = [40, 1, 300, BLOCK], [3, 1, 9, 2]
    sequences = [engine.new_sequence() for _ in lengths]
    for sequence, length in zip(sequences, lengths, strict=True):
        engine.prefill(sequence, text[:length])
    for step in range(3):
        parts, rows = [], []
        for sequence, count in zip(sequences, counts, strict=True):
            rows.append(expected[len(sequence) : len(sequence) + count])
            parts.append(text[len(sequence) : len(sequence) + count])
        for found, wanted in zip(engine.advance(sequences, parts), rows, strict=True):
            assert found.shape == wanted.shape
            assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()
        for sequence, part in zip(sequences, parts, strict=True):
            assert sequence.ids == text[: len(sequence)]
            sequence.truncate(len(sequence) - len(part) + 1)  # as after guesses of which none was right
        counts = counts[step:] + counts[:step]


@pytest.mark.skipif(
    platform.machine() not in {"x86_64", "AMD64"}, reason="other compilers may fuse otherwise"
)
def test_int8_has_the_same_bits_in_steps_of_one_token_and_of_several(text: list[int]) -> None:
    # Products are of integers, whose sums have no order; attention takes queries of few tokens alike.
    engine = Engine.load(STORIES, dtype="int8", threads=2)
    for begin in (0, BLOCK - 2, 2 * SPLIT - 9):
        sequence, other = engine.new_sequence(), engine.new_sequence()
        if begin:
            engine.prefill(sequence, text[:begin])
            engine.prefill(other, text[:begin])
        alone = [engine.decode([sequence], [token])[0] for token in text[begin : begin + 31]]
        for count in (1, 2, 3, 5, 8, 31):
            (rows,) = engine.advance([other], [text[begin : begin + count]])
            np.testing.assert_array_equal(rows, alone[:count])
            other.truncate(begin)
        several = [engine.new_sequence() for _ in range(3)]
        for one in several:
            if begin:
                engine.prefill(one, text[:begin])
        parts = engine.advance(several, [text[begin : begin + count] for count in (1, 4, 9)])
        for rows in parts:
            np.testing.assert_array_equal(rows, alone[: len(rows)])
