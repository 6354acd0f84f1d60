"""Perplexity against the sliding-window recipe of transformers, and what its figures mean."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import tinylm
from tinylm.errors import ParameterError
from tinylm.language_model import LanguageModel
from tinylm.perplexity import Window, byte_counts, perplexity, token_nll, windows

FOLDER = Path(__file__).resolve().parent / "fixtures" / "perplexity"
GOLDENS = json.loads((FOLDER / "goldens.json").read_text(encoding="utf-8"))
TEXT = (FOLDER / "constitution.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tinylm.load(threads=1)


@pytest.mark.parametrize("case", GOLDENS["cases"], ids=lambda case: f"{case['context']}-{case['stride']}")
def test_the_recipe_of_transformers(case: dict[str, float], lm: LanguageModel) -> None:
    assert lm.tokenizer.encode(TEXT) == GOLDENS["ids"]
    found = perplexity(lm, TEXT, context=int(case["context"]), stride=int(case["stride"]))
    assert found.transformers_recipe == pytest.approx(case["recipe"], rel=1e-5)
    assert found.nll == pytest.approx(case["nll"], rel=1e-5)
    assert found.scored_tokens == case["scored_tokens"]
    assert found.perplexity == pytest.approx(math.exp(case["nll"] / case["scored_tokens"]), rel=1e-5)


def test_figures_of_one_window_follow_from_the_logits(lm: LanguageModel) -> None:
    text = "Once upon a time, there was a café."
    found = perplexity(lm, text, context=512)
    ids = lm.prompt_ids(text)
    logits = lm.logits(ids).astype(np.float64)
    nll = sum(
        math.log(np.exp(row).sum()) - row[target] for row, target in zip(logits[:-1], ids[1:], strict=True)
    )
    size = len(text.encode("utf-8"))
    assert found.nll == pytest.approx(nll, rel=1e-6)
    assert (found.tokens, found.scored_tokens, found.scored_bytes) == (len(ids), len(ids) - 1, size)
    assert found.perplexity == pytest.approx(math.exp(nll / (len(ids) - 1)), rel=1e-6)
    assert found.byte_perplexity == pytest.approx(2**found.bits_per_byte)
    assert found.bits_per_byte == pytest.approx(nll / size / math.log(2), rel=1e-6)


def test_a_text_without_a_token_that_begins_it(lm: LanguageModel) -> None:
    """Its first token is foreseen by nothing, and its bytes do not count."""
    text = "Once upon a time"
    with_bos, without = perplexity(lm, text), perplexity(lm, text, bos="no")
    assert (with_bos.bos, without.bos) == (True, False)
    assert with_bos.tokens == without.tokens + 1
    assert with_bos.scored_bytes == len(text)
    assert without.scored_bytes == len(" upon a time")
    assert perplexity(lm, text, bos="yes") == with_bos


def test_windows() -> None:
    assert list(windows(10, 4, 2)) == [
        Window(0, 1, 4, 4), Window(2, 4, 6, 2), Window(4, 6, 8, 2), Window(6, 8, 10, 2),
    ]  # fmt: skip
    assert list(windows(9, 4, 4)) == [Window(0, 1, 4, 4), Window(4, 5, 8, 4), Window(8, 9, 9, 1)]
    assert list(windows(3, 8, 4)) == [Window(0, 1, 3, 3)]
    assert list(windows(9, 4, 3)) == [Window(0, 1, 4, 4), Window(3, 4, 7, 3), Window(6, 7, 9, 2)]


def test_every_token_is_scored_once_where_windows_overlap(lm: LanguageModel) -> None:
    for context, stride in [(40, 39), (40, 1), (33, 10)]:
        found = perplexity(lm, TEXT[:300], context=context, stride=stride)
        assert found.scored_tokens == found.tokens - 1
        assert found.scored_bytes == 300


@pytest.mark.parametrize("bos", ["auto", "no"])
def test_windows_that_share_nothing_lose_their_first_token(bos: str, lm: LanguageModel) -> None:
    text = TEXT[:300]
    found = perplexity(lm, text, context=40, stride=40, bos=bos)
    offsets = lm.tokenizer.encode_with_offsets(text, add_special_tokens=bos != "no").offsets
    lost = range(0, found.tokens, 40)
    assert found.scored_tokens == found.tokens - len(lost)
    # in this text every token stands for characters of its own, and a space belongs to the token after it
    assert found.scored_bytes == 300 - sum(
        offsets[place][1] - offsets[max(place - 1, 0)][1] for place in lost
    ) - (offsets[0][1] if bos == "no" else 0)


def test_bytes_of_tokens() -> None:
    # a token for each: nothing, "a", the first and the second byte of "é", " b" behind a dropped space, the end
    assert byte_counts("aé  b.\n", [(0, 0), (0, 1), (1, 2), (1, 2), (3, 5), (5, 6)]) == [0, 1, 2, 0, 3, 2]


def test_a_far_more_likely_token_costs_nothing_and_a_far_less_likely_one_all() -> None:
    logits = np.array([[900.0, -900.0], [0.0, 0.0]], np.float32)
    assert token_nll(logits, np.array([0, 1])) == pytest.approx([0, math.log(2)])
    assert token_nll(logits, np.array([1, 0])) == pytest.approx([1800, math.log(2)])


def test_texts_add_up(lm: LanguageModel) -> None:
    one, two = perplexity(lm, "Once upon a time"), perplexity(lm, "There was a dog.")
    both = one + two
    assert both.perplexity == pytest.approx(
        math.exp((one.nll + two.nll) / (one.scored_tokens + two.scored_tokens))
    )
    assert both.scored_bytes == 32
    with pytest.raises(ParameterError, match="different protocols"):
        one + perplexity(lm, "There was", stride=3)


def test_progress_ends_at_its_total(lm: LanguageModel) -> None:
    seen: list[tuple[int, int]] = []
    found = perplexity(
        lm, TEXT[:600], context=50, stride=25, progress=lambda done, total: seen.append((done, total))
    )
    total = sum(window.end - window.begin for window in windows(found.tokens, 50, 25))
    assert {one for _, one in seen} == {total}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (total, total)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"context": 1}, "context is 1; expected 2 to the model's 512"),
        ({"context": 513}, "context is 513"),
        ({"stride": 0}, "stride is 0; expected 1 to the context of 512"),
        ({"context": 64, "stride": 65}, "stride is 65; expected 1 to the context of 64"),
        ({"bos": "maybe"}, "bos is 'maybe'; expected one of auto, yes, no"),
    ],
)
def test_protocols_without_a_meaning(options: dict[str, int], named: str, lm: LanguageModel) -> None:
    with pytest.raises(ParameterError, match=named):
        perplexity(lm, "Once upon a time", **options)


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_with_nothing_to_foresee(text: str, lm: LanguageModel) -> None:
    with pytest.raises(ParameterError, match=f"a text of {min(len(text), 1)} tokens has nothing to foresee"):
        perplexity(lm, text, bos="no")
