"""Normalisation against its definition in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinylm.kernels.norm import layernorm, layernorm_reference, rmsnorm, rmsnorm_reference

WIDTHS = (1, 7, 12, 13, 64, 172, 576)
EPS = np.float32(1e-5)


def rms_definition(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def layer_definition(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + eps) * weight + bias


def rows_and_vectors(D: int, rows: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(D)
    x = (random.standard_normal((rows, D)) * 2 + 0.5).astype(np.float32)
    return x, (1 + 0.3 * random.standard_normal(D)).astype(np.float32), random.standard_normal(D, np.float32)


@pytest.mark.parametrize("D", WIDTHS)
def test_rmsnorm(D: int, keep: Any) -> None:
    x, weight, _ = rows_and_vectors(D)
    expected = rms_definition(x, weight, float(EPS))
    out = np.empty_like(x)
    rmsnorm(keep(x), keep(weight), EPS, out, 0, len(x))
    np.testing.assert_allclose(out, expected, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(rmsnorm_reference(x, weight, EPS), expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("D", WIDTHS)
def test_layernorm(D: int, keep: Any) -> None:
    x, weight, bias = rows_and_vectors(D)
    expected = layer_definition(x, weight, bias, float(EPS))
    out = np.empty_like(x)
    layernorm(keep(x), keep(weight), keep(bias), EPS, out, 0, len(x))
    np.testing.assert_allclose(out, expected, rtol=4e-6, atol=4e-6)
    np.testing.assert_allclose(layernorm_reference(x, weight, bias, EPS), expected, rtol=4e-6, atol=4e-6)


def test_small_numbers_feel_eps() -> None:
    x, weight, bias = rows_and_vectors(64)
    x = x * np.float32(1e-3)
    out = np.empty_like(x)
    rmsnorm(x, weight, np.float32(1e-2), out, 0, len(x))
    np.testing.assert_allclose(out, rms_definition(x, weight, 1e-2), rtol=2e-6)
    layernorm(x, weight, bias, np.float32(1e-2), out, 0, len(x))
    np.testing.assert_allclose(out, layer_definition(x, weight, bias, 1e-2), rtol=4e-6, atol=1e-6)


def test_a_large_mean_does_not_swallow_the_variance() -> None:
    x, weight, bias = rows_and_vectors(576)
    x = x + np.float32(1000)
    out = np.empty_like(x)
    layernorm(x, weight, bias, EPS, out, 0, len(x))
    np.testing.assert_allclose(out, layer_definition(x, weight, bias, float(EPS)), atol=5e-4)


def test_a_share_does_its_rows_and_no_others() -> None:
    x, weight, bias = rows_and_vectors(13, rows=9)
    for kernel, vectors in ((rmsnorm, (weight,)), (layernorm, (weight, bias))):
        whole, shares = np.empty_like(x), np.full_like(x, 77)
        kernel(x, *vectors, EPS, whole, 0, 9)
        kernel(x, *vectors, EPS, shares, 3, 4)
        assert (np.delete(shares, 3, axis=0) == 77).all()
        for begin, end in ((0, 3), (4, 4), (4, 9)):
            kernel(x, *vectors, EPS, shares, begin, end)
        np.testing.assert_array_equal(shares, whole)


def test_not_a_number_spoils_its_row_alone() -> None:
    x, weight, bias = rows_and_vectors(64)
    x[2, 40] = np.nan
    for kernel, vectors in ((rmsnorm, (weight,)), (layernorm, (weight, bias))):
        out = np.empty_like(x)
        kernel(x, *vectors, EPS, out, 0, len(x))
        assert np.isnan(out).all(axis=1).tolist() == [False, False, True, False, False]
        assert np.isfinite(np.delete(out, 2, axis=0)).all()
