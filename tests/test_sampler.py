"""The sampler against transformers' processors (goldens), full sorts, published formulas and exact odds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tinylm.candidates import (
    draw_place,
    min_p_places,
    top_k_places,
    top_k_places_reference,
    top_p_places,
    top_p_places_reference,
    typical_p_places,
    typical_p_places_reference,
)
from tinylm.errors import ParameterError, TinylmError
from tinylm.parameters import GenerationParameters
from tinylm.sampler import LogProbabilities, RandomStream, Sampler

GOLDENS = json.loads(
    (Path(__file__).parent / "fixtures" / "sampler" / "goldens.json").read_text(encoding="utf-8")
)


def case_name(case: dict) -> str:
    return ",".join(f"{name}={value}" for name, value in case["parameters"].items())


@pytest.mark.parametrize("case", GOLDENS["cases"], ids=case_name)
def test_equals_the_processors_of_transformers(case: dict) -> None:
    parameters = GenerationParameters(**case["parameters"], eos_token_ids=GOLDENS["eos"])
    logits = np.array(case["logits"], np.float32)
    sampler = Sampler(parameters, logits.size, case["prompt"], RandomStream(0))
    for token in case["answer"]:
        sampler.accept(token)
    expected = np.array([-np.inf if score is None else score for score in case["scores"]])
    if not parameters.do_sample:
        np.testing.assert_allclose(sampler.processed(logits), expected, rtol=1e-6, atol=1e-6)
        assert sampler(logits) == expected.argmax()
    else:
        weights = np.exp(expected - expected.max())
        ids, probabilities = sampler.probabilities(logits)
        # Which of some equal logits stay at top_p's border is not defined there: its sort is not stable.
        assert np.unique(logits[np.setxor1d(ids, np.flatnonzero(weights))]).size <= 1
        kept = np.sort(weights[weights > 0] / weights.sum())
        np.testing.assert_allclose(np.sort(probabilities), kept, rtol=2e-6, atol=1e-9)
        common = np.isin(ids, np.flatnonzero(weights))
        np.testing.assert_allclose(probabilities[common], (weights / weights.sum())[ids[common]], rtol=2e-6)
    assert logits.tolist() == case["logits"], "the caller's logits must stay as they are"


def distributions() -> list[np.ndarray]:
    """Peaked, flat, tied and banned depths, at the sizes where the code takes another way."""
    generator = np.random.default_rng(3)
    found = []
    for size in (1, 2, 511, 4096, 4097, 49_152, 131_072):
        normal = generator.standard_normal(size)
        for scores in (
            normal * 3,
            normal * 0.01,
            np.round(normal * 2),
            np.zeros(size),
            -generator.exponential(9, size),
        ):
            found.append(scores)
        banned = normal * 2
        banned[generator.random(size) < 0.7] = -np.inf
        banned[size // 2] = 3.0
        peaked = normal.copy()
        peaked[size // 3] += 30
        found += [banned, peaked]
    return [(scores.max() - scores).astype(np.float32) for scores in found]


DISTRIBUTIONS = distributions()


@pytest.mark.parametrize("place", range(len(DISTRIBUTIONS)))
def test_cuts_equal_their_definition_by_full_sort(place: int) -> None:
    depths = DISTRIBUTIONS[place]
    weights = np.exp(-depths)
    total = weights.sum(dtype=np.float64)
    for k in (1, 2, 50, 300, 5000):
        assert np.array_equal(top_k_places(-depths, k), top_k_places_reference(-depths, k)), k
    for probability in (1e-9, 0.3, 0.9, 0.95, 0.999, 1 - 1e-7):
        kept = top_p_places(depths, weights, probability)
        expected = top_p_places_reference(depths, weights, probability)
        # Sums in another order may differ in their last bits, and so by the tokens at the border.
        different = np.setxor1d(kept, expected)
        assert weights[different].sum(dtype=np.float64) <= 1e-12 * total or different.size == 1, probability
        assert weights[kept].sum(dtype=np.float64) >= probability * total * (1 - 1e-12)

        kept = typical_p_places(depths, weights, probability)
        expected = typical_p_places_reference(depths, weights, probability)
        # Distances are rounded to float32: tokens nearer to each other than that may change places.
        different = np.setxor1d(kept, expected)
        likely = weights > 0
        mean = (weights[likely] * depths[likely].astype(np.float64)).sum() / total
        border = np.abs(depths[expected] - mean).max()
        np.testing.assert_allclose(np.abs(depths[different] - mean), border, atol=1e-5)
        assert weights[kept].sum(dtype=np.float64) >= probability * total * (1 - 1e-12)
    for fraction in (0.01, 0.5, 1.0):
        border = np.abs(depths + np.log(fraction)) < 1e-6
        border &= depths > 0
        assert np.array_equal(
            np.setdiff1d(min_p_places(depths, fraction), np.flatnonzero(border)),
            np.flatnonzero((np.exp(-depths.astype(np.float64)) >= fraction) & ~border),
        )


def test_ties_at_the_border() -> None:
    depths = np.array([0, 0, 0, 1, 1], np.float32)
    weights = np.exp(-depths)
    assert top_k_places(-depths, 1).tolist() == [0, 1, 2], "as transformers, all that tie with the k-th stay"
    assert top_p_places(depths, weights, 0.3).tolist() == [1, 2], (
        "of equal ones the last of a stable sort stay"
    )


@pytest.mark.parametrize("size", [1, 3, 4096, 4097, 20_000])
def test_a_draw_inverts_the_running_sum(size: int) -> None:
    generator = np.random.default_rng(size)
    weights = generator.random(size)
    weights[generator.random(size) < 0.5] = 0
    weights[size // 2] = 1.0
    sums = np.cumsum(weights)
    for uniform in [0.0, 1 - 2.0**-53, *generator.random(200)]:
        place = draw_place(weights, uniform)
        assert weights[place] > 0
        before = sums[place - 1] if place else 0.0
        assert before - 1e-9 * sums[-1] <= uniform * sums[-1] <= sums[place] + 1e-9 * sums[-1]


def chi_square_limit(freedom: int) -> float:
    """The chi-square value that one fair draw in 100,000 exceeds (Wilson and Hilferty's approximation)."""
    return freedom * (1 - 2 / (9 * freedom) + 4.265 * (2 / (9 * freedom)) ** 0.5) ** 3


@pytest.mark.parametrize(
    "given",
    [
        {"top_k": 0},
        {"temperature": 0.7, "top_k": 12},
        {"temperature": 1.5, "top_k": 0, "top_p": 0.8},
        {"top_k": 0, "min_p": 0.1},
        {"top_k": 0, "typical_p": 0.7},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [40, 5000])
def test_draws_have_the_exact_probabilities(given: dict, size: int) -> None:
    logits = np.full(size, -30, np.float32)
    logits[np.random.default_rng(1).permutation(size)[:40]] = (
        np.random.default_rng(2).standard_normal(40) * 1.5
    )
    exact = np.exp(logits.astype(np.float64) / given.get("temperature", 1.0))
    exact /= exact.sum()
    order = np.argsort(-exact)
    keep = np.ones(size, bool)
    if given["top_k"]:
        keep[order[given["top_k"] :]] = False
    if "top_p" in given:
        keep[order[1 + np.searchsorted(np.cumsum(exact[order]), given["top_p"]) :]] = False
    if "min_p" in given:
        keep &= exact >= given["min_p"] * exact.max()
    if "typical_p" in given:
        surprise = -np.log(exact)
        order = np.argsort(np.abs(surprise - (exact * surprise).sum()))
        keep[order[1 + np.searchsorted(np.cumsum(exact[order]), given["typical_p"]) :]] = False
    exact = np.where(keep, exact, 0) / exact[keep].sum()

    sampler = Sampler(GenerationParameters(do_sample=True, **given), size, (), RandomStream(5))
    count = 20_000
    drawn = np.bincount([sampler(logits) for _ in range(count)], minlength=size)
    likely = np.flatnonzero(exact * count >= 5)
    rest = count - drawn[likely].sum()
    expected_rest = (1 - exact[likely].sum()) * count
    chi_square = ((drawn[likely] - exact[likely] * count) ** 2 / (exact[likely] * count)).sum()
    chi_square += (rest - expected_rest) ** 2 / expected_rest if expected_rest > 1 else 0
    assert chi_square < chi_square_limit(likely.size)
    assert not drawn[~keep].any()


def test_openai_penalties_count_the_answer_and_not_the_prompt() -> None:
    generator = np.random.default_rng(0)
    logits = generator.standard_normal(300).astype(np.float32)
    prompt, answer = [1, 1, 2, 250], [5, 5, 5, 6, *range(100, 240)]
    sampler = Sampler(GenerationParameters(frequency_penalty=0.25, presence_penalty=-0.5), 300, prompt)
    for token in answer:
        sampler.accept(token)
    # mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, of OpenAI's documentation
    expected = [
        logit - answer.count(token) * 0.25 - (answer.count(token) > 0) * -0.5
        for token, logit in enumerate(logits)
    ]
    np.testing.assert_allclose(sampler.processed(logits), expected, atol=1e-6)


def test_repetition_penalty_remembers_many_tokens() -> None:
    logits = np.linspace(-2, 2, 1000, dtype=np.float32)
    sampler = Sampler(GenerationParameters(repetition_penalty=2.0), 1000, list(range(500)))
    for token in range(600, 900):
        sampler.accept(token)
    seen = np.r_[0:500, 600:900]
    expected = logits.copy()
    expected[seen] = np.where(expected[seen] < 0, expected[seen] * 2, expected[seen] / 2)
    np.testing.assert_array_equal(sampler.processed(logits), expected)


def test_streams_are_fixed_by_seed_and_index() -> None:
    # These numbers are a promise: a seed that was noted down gives the same text in later versions.
    stream = RandomStream(42)
    assert [stream.uniform() for _ in range(3)] == FIRST_OF_42
    assert RandomStream(42, 1).uniform() != FIRST_OF_42[0]
    assert RandomStream(2**64 - 1).uniform() != RandomStream(0).uniform()
    many = [RandomStream(seed, index).uniform() for seed in range(100) for index in range(10)]
    assert min(many) >= 0
    assert max(many) < 1
    assert len(set(many)) == 1000
    assert abs(np.mean(many) - 0.5) < 0.05


FIRST_OF_42 = [0.8201981478608876, 0.18924562408645496, 0.8676608148821462]


def test_greedy_takes_the_lowest_of_equals_and_needs_no_stream() -> None:
    logits = np.array([1, 3, 3, 2], np.float32)
    assert Sampler(GenerationParameters(), 4)(logits) == 1
    assert Sampler(GenerationParameters(do_sample=True, temperature=0.0), 4)(logits) == 1
    with pytest.raises(ParameterError, match="RandomStream"):
        Sampler(GenerationParameters(do_sample=True), 4)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300])
@pytest.mark.parametrize("top_k", [0, 50])
def test_a_tiny_temperature_is_greedy_and_a_huge_one_uniform(temperature: float, top_k: int) -> None:
    logits = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    parameters = GenerationParameters(do_sample=True, temperature=temperature, top_k=top_k)
    assert Sampler(parameters, 5000, (), RandomStream(1))(logits) == logits.argmax()
    parameters = GenerationParameters(do_sample=True, temperature=1e12, top_k=top_k)
    _, probabilities = Sampler(parameters, 5000, (), RandomStream(1)).probabilities(logits)
    np.testing.assert_allclose(probabilities, 1 / (top_k or 5000), rtol=1e-5)


@pytest.mark.parametrize(
    "parameters", [GenerationParameters(), GenerationParameters(do_sample=True)], ids=["g", "s"]
)
@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN"), (np.inf, "inf")])
def test_logits_that_are_no_numbers_are_an_error(
    parameters: GenerationParameters, value: float, message: str
) -> None:
    logits = np.zeros(100, np.float32)
    logits[60] = value
    with pytest.raises(TinylmError, match=message):
        Sampler(parameters, 100, (), RandomStream(0))(logits)
    with pytest.raises(TinylmError, match="nothing but -inf"):
        Sampler(parameters, 100, (), RandomStream(0))(np.full(100, -np.inf, np.float32))


def test_bans_and_overflow_are_told_apart() -> None:
    logits = np.zeros(3, np.float32)
    with pytest.raises(TinylmError, match="no token is left"):
        Sampler(GenerationParameters(no_repeat_ngram_size=1), 3, [0, 1, 2])(logits)
    with pytest.raises(TinylmError, match="overflows"), np.errstate(over="ignore"):
        Sampler(GenerationParameters(logit_bias={1: 1e39}), 3)(logits)
    with pytest.raises(ParameterError, match="names token 3, but"):
        Sampler(GenerationParameters(logit_bias={3: 1.0}), 3)


def test_log_probabilities_are_the_log_softmax() -> None:
    logits = np.random.default_rng(0).standard_normal(9000).astype(np.float32) * 5 + 300
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64) - 320).sum()) - 320
    found = LogProbabilities(logits)
    assert found.of(17) == pytest.approx(exact[17], abs=1e-6)
    best = np.argsort(-exact, kind="stable")[:6]
    assert [token for token, _ in found.top(6)] == best.tolist()
    np.testing.assert_allclose([logprob for _, logprob in found.top(6)], exact[best], atol=1e-6)
    tied = LogProbabilities(np.zeros(5, np.float32))
    assert tied.top(2) == [(0, pytest.approx(-np.log(5))), (1, pytest.approx(-np.log(5)))]
    assert len(tied.top(99)) == 5
