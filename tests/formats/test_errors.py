"""What each format costs: the table of errors, and a model's logits in every format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tinylm.engine import Engine
from tinylm.formats import Matrix
from tinylm.formats.bfloat16 import BFloat16Matrix, narrow, widen
from tinylm.formats.float32 import Float32Matrix
from tinylm.formats.table import DTYPES, QUANTIZED
from tinylm.kernels.team import Team
from tinylm.sources.catalog import BUNDLED

GOLDEN = Path(__file__).resolve().parent.parent / "fixtures" / "stories260k" / "golden.json"

ERRORS = {
    # format: (relative error of a matrix, mean KL divergence of the story model from float32, in nats)
    "float32": (0.0, 0.0),
    "bfloat16": (1.8e-3, 4.5e-5),
    "int8": (7e-3, 8e-4),
    "int4": (8.5e-2, 9e-2),
}
"""At most; a format that is a third worse than it need be does not pass."""


def stored(format: str, weights: np.ndarray) -> Matrix:
    if format in QUANTIZED:
        return QUANTIZED[format].quantize(weights, Team(2))
    return BFloat16Matrix(narrow(weights)) if format == "bfloat16" else Float32Matrix(weights)


def matrix(N: int, K: int) -> np.ndarray:
    """Rows of different size, as trained ones are."""
    random = np.random.default_rng(N)
    return (random.standard_normal((N, K)) * random.lognormal(0, 0.5, (N, 1))).astype(np.float32)


def test_every_format_is_in_the_table() -> None:
    assert ("auto", *ERRORS) == DTYPES


@pytest.mark.parametrize("format", ERRORS)
@pytest.mark.parametrize("shape", [(64, 64), (100, 172), (172, 576)])
def test_the_error_of_a_matrix(format: str, shape: tuple[int, int]) -> None:
    weights = matrix(*shape)
    error = stored(format, weights).dequantize() - weights
    share = np.sqrt(np.square(error).sum() / np.square(weights).sum())
    assert share <= ERRORS[format][0]
    assert share >= 0.6 * ERRORS[format][0], "better than the table says: correct the table"


@pytest.mark.parametrize("format", ERRORS)
def test_what_is_stored_is_described(format: str) -> None:
    found = stored(format, matrix(100, 172))
    assert (found.format, found.shape) == (format, (100, 172))
    assert found.dequantize().dtype == np.float32
    least = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}[format] * 100 * 172
    assert least <= found.nbytes <= 1.42 * least  # blocks of rows: 100 are rounded up to 128


@pytest.mark.parametrize("format", ERRORS)
def test_a_model_in_each_format(format: str) -> None:
    case = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"][0]
    ids = [*case["prompt_ids"], *case["greedy_ids"]]

    def log_probabilities(dtype: str) -> np.ndarray:
        engine = Engine.load(BUNDLED["stories260k"], dtype=dtype, threads=2, kv_dtype="float32")
        logits = engine.logits(ids).astype(np.float64)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    exact, found = log_probabilities("float32"), log_probabilities(format)
    divergence = (np.exp(exact) * (exact - found)).sum(axis=1).mean()
    assert divergence <= ERRORS[format][1]
    assert (exact.argmax(axis=1) == found.argmax(axis=1)).mean() >= (0.85 if format == "int4" else 0.97)


def test_bfloat16_is_rounded_to_the_nearest_ties_to_even() -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 2**32, 200_000, np.uint32).view(np.float32)
    values = values[np.isfinite(values) & (values.view(np.uint32) & 0xFFFF != 0x8000)]  # ties: see below
    found = widen(narrow(values))
    below = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    with np.errstate(over="ignore"):
        above = ((values.view(np.uint32) & np.uint32(0xFFFF0000)) + np.uint32(0x10000)).view(np.float32)
    exact = values.astype(np.float64)
    finite = np.isfinite(above)
    to_below, to_above = np.abs(exact - below)[finite], np.abs(above.astype(np.float64) - exact)[finite]
    expected = np.where(to_below < to_above, below[finite], above[finite])
    np.testing.assert_array_equal(found[finite], expected)
    middle = np.array([0x3F808000, 0x3F818000, 0xBF808000], np.uint32).view(np.float32)
    np.testing.assert_array_equal(narrow(middle), [0x3F80, 0x3F82, 0xBF80])


def test_bfloat16_keeps_what_is_no_number() -> None:
    bits = np.array([0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x7F7FFFFF], np.uint32)
    found = widen(narrow(bits.view(np.float32)))
    assert np.isposinf(found[0])
    assert np.isneginf(found[1])
    assert np.isnan(found[2:5]).all()
    assert np.isposinf(found[5]), "the largest float32 rounds up to infinity, as everywhere"


def test_two_dimensions_stay() -> None:
    values = matrix(5, 7)
    assert narrow(values).shape == (5, 7)
    np.testing.assert_allclose(widen(narrow(values)), values, rtol=2**-8)
