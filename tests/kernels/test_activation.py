"""Activations against their definitions in double precision; gates and sums; shares cut anywhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tinylm.kernels.activation import (
    ACTIVATIONS,
    BLOCK,
    REFERENCES,
    activate,
    add,
    add_reference,
    gate,
    gate_reference,
)

KINDS = range(len(ACTIVATIONS))
SIZES = (1, 7, 12, 13, 172, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 100)


def definition(name: str, x: float) -> float:
    """The published formulas, number by number, in double precision."""
    if name == "silu":
        return x / (1 + math.exp(-x)) if x > -700 else 0.0
    if name == "gelu":
        return 0.5 * x * math.erfc(-x / math.sqrt(2))
    if name == "gelu_tanh":
        return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return max(x, 0.0)


def blocks(size: int) -> int:
    return -(-size // BLOCK)


@pytest.mark.parametrize("kind", KINDS, ids=ACTIVATIONS)
def test_activations_are_what_the_papers_say(kind: int) -> None:
    x = np.concatenate([np.linspace(-12, 12, 6001), [-1e4, -100, -90, -50, 50, 90, 100, 1e4]]).astype(
        np.float32
    )
    expected = np.array([definition(ACTIVATIONS[kind], value) for value in x.tolist()])
    out = np.empty_like(x)
    activate(kind, x, out, 0, blocks(len(x)))
    # exact and tanh GELU are up to 5e-4 apart: the wrong one must not pass
    np.testing.assert_allclose(out, expected, rtol=5e-6, atol=1e-6)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(REFERENCES[kind](x), expected, rtol=5e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=ACTIVATIONS)
@pytest.mark.parametrize("size", SIZES)
def test_gates(kind: int, size: int, keep: Any) -> None:
    random = np.random.default_rng(size)
    x, y = (keep((random.standard_normal(size) * 3).astype(np.float32)) for _ in range(2))
    out = np.full(size + 1, 77, np.float32)
    gate(kind, x, y, out[:size], 0, blocks(size))
    np.testing.assert_allclose(out[:size], gate_reference(kind, x, y), rtol=5e-6, atol=2e-6)
    assert out[size] == 77


@pytest.mark.parametrize("size", SIZES)
def test_sums(size: int, keep: Any) -> None:
    random = np.random.default_rng(size)
    x, y = (keep(random.standard_normal(size, np.float32)) for _ in range(2))
    out = np.full(size + 1, 77, np.float32)
    add(x, y, out[:size], 0, blocks(size))
    np.testing.assert_array_equal(out[:size], add_reference(x, y))
    assert out[size] == 77


def test_a_number_s_silu_does_not_hang_on_its_place() -> None:
    """A text has the same bits in steps of one token and of several, whose gates are cut otherwise."""
    x = np.random.default_rng(1).standard_normal(3 * BLOCK, np.float32)
    whole = np.empty_like(x)
    activate(0, x, whole, 0, 3)
    for size in (1, 7, 12, 20, 172, 300):
        for first in (0, 1, 100):
            out = np.empty(size, np.float32)
            activate(0, x[first : first + size], out, 0, blocks(size))
            np.testing.assert_array_equal(out, whole[first : first + size])


def test_a_share_does_its_blocks_and_no_others() -> None:
    x = np.random.default_rng(0).standard_normal(5 * BLOCK + 3, np.float32)
    whole, shares = np.empty_like(x), np.full_like(x, 77)
    gate(0, x, x, whole, 0, 6)
    gate(0, x, x, shares, 1, 2)
    assert (shares[:BLOCK] == 77).all()
    assert (shares[2 * BLOCK :] == 77).all()
    for begin, end in ((0, 1), (2, 5), (5, 6)):
        gate(0, x, x, shares, begin, end)
    np.testing.assert_array_equal(shares, whole)


@pytest.mark.parametrize("kind", KINDS, ids=ACTIVATIONS)
def test_not_a_number_comes_through(kind: int) -> None:
    x = np.array([1, np.nan, -1], np.float32)
    out = np.empty_like(x)
    activate(kind, x, out, 0, 1)
    assert np.isnan(out).tolist() == [False, True, False]
    gate(kind, np.ones(3, np.float32), x, out, 0, 1)
    assert np.isnan(out).tolist() == [False, True, False]
