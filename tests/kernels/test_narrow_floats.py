"""Numbers of two bytes: every one there is becomes the float32 of its value, and float32 is rounded to nearest."""

from __future__ import annotations

import numpy as np
import pytest

from tinylm.kernels.jit import njit
from tinylm.kernels.narrow_floats import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    narrow_at,
    narrow_reference,
    widen_reference,
    widen_to,
)
from tinylm.kernels.tile import WIDTH


@njit
def widen(like, source, wide, count):
    widen_to(like, source, wide, count)


@njit
def narrow(like, numbers, stored, size):
    for i in range(numbers.shape[0]):
        narrow_at(like, numbers[i], stored.ctypes.data + size * i)


EVERY = np.arange(2**16, dtype=np.uint16)


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """The same bits, but for a NaN, which is any NaN."""
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found[~nan].view(np.uint32), expected[~nan].view(np.uint32))


@pytest.mark.parametrize("like", [BFLOAT16, FLOAT16], ids=["bfloat16", "float16"])
def test_every_number_is_widened(like: np.generic) -> None:
    stored = EVERY.view(like.dtype)
    room = np.full(len(stored) + WIDTH, 77, np.float32)
    widen(like, stored.ctypes.data, room.ctypes.data, len(stored))
    expected = widen_reference(like, stored)
    if like is FLOAT16:
        same(expected, EVERY.view(np.float16).astype(np.float32))
    same(room[: len(stored)], expected)


@pytest.mark.parametrize("like", [FLOAT32, BFLOAT16, FLOAT16], ids=["float32", "bfloat16", "float16"])
def test_so_many_numbers_are_written_and_no_more(like: np.generic) -> None:
    for count in (0, 1, WIDTH - 1, WIDTH, WIDTH + 1, 3 * WIDTH - 1):
        stored = np.arange(count).astype(np.float32) if like is FLOAT32 else EVERY[:count].view(like.dtype)
        room = np.full(count + 2, 77, np.float32)
        widen(like, stored.ctypes.data, room[1:].ctypes.data, count)
        same(room[1:-1], widen_reference(like, stored))
        assert room[0] == room[-1] == 77


@pytest.mark.parametrize("like", [BFLOAT16, FLOAT16], ids=["bfloat16", "float16"])
def test_numbers_are_rounded_to_nearest_and_ties_to_even(like: np.generic) -> None:
    stored = EVERY.view(like.dtype)
    wide = widen_reference(like, stored)
    bits = wide.view(np.uint32)
    shift = 16 if like is BFLOAT16 else 13
    ties = bits + np.uint32(1 << (shift - 1))
    numbers = np.concatenate(
        [bits, ties, ties - 1, ties + 1, np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint32)]
    ).view(np.float32)
    numbers = np.concatenate([numbers, np.float32([1e-8, 5e-8, 65519, 65520, 1e38, -0.0])])
    found = np.zeros(len(numbers), like.dtype)
    narrow(like, numbers, found, 2)
    expected = narrow_reference(like, numbers)
    if like is FLOAT16:
        with np.errstate(over="ignore"):
            expected = numbers.astype(np.float16).view(np.int16)
    same(widen_reference(like, found), widen_reference(like, expected))
