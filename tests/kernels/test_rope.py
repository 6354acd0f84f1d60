"""Rotary embedding against complex numbers: a pair (i, i + half) is one number, and turns by its angle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinylm.kernels.rope import frequencies, rope, rope_reference, rope_table


def by_complex_numbers(x: np.ndarray, positions: np.ndarray, angles: np.ndarray, head_dim: int) -> np.ndarray:
    half = len(angles)
    heads = x.reshape(len(x), -1, head_dim).astype(np.float64)
    turned = heads.copy()
    pairs = heads[..., :half] + 1j * heads[..., half : 2 * half]
    pairs = pairs * np.exp(1j * positions[:, None, None] * angles.astype(np.float64))
    turned[..., :half], turned[..., half : 2 * half] = pairs.real, pairs.imag
    return turned.reshape(x.shape)


@pytest.mark.parametrize(("head_dim", "rotary"), [(8, 8), (20, 20), (64, 64), (64, 16), (128, 128), (6, 2)])
@pytest.mark.parametrize("heads", [1, 3, 9])
def test_heads_turn_by_their_positions(head_dim: int, rotary: int, heads: int, keep: Any) -> None:
    random = np.random.default_rng(head_dim)
    x = random.standard_normal((7, heads * head_dim), np.float32)
    positions = np.array([0, 1, 2, 3, 500, 4, 0], np.int64)
    angles = frequencies(rotary, 10_000.0)
    table = rope_table(angles, 501)
    expected = by_complex_numbers(x, positions, angles, head_dim)
    out = np.empty_like(x)
    rope(keep(x), positions, table, head_dim, out, 0, 7)
    np.testing.assert_allclose(out, expected, atol=1e-4)  # 500 radians in float32 are known to 3e-5
    np.testing.assert_allclose(rope_reference(x, positions, table, head_dim), out, atol=1e-6)
    np.testing.assert_allclose(out[:3], expected[:3], atol=2e-6)
    np.testing.assert_array_equal(out[0], x[0])


def test_it_may_write_over_its_input() -> None:
    x = np.random.default_rng(0).standard_normal((3, 40), np.float32)
    positions, table = np.array([5, 6, 7], np.int64), rope_table(frequencies(16, 1e4), 8)
    expected = rope_reference(x, positions, table, 20)
    rope(x, positions, table, 20, x, 0, 3)
    np.testing.assert_allclose(x, expected, atol=1e-6)


def test_a_share_does_its_tokens_and_no_others() -> None:
    x = np.random.default_rng(0).standard_normal((5, 16), np.float32)
    positions, table = np.arange(5, dtype=np.int64), rope_table(frequencies(8, 1e4), 5)
    whole, shares = np.empty_like(x), np.full_like(x, 77)
    rope(x, positions, table, 8, whole, 0, 5)
    rope(x, positions, table, 8, shares, 2, 3)
    assert (np.delete(shares, 2, axis=0) == 77).all()
    rope(x, positions, table, 8, shares, 0, 2)
    rope(x, positions, table, 8, shares, 3, 5)
    np.testing.assert_array_equal(shares, whole)


def test_the_angles_are_powers_of_theta() -> None:
    np.testing.assert_allclose(frequencies(8, 100_000.0), [1, 10**-1.25, 10**-2.5, 10**-3.75], rtol=1e-6)
    assert frequencies(8, 100_000.0).dtype == np.float32


# The bits of 1 / theta ** (arange(0, dim, 2).float() / dim) by torch 2.13, where float32's power rounds otherwise.
BY_TORCH = {
    (100_000.0, 64): {4: 0x3E72D423, 7: 0x3DA50956, 10: 0x3CE054D2, 15: 0x3B947DAE, 18: 0x3AC9D75C},
    (500_000.0, 128): {2: 0x3F29E1C6, 6: 0x3E959EE3, 15: 0x3D3D1684, 25: 0x3BC2AA76, 46: 0x38A8126B},
}


@pytest.mark.parametrize(("theta", "dim"), BY_TORCH)
def test_the_angles_are_rounded_as_in_training(theta: float, dim: int) -> None:
    """An angle that is off by its last bit is off by a quarter of a thousandth at position 4,000."""
    found = frequencies(dim, theta).view(np.uint32)
    for place, bits in BY_TORCH[theta, dim].items():
        assert found[place] == bits


def test_scores_depend_on_distances_alone() -> None:
    random = np.random.default_rng(3)
    q, k = random.standard_normal((2, 1, 64), np.float32)
    table = rope_table(frequencies(64, 1e4), 200)
    scores = []
    for shift in (0, 30, 120):
        turned = np.empty((2, 64), np.float32)
        rope(np.concatenate([q, k]), np.array([17 + shift, 4 + shift]), table, 64, turned, 0, 2)
        scores.append(float(turned[0] @ turned[1]))
    np.testing.assert_allclose(scores, scores[0], atol=2e-4)


def test_cosines_and_sines_are_scaled() -> None:
    angles = frequencies(8, 1e4)
    np.testing.assert_allclose(rope_table(angles, 9, 1.5), 1.5 * rope_table(angles, 9), rtol=1e-6)
