"""int8 products against double precision: rounding is what it says, sums are exact, whoever does which share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinylm.kernels.hadamard import GROUP
from tinylm.kernels.matmul_int8 import (
    BLOCK_ROWS,
    MANY_TOKENS,
    blocks_of,
    dequantize_reference,
    groups_of,
    matmul_int8,
    pack,
    pack_reference,
    packed_width,
    padded_columns,
    quantize,
    quantize_reference,
    take,
)

SHAPES = [(1, 1), (7, 7), (12, 13), (13, 64), (33, 65), (64, 172), (172, 128), (31, 576), (100, 3)]
"""(N, K)."""


def random_weight(N: int, K: int) -> np.ndarray:
    random = np.random.default_rng(1000 * N + K)
    return (random.standard_normal((N, K)) * random.uniform(0.1, 2, (N, 1))).astype(np.float32)


def rotated(x: np.ndarray) -> np.ndarray:
    """(..., K) float64: each whole group of 64 by the Hadamard matrix, made by doubling."""
    H = np.ones((1, 1))
    for _ in range(6):
        H = np.block([[H, H], [H, -H]]) / np.sqrt(2)
    groups = [x[..., first : first + 64] for first in range(0, x.shape[-1], 64)]
    parts = [group @ H if group.shape[-1] == 64 else group for group in groups]
    return np.concatenate(parts, axis=-1).astype(np.float64)


def by_hand(packed: np.ndarray, scales: np.ndarray, N: int, K: int) -> np.ndarray:
    """(N, K) float64, still rotated, number by number, from the layout that the module describes."""
    factors = (scales.astype(np.uint32) << 16).view(np.float32)
    found = np.empty((N, K))
    for n in range(N):
        for k in range(K):
            number = packed[n // 16, k // 4, n % 16, k % 4]
            found[n, k] = float(number) * float(factors[n // 16, k // 64, n % 16])
    return found


def quantized(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    N, K = weight.shape
    packed = np.full((blocks_of(N), padded_columns(K) // 4, 16, 4), 99, np.int8)
    scales = np.full((blocks_of(N), groups_of(K), 16), 99, np.uint16)
    for block in reversed(range(blocks_of(N))):
        quantize(weight, packed, scales, block, block + 1)
    return packed, scales


@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_weights_are_rounded_to_the_nearest(N: int, K: int, keep: Any) -> None:
    weight = random_weight(N, K)
    packed, scales = quantized(keep(weight))
    found, expected = by_hand(packed, scales, N, K), rotated(weight)
    for first in range(0, K, GROUP):
        part = slice(first, first + GROUP)
        step = np.abs(expected[:, part]).max(axis=1, keepdims=True) / 127 * (1 + 2**-7)
        assert (np.abs(found[:, part] - expected[:, part]) <= 0.5001 * step).all()
    stands_for = rotated(found)
    np.testing.assert_allclose(dequantize_reference(packed, scales, N, K), stands_for, atol=1e-6, rtol=1e-5)
    error = np.sqrt(np.square(stands_for - weight).mean() / np.square(weight).mean())
    assert error < 0.01
    expected_numbers, expected_scales = quantize_reference(weight)
    np.testing.assert_array_equal(scales, expected_scales)
    # a number in the middle between two may be rounded to either
    difference = packed.astype(int) - expected_numbers
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.001
    assert np.abs(packed.astype(int)).max() <= 127


def test_bfloat16_weights(keep: Any) -> None:
    bits = (random_weight(33, 65).view(np.uint32) >> 16).astype(np.uint16)
    widened = (bits.astype(np.uint32) << 16).view(np.float32)
    for found, expected in zip(quantized(keep(bits)), quantized(widened), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_is_beyond_the_matrix_is_zero() -> None:
    packed, scales = quantized(random_weight(17, 6))
    assert not packed[1, :, 1:].any()
    assert not packed[:, 1, :, 2:].any()
    assert not scales[1, :, 1:].any()


def test_zeros_and_the_smallest_and_largest_numbers() -> None:
    weight = np.zeros((5, 130), np.float32)
    weight[1] = 3e37
    weight[2] = 1e-30
    weight[3, 7] = 1
    weight[4] = -1e-44
    packed, scales = quantized(weight)
    found = dequantize_reference(packed, scales, 5, 130)
    np.testing.assert_allclose(found[[1, 2, 4]], weight[[1, 2, 4]], rtol=0.01, atol=2e-38)
    np.testing.assert_allclose(found[3], weight[3], atol=0.01)
    assert not found[0].any()


NANS = np.array([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)


@pytest.mark.parametrize("value", [*NANS, np.inf, -np.inf], ids=str)
def test_weights_that_are_no_numbers_stay_none(value: float) -> None:
    weight = random_weight(33, 130)
    weight[20, 70] = value
    packed, scales = quantized(weight)
    with np.errstate(invalid="ignore"):
        found = dequantize_reference(packed, scales, 33, 130)
    assert not np.isfinite(found[20, 70])
    assert np.isfinite(np.delete(found, 20, axis=0)).all()
    assert np.isfinite(found[20, :64]).all()


# Activations


def packed_tokens(x: np.ndarray) -> np.ndarray:
    T, K = x.shape
    room = np.full((T + 1, packed_width(K)), 77, np.float32)
    for token in reversed(range(T)):
        pack(x, room[:T], token, token + 1)
    assert (room[T] == 77).all()
    return room[:T]


def parts(packed: np.ndarray, K: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers (T, columns), scales (T, G), sums (T, G), from the layout that the module describes."""
    T, columns, groups = len(packed), padded_columns(K), groups_of(K)
    data = packed.view(np.uint8).reshape(T, -1)
    numbers = data[:, :columns].view(np.int8)
    scales = data[:, columns : columns + 4 * groups].copy().view(np.float32)
    sums = data[:, columns + 4 * groups :].copy().view(np.int32)
    return numbers.astype(np.int64), scales, sums


@pytest.mark.parametrize("K", [1, 7, 64, 65, 172, 576])
def test_activations_are_rotated_and_rounded(K: int, keep: Any) -> None:
    random = np.random.default_rng(K)
    x = (random.standard_normal((5, K)) * random.uniform(0.01, 100, (5, 1))).astype(np.float32)
    x[4] = 0
    numbers, scales, sums = parts(packed_tokens(keep(x)), K)
    assert np.abs(numbers).max() <= 127
    factors = np.repeat(scales, GROUP, axis=1)[:, :K]
    assert (np.abs(numbers[:, :K] * factors - rotated(x)) <= 0.502 * factors).all()
    assert not numbers[:, K:].any()
    for group in range(groups_of(K)):
        own = numbers[:, group * GROUP : (group + 1) * GROUP].sum(axis=1)
        np.testing.assert_array_equal(sums[:, group], own)
        assert np.abs(numbers[:4, group * GROUP : (group + 1) * GROUP]).max() == 127
    expected, expected_scales = pack_reference(x)
    np.testing.assert_allclose(scales, expected_scales, rtol=1e-5)
    assert np.abs(numbers[:, :K] - expected[:, :K]).max() <= 1


# Products


class Case:
    """A random product; what is stored stands for `weight` and `x` exactly."""

    def __init__(self, T: int, N: int, K: int) -> None:
        self.shape = T, N, K
        self.numbers, self.scales = quantized(random_weight(N, K))
        self.weight = by_hand(self.numbers, self.scales, N, K)
        self.tokens = np.random.default_rng(T).standard_normal((T, K), np.float32)
        self.packed = packed_tokens(self.tokens)

    def run(self, shares: list[tuple[int, int]] | None = None) -> np.ndarray:
        T, N, K = self.shape
        border = np.full((T + 2) * N, 77, np.float32)
        out = border[N:-N].reshape(T, N)
        addresses = self.numbers.ctypes.data, self.scales.ctypes.data
        for begin, end in shares or [(0, N)]:
            matmul_int8(self.packed, *addresses, K, out, begin, end)
        assert (border[:N] == 77).all()
        assert (border[-N:] == 77).all()
        return out

    def rounded_tokens(self) -> np.ndarray:
        """(T, K) float64, rotated as the weights are."""
        _, _, K = self.shape
        numbers, scales, _ = parts(self.packed, K)
        return numbers[:, :K] * np.repeat(scales.astype(np.float64), GROUP, axis=1)[:, :K]


TOKENS = sorted({1, 2, 3, 4, 5, 7, 8, 11, MANY_TOKENS, MANY_TOKENS + 5, 31, 75})


@pytest.mark.parametrize("T", TOKENS)
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_what_was_rounded_is_multiplied_to_the_last_bit(T: int, N: int, K: int) -> None:
    case = Case(T, N, K)
    exact = case.rounded_tokens() @ case.weight.T
    room = 1e-6 * (np.abs(case.rounded_tokens()) @ np.abs(case.weight).T) + 1e-30
    assert (np.abs(case.run() - exact) <= room).all()


@pytest.mark.parametrize("T", [1, 4, 48])
def test_a_loud_number_does_not_drown_the_others(T: int) -> None:
    """One activation in a thousand is a hundred times the others: what rounding it costs must stay small."""
    case = Case(T, 64, 576)
    case.tokens[:, 300] *= 100
    case.packed = packed_tokens(case.tokens)
    weight = rotated(case.weight)

    def error(found: np.ndarray) -> float:
        return float(np.sqrt(np.square(found - case.tokens @ weight.T).mean()))

    groups = case.tokens.reshape(T, -1, GROUP)
    step = np.abs(groups).max(axis=2, keepdims=True) / 127
    as_it_is = (np.rint(groups / step) * step).reshape(T, -1)
    assert error(case.run()) < 0.5 * error(as_it_is @ weight.T)


@pytest.mark.parametrize("T", [1, 4, 7, 40])
@pytest.mark.parametrize("N", [20, 32, 33, 100, 172])
def test_who_does_which_share_changes_no_bit(T: int, N: int) -> None:
    case = Case(T, N, 172)
    whole = case.run()
    blocks = [(n, min(N, n + BLOCK_ROWS)) for n in range(0, N, BLOCK_ROWS)]
    np.testing.assert_array_equal(case.run(blocks[::-1]), whole)
    last = blocks[-1][0]
    np.testing.assert_array_equal(case.run([(last, N), (0, last)]), whole)


@pytest.mark.parametrize("T", [1, 2, 4, 7, 40])
def test_a_token_that_is_no_number_spoils_itself_alone(T: int) -> None:
    case = Case(T, 50, 130)
    expected = case.run()
    case.tokens[T // 2, 70] = np.nan
    case.packed = packed_tokens(case.tokens)
    found = case.run()
    assert np.isnan(found[T // 2]).all()
    others = np.delete(np.arange(T), T // 2)
    np.testing.assert_array_equal(found[others], expected[others])


@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_rows_by_index(N: int, K: int, keep: Any) -> None:
    numbers, scales = (keep(array) for array in quantized(random_weight(N, K)))
    indices = np.array([N - 1, 0, N // 2, N // 2], np.int64)
    out = np.full((4, K), 77, np.float32)
    take(numbers.ctypes.data, scales.ctypes.data, indices, out, 1, 4)
    expected = rotated(by_hand(numbers, scales, N, K))[indices[1:]]
    np.testing.assert_allclose(out[1:], expected, rtol=1e-5, atol=1e-6)
    assert (out[0] == 77).all()
