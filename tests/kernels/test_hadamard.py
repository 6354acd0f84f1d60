"""The rotation of groups: the matrix of the definition, its own inverse, in every place and of every size."""

from __future__ import annotations

import numpy as np
import pytest

from tinylm.kernels.dot import DOT
from tinylm.kernels.hadamard import GROUP, hadamard, rotate, rotate_and_round, rotate_reference
from tinylm.kernels.jit import njit


@njit
def rotated(source, target):
    rotate(source.ctypes.data, target.ctypes.data)


@njit
def rounded(source, numbers, scale, begin):
    rotate_and_round(source.ctypes.data, numbers.ctypes.data, scale.ctypes.data, begin.ctypes.data)


def by_doubling() -> np.ndarray:
    """(64, 64) float64: Sylvester's construction."""
    H = np.ones((1, 1))
    while len(H) < GROUP:
        H = np.block([[H, H], [H, -H]])
    return H / 8


def test_the_matrix_is_sylvesters_and_its_own_inverse() -> None:
    np.testing.assert_allclose(hadamard(), by_doubling(), rtol=1e-7)
    np.testing.assert_allclose(hadamard() @ hadamard(), np.eye(GROUP), atol=1e-6)


@pytest.mark.parametrize("begin", [0, 1, 3])
def test_a_group_anywhere_and_in_place(begin: int) -> None:
    x = np.random.default_rng(begin).standard_normal(GROUP + 8).astype(np.float32)
    source, target = x[begin : begin + GROUP], np.full(GROUP, 77, np.float32)
    before = source.copy()
    expected = before @ by_doubling()
    rotated(source, target)
    np.testing.assert_allclose(target, expected, atol=2e-6)
    np.testing.assert_array_equal(source, before)
    rotated(source, source)
    np.testing.assert_array_equal(source, target)
    rotated(source, source)
    np.testing.assert_allclose(source, before, atol=2e-6)


def test_each_number_goes_where_the_matrix_says() -> None:
    for i in range(GROUP):
        one, target = np.zeros(GROUP, np.float32), np.zeros(GROUP, np.float32)
        one[i] = 1
        rotated(one, target)
        np.testing.assert_allclose(target, by_doubling()[i], rtol=1e-6)


def test_a_rest_stays_as_it_is() -> None:
    x = np.random.default_rng(0).standard_normal((3, 172)).astype(np.float32)
    found = rotate_reference(x)
    np.testing.assert_array_equal(found[:, 128:], x[:, 128:])
    np.testing.assert_allclose(found[:, 64:128], x[:, 64:128] @ by_doubling(), atol=1e-6)


def test_rounding_is_to_the_nearest_of_127_steps() -> None:
    x = np.random.default_rng(0).standard_normal(GROUP).astype(np.float32)
    numbers, scale, begin = np.zeros(GROUP + 1, np.int8), np.zeros(1, np.float32), np.zeros(1, np.int32)
    numbers[GROUP] = 55
    rounded(x, numbers, scale, begin)
    exact = x @ by_doubling()
    assert scale[0] == pytest.approx(np.abs(exact).max() / 127, rel=1e-6)
    assert (np.abs(numbers[:GROUP] - exact / scale[0]) <= 0.5001).all()
    assert begin[0] == -DOT.offset * numbers[:GROUP].astype(int).sum()
    assert numbers[GROUP] == 55


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_makes_the_scale_none(value: float) -> None:
    x = np.ones(GROUP, np.float32)
    x[9] = value
    numbers, scale, begin = np.zeros(GROUP, np.int8), np.zeros(1, np.float32), np.zeros(1, np.int32)
    rounded(x, numbers, scale, begin)
    assert not np.isfinite(scale[0])
    x[:] = 0
    rounded(x, numbers, scale, begin)
    assert (scale[0], begin[0]) == (0, 0)
    assert not numbers.any()
