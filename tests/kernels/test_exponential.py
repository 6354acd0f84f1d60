"""exp is as exact as it says, over its whole range and beyond."""

from __future__ import annotations

import numpy as np
import pytest

from tinylm.kernels.exponential import exp, exp_reference
from tinylm.kernels.jit import njit


@njit
def exp_of_all(x, out):
    for i in range(x.shape[0]):
        out[i] = exp(x[i])


def computed(x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    exp_of_all(x, out)
    return out


@pytest.mark.parametrize(("reach", "tolerance"), [(1, 4e-7), (10, 2e-6), (87, 1.5e-5)])
def test_it_is_exact_to_what_it_promises(reach: float, tolerance: float) -> None:
    x = np.linspace(-reach, reach, 200_001, dtype=np.float32)
    np.testing.assert_allclose(computed(x), exp_reference(x.astype(np.float64)), rtol=tolerance)


def test_it_never_falls_where_it_should_rise() -> None:
    for centre in np.log(2) * (np.arange(-20, 20) + 0.5):  # where n jumps and f changes its sign
        x = np.float32(centre) + np.linspace(-1e-3, 1e-3, 2001, dtype=np.float32)
        steps = np.diff(computed(x)) / computed(x)[1:]
        assert steps.min() > -5e-7


def test_its_ends_are_finite_and_not_a_number_stays_one() -> None:
    x = np.array([-np.inf, -1e30, -88, 0, 88, 1e30, np.inf, np.nan], np.float32)
    found = computed(x)
    assert (found[:3] > 0).all()
    assert (found[:3] < 1e-37).all()
    assert found[3] == 1
    assert np.isfinite(found[4:7]).all()
    assert (found[4:7] > 1e38).all()
    assert np.isnan(found[7])
