"""int8 and int4 products against double precision: rounding is what it says, sums are exact in every share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinylm.kernels import matmul_int4, matmul_int8
from tinylm.kernels.dot import DOT
from tinylm.kernels.hadamard import GROUP
from tinylm.kernels.matmul_integers import (
    BLOCK_ROWS,
    MANY_FROM,
    blocks_of,
    groups_of,
    pack,
    pack_reference,
    packed_width,
    steps_of,
)

SHAPES = [(1, 1), (7, 7), (12, 13), (13, 64), (33, 65), (64, 172), (172, 128), (31, 576), (100, 3), (20, 100)]
"""(N, K)."""


class Int8:
    """What the tests must know of a format: its kernels, its bits, and what rounding costs."""

    kernels, bits, stored = matmul_int8, 8, np.int8
    multiply = matmul_int8.matmul_int8
    error = 0.01

    @staticmethod
    def number(packed: np.ndarray, n: int, k: int) -> float:
        return float(packed[n // 16, k // 4, n % 16, k % 4])

    @staticmethod
    def steps(rotated: np.ndarray) -> np.ndarray:
        """(N, K): between two numbers that a weight may become."""
        return np.abs(rotated).max(axis=1, keepdims=True) / 127 * (1 + 2**-7) + 0 * rotated


class Int4:
    kernels, bits, stored = matmul_int4, 4, np.uint8
    multiply = matmul_int4.matmul_int4
    error = 0.085

    @staticmethod
    def number(packed: np.ndarray, n: int, k: int) -> float:
        both = int(packed[n // 16, k // 8, n % 16, k % 4])
        levels = [-127, -98, -77, -60, -46, -33, -21, -10, 0, 11, 23, 35, 48, 63, 82, 107]
        return float(levels[both >> 4 if k % 8 >= 4 else both & 15])

    @staticmethod
    def steps(rotated: np.ndarray) -> np.ndarray:
        """The widest gap between levels is 29 of 127; a scale is at most 1.3 times what the largest needs."""
        return np.abs(rotated).max(axis=1, keepdims=True) * 1.3 * 50 / 127 + 0 * rotated


FORMATS: list[Any] = [Int8, Int4]
both_formats = pytest.mark.parametrize("format", FORMATS, ids=["int8", "int4"])


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


def by_hand(format: Any, packed: np.ndarray, scales: np.ndarray, N: int, K: int) -> np.ndarray:
    """(N, K) float64, still rotated, number by number, from the layout that the module describes."""
    factors = (scales.astype(np.uint32) << 16).view(np.float32)
    found = np.empty((N, K))
    for n in range(N):
        for k in range(K):
            found[n, k] = format.number(packed, n, k) * float(factors[n // 16, k // 64, n % 16])
    return found


def quantized(format: Any, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    N, K = weight.shape
    packed = np.full((blocks_of(N), steps_of(K, format.bits), 16, 4), 99, format.stored)
    scales = np.full((blocks_of(N), groups_of(K), 16), 99, np.uint16)
    for block in reversed(range(blocks_of(N))):
        format.kernels.quantize(weight, packed, scales, block, block + 1)
    return packed, scales


@both_formats
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_weights_are_rounded_to_the_nearest(format: Any, N: int, K: int, keep: Any) -> None:
    weight = random_weight(N, K)
    packed, scales = quantized(format, keep(weight))
    found, expected = by_hand(format, packed, scales, N, K), rotated(weight)
    for first in range(0, K, GROUP):
        part = slice(first, first + GROUP)
        assert (np.abs(found[:, part] - expected[:, part]) <= 0.5001 * format.steps(expected[:, part])).all()
    stands_for = rotated(found)
    dequantized = format.kernels.dequantize_reference(packed, scales, N, K)
    np.testing.assert_allclose(dequantized, stands_for, atol=1e-6, rtol=1e-5)
    error = np.sqrt(np.square(stands_for - weight).mean() / np.square(weight).mean())
    assert error < format.error
    expected_numbers, expected_scales = format.kernels.quantize_reference(weight)
    assert (expected_numbers.shape, expected_numbers.dtype) == (packed.shape, packed.dtype)
    other = format.kernels.dequantize_reference(expected_numbers, expected_scales, N, K)
    # where two scales, or two numbers, are as good as each other, the last bit of a sum may choose
    assert (scales != expected_scales).mean() <= (0 if format is Int8 else 0.01)
    assert (packed != expected_numbers).mean() < (0.001 if format is Int8 else 0.01)
    errors = [np.square(one - weight).sum() for one in (stands_for, other)]
    assert abs(errors[0] - errors[1]) <= 1e-3 * errors[1] + 1e-12


def test_int4_takes_the_nearest_level_and_no_scale_is_better() -> None:
    weight = random_weight(32, 192)
    packed, scales = quantized(Int4, weight)
    found, numbers = (
        by_hand(Int4, packed, scales, 32, 192).reshape(32, 3, 64),
        rotated(weight).reshape(32, 3, 64),
    )
    factors = (scales.astype(np.uint32) << 16).view(np.float32).swapaxes(1, 2).reshape(32, 3, 1).astype(float)
    assert (factors < 0).any()
    assert (factors > 0).any()
    levels = np.array(matmul_int4.LEVELS, float)

    def nearest(scale: np.ndarray) -> np.ndarray:
        choices = levels * scale[..., None]
        return np.take_along_axis(choices, np.abs(numbers[..., None] - choices).argmin(-1)[..., None], -1)[
            ..., 0
        ]

    np.testing.assert_allclose(
        np.abs(found - numbers), np.abs(nearest(factors) - numbers), rtol=1e-4, atol=1e-6
    )
    errors = np.square(found - numbers).sum(-1)
    largest = np.abs(numbers).max(-1, keepdims=True) / 127
    tried = [
        np.square(nearest(size * largest) - numbers).sum(-1) for size in (-1, 1, *np.linspace(0.7, 1.2, 21))
    ]
    best = np.min(tried, axis=0)
    assert (errors <= 1.15 * best).all()
    assert errors.sum() <= 1.01 * best.sum()


@both_formats
def test_bfloat16_weights(format: Any, keep: Any) -> None:
    bits = (random_weight(33, 65).view(np.uint32) >> 16).astype(np.uint16)
    widened = (bits.astype(np.uint32) << 16).view(np.float32)
    for found, expected in zip(quantized(format, keep(bits)), quantized(format, widened), strict=True):
        np.testing.assert_array_equal(found, expected)


@both_formats
def test_what_is_beyond_the_matrix_is_zero(format: Any) -> None:
    packed, scales = quantized(format, random_weight(17, 6))
    assert not any(format.number(packed, n, k) for n in range(17, 32) for k in range(8))
    assert not any(format.number(packed, n, k) for n in range(17) for k in range(6, 8))
    assert not scales[1, :, 1:].any()


@both_formats
def test_zeros_and_the_smallest_and_largest_numbers(format: Any) -> None:
    weight = np.zeros((5, 130), np.float32)
    weight[1] = 3e37
    weight[2] = 1e-30
    weight[3, 7] = 1
    weight[4] = -1e-44
    packed, scales = quantized(format, weight)
    found = format.kernels.dequantize_reference(packed, scales, 5, 130)
    np.testing.assert_allclose(found[[1, 2, 4]], weight[[1, 2, 4]], rtol=0.01, atol=2e-38)
    np.testing.assert_allclose(found[3], weight[3], atol=format.error)
    assert not found[0].any()


NANS = np.array([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)


@both_formats
@pytest.mark.parametrize("value", [*NANS, np.inf, -np.inf], ids=str)
def test_weights_that_are_no_numbers_stay_none(format: Any, value: float) -> None:
    weight = random_weight(33, 130)
    weight[20, 70] = value
    packed, scales = quantized(format, weight)
    with np.errstate(invalid="ignore"):
        found = format.kernels.dequantize_reference(packed, scales, 33, 130)
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
    """Numbers (T, columns), scales (T, G), what sums begin with (T, G), from the layout that the module describes."""
    T, columns, groups = len(packed), 8 * -(-K // 8), groups_of(K)
    data = packed.view(np.uint8).reshape(T, -1)
    numbers = data[:, :columns].view(np.int8)
    scales = data[:, columns : columns + 4 * groups].copy().view(np.float32)
    begins = data[:, columns + 4 * groups : columns + 8 * groups].copy().view(np.int32)
    assert data.shape[1] % 64 == 0
    return numbers.astype(np.int64), scales, begins


@pytest.mark.parametrize("K", [1, 7, 64, 65, 172, 576])
def test_activations_are_rotated_and_rounded(K: int, keep: Any) -> None:
    random = np.random.default_rng(K)
    x = (random.standard_normal((5, K)) * random.uniform(0.01, 100, (5, 1))).astype(np.float32)
    x[4] = 0
    numbers, scales, begins = parts(packed_tokens(keep(x)), K)
    assert np.abs(numbers).max() <= 127
    factors = np.repeat(scales, GROUP, axis=1)[:, :K]
    assert (np.abs(numbers[:, :K] * factors - rotated(x)) <= 0.502 * factors).all()
    assert not numbers[:, K:].any()
    for group in range(groups_of(K)):
        own = numbers[:, group * GROUP : (group + 1) * GROUP].sum(axis=1)
        np.testing.assert_array_equal(begins[:, group], -DOT.offset * own)
        assert np.abs(numbers[:4, group * GROUP : (group + 1) * GROUP]).max() == 127
    expected, expected_scales = pack_reference(x)
    np.testing.assert_allclose(scales, expected_scales, rtol=1e-5)
    assert np.abs(numbers[:, :K] - expected[:, :K]).max() <= 1


# Products


class Case:
    """A random product; what is stored stands for `weight` and `x` exactly."""

    def __init__(self, format: Any, T: int, N: int, K: int) -> None:
        self.format, self.shape = format, (T, N, K)
        self.numbers, self.scales = quantized(format, random_weight(N, K))
        self.weight = by_hand(format, self.numbers, self.scales, N, K)
        self.tokens = np.random.default_rng(T).standard_normal((T, K), np.float32)
        self.packed = packed_tokens(self.tokens)

    def run(self, shares: list[tuple[int, int]] | None = None) -> np.ndarray:
        T, N, K = self.shape
        border = np.full((T + 2) * N, 77, np.float32)
        out = border[N:-N].reshape(T, N)
        addresses = self.numbers.ctypes.data, self.scales.ctypes.data
        for begin, end in shares or [(0, N)]:
            self.format.multiply(self.packed, *addresses, K, out, begin, end)
        assert (border[:N] == 77).all()
        assert (border[-N:] == 77).all()
        return out

    def rounded_tokens(self) -> np.ndarray:
        """(T, K) float64, rotated as the weights are."""
        _, _, K = self.shape
        numbers, scales, _ = parts(self.packed, K)
        return numbers[:, :K] * np.repeat(scales.astype(np.float64), GROUP, axis=1)[:, :K]


TOKENS = sorted({1, 2, 3, 4, 5, 7, 8, 11, MANY_FROM, MANY_FROM + 5, 31, 75})


@both_formats
@pytest.mark.parametrize("T", TOKENS)
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_what_was_rounded_is_multiplied_to_the_last_bit(format: Any, T: int, N: int, K: int) -> None:
    case = Case(format, T, N, K)
    exact = case.rounded_tokens() @ case.weight.T
    room = 1e-6 * (np.abs(case.rounded_tokens()) @ np.abs(case.weight).T) + 1e-30
    assert (np.abs(case.run() - exact) <= room).all()


@both_formats
@pytest.mark.parametrize("T", [1, 4, 48])
def test_a_loud_number_does_not_drown_the_others(format: Any, T: int) -> None:
    """One activation in a thousand is a hundred times the others: what rounding it costs must stay small."""
    case = Case(format, T, 64, 576)
    case.tokens[:, 300] *= 100
    case.packed = packed_tokens(case.tokens)
    weight = rotated(case.weight)

    def error(found: np.ndarray) -> float:
        return float(np.sqrt(np.square(found - case.tokens @ weight.T).mean()))

    groups = case.tokens.reshape(T, -1, GROUP)
    step = np.abs(groups).max(axis=2, keepdims=True) / 127
    as_it_is = (np.rint(groups / step) * step).reshape(T, -1)
    assert error(case.run()) < 0.5 * error(as_it_is @ weight.T)


@both_formats
@pytest.mark.parametrize("T", [1, 4, 7, 40])
@pytest.mark.parametrize("N", [20, 32, 33, 100, 172])
def test_who_does_which_share_changes_no_bit(format: Any, T: int, N: int) -> None:
    case = Case(format, T, N, 172)
    whole = case.run()
    blocks = [(n, min(N, n + BLOCK_ROWS)) for n in range(0, N, BLOCK_ROWS)]
    np.testing.assert_array_equal(case.run(blocks[::-1]), whole)
    last = blocks[-1][0]
    np.testing.assert_array_equal(case.run([(last, N), (0, last)]), whole)


@both_formats
@pytest.mark.parametrize("T", [1, 2, 4, 7, 40])
def test_a_token_that_is_no_number_spoils_itself_alone(format: Any, T: int) -> None:
    case = Case(format, T, 50, 130)
    expected = case.run()
    case.tokens[T // 2, 70] = np.nan
    case.packed = packed_tokens(case.tokens)
    found = case.run()
    assert np.isnan(found[T // 2]).all()
    others = np.delete(np.arange(T), T // 2)
    np.testing.assert_array_equal(found[others], expected[others])


@both_formats
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_rows_by_index(format: Any, N: int, K: int, keep: Any) -> None:
    numbers, scales = (keep(array) for array in quantized(format, random_weight(N, K)))
    indices = np.array([N - 1, 0, N // 2, N // 2], np.int64)
    out = np.full((4, K), 77, np.float32)
    format.kernels.take(numbers.ctypes.data, scales.ctypes.data, indices, out, 1, 4)
    expected = rotated(by_hand(format, numbers, scales, N, K))[indices[1:]]
    np.testing.assert_allclose(out[1:], expected, rtol=1e-5, atol=1e-6)
    assert (out[0] == 77).all()
