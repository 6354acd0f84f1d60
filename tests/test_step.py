"""A step that becomes the one after it, and is kept from one token to the next."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest

from tinylm.cache import KeyValueCache
from tinylm.engine import Engine
from tinylm.kernels.attention import BLOCK, SPLIT
from tinylm.sources.catalog import BUNDLED
from tinylm.step import Step, make_step

STORIES = BUNDLED["stories260k"]
GOLDEN = Path(__file__).resolve().parent / "fixtures" / "stories260k" / "golden.json"
CONTEXT = 512


@pytest.mark.parametrize("group", [1, 3, 8, 40])
@pytest.mark.parametrize("lengths", [[0], [BLOCK - 1, 5], [3, 3 * SPLIT - 2, 17 * SPLIT - 2]], ids=str)
def test_a_step_may_become_the_one_after_it(group: int, lengths: list[int]) -> None:
    def fresh(more: int) -> Step:
        parts = [(cache, length + more, [more + 7]) for cache, length in zip(caches, lengths, strict=True)]
        return make_step(parts, group, "all")

    caches = [KeyValueCache(1, 1, 8) for _ in lengths]
    step, followed = fresh(0), 0
    for more in range(1, 2 * BLOCK):
        expected = fresh(more)
        if step.follow([more + 7] * len(lengths)):
            followed += 1
        else:
            step = fresh(more)
        for name in ("ids", "positions", "rows", "chosen", "tasks", "tiles"):
            np.testing.assert_array_equal(getattr(step, name), getattr(expected, name), name)
        assert step.lengths == expected.lengths
    assert 2 * BLOCK - 1 - 2 * len(lengths) <= followed < 2 * BLOCK - 1


def test_texts_written_in_turns_are_as_alone() -> None:
    """Steps are kept from one token to the next: whatever comes between them must not show."""
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]
    text = [token for case in cases for token in (*case["prompt_ids"], *case["greedy_ids"])] * 9
    engine = Engine.load(STORIES, threads=2)
    expected = engine.trace(text[:CONTEXT])["logits"]
    random = np.random.default_rng(3)
    sequences = [engine.new_sequence() for _ in range(4)]
    for _ in range(400):
        chosen = list(random.permutation(4)[: random.choice([1, 1, 1, 2, 3])])
        some = [sequences[i] for i in chosen]
        for sequence in some:
            if len(sequence) > 300 or random.random() < 0.02:
                sequence.truncate(int(random.integers(0, 1 + len(sequence))))
            if random.random() < 0.03:
                engine.prefill(sequence, text[len(sequence) : len(sequence) + int(random.integers(1, 90))])
            if random.random() < 0.03:
                engine.reserve(sequence, CONTEXT)
        if random.random() < 0.05:
            sequences[chosen[0]] = some[0] = engine.fork(some[0])
        found = engine.decode(some, [text[len(sequence)] for sequence in some])
        wanted = expected[[len(sequence) - 1 for sequence in some]]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_step_that_is_kept_keeps_no_text() -> None:
    engine = Engine.load(STORIES, threads=1)
    sequence = engine.new_sequence()
    for token in range(5):
        engine.decode([sequence], [token])
    cache = weakref.ref(sequence.cache)
    del sequence
    gc.collect()
    assert cache() is None
