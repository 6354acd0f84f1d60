"""Matrix products against double precision, for every shape of tile, share and storage."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinylm.kernels.matmul import (
    COLUMNS,
    DEPTH,
    FEWEST,
    LONG_BYTES,
    SOME,
    matmul,
    matmul_reference,
    matvec,
)
from tinylm.kernels.streams import LONG
from tinylm.kernels.tile import LANES, NARROW, ROWS

WIDTHS = (1, 7, 12, 13, 64, 172, 576)
TOKENS = sorted(
    {1, 2, 4, 5, 7, 8, 9, FEWEST - 1, FEWEST, FEWEST + 1, 17, 2 * ROWS + NARROW, 3 * ROWS + NARROW + 1, 100}
    | {SOME, SOME + 1, 2 * SOME + ROWS - 1, 500}
)


def random_weight(N: int, K: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as it is stored, and the float32 numbers that it stands for."""
    weight = np.random.default_rng(1000 * N + K).standard_normal((N, K), np.float32)
    if dtype == "float32":
        return weight, weight
    bits = (weight.view(np.uint32) >> 16).astype(np.uint16)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32)


def random_tokens(T: int, K: int) -> np.ndarray:
    return np.random.default_rng(T).standard_normal((T, K), np.float32)


def check(found: np.ndarray, x: np.ndarray, weight: np.ndarray) -> None:
    """No number is further off than rounding in float32 can bring it: a lost or doubled term is."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    room = 1e-6 * np.sqrt(x.shape[1]) * (np.abs(x) @ np.abs(weight).T) + 1e-30
    assert (np.abs(found - x @ weight.T) / room).max() <= 1


def multiply(x: np.ndarray, weight: np.ndarray, shares: list[tuple[int, int]] | None = None) -> np.ndarray:
    """Tokens times weights as the executor does it, with a border around the result that must not change."""
    T, N = len(x), weight.shape[0]
    border = np.full((T + 2) * N, 77, np.float32)
    out = border[N:-N].reshape(T, N)
    for begin, end in shares or [(0, N)]:
        matmul(x, weight, out, begin, end)
    assert (border[:N] == 77).all()
    assert (border[-N:] == 77).all()
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("K", WIDTHS)
def test_one_token(K: int, dtype: str, keep: Any) -> None:
    for N in WIDTHS:
        stored, weight = random_weight(N, K, dtype)
        x = random_tokens(1, K)
        border = np.full((1, N + 2), 77, np.float32)
        matvec(x, keep(stored), border[:, 1:-1], 0, N)
        check(border[:, 1:-1], x, weight)
        check(matmul_reference(x, weight), x, weight)
        assert border[0, 0] == border[0, -1] == 77


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("K", [12, 576, LONG + COLUMNS])
def test_one_token_again_overwrites_each_result_with_itself_alone(
    meanwhile: Callable[..., Any], K: int, dtype: str
) -> None:
    """Others may read the results meanwhile (`walk`)."""
    stored, _ = random_weight(40, K, dtype)
    x, out = random_tokens(1, K), np.zeros((1, 40), np.float32)
    matvec(x, stored, out, 0, 40)
    before = out.copy()
    with meanwhile(lambda: matvec(x, stored, out, 0, 40)):
        for _ in range(3000):
            np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("K", [LONG, LONG + 1, 3 * LONG + COLUMNS - 5, LONG_BYTES + 1])
def test_one_token_and_long_rows(K: int, dtype: str, keep: Any) -> None:
    N = 2 * LONG_BYTES // (4 * K) + 3
    stored, weight = random_weight(N, K, dtype)
    x = random_tokens(1, K)
    border = np.full((1, N + 2), 77, np.float32)
    matvec(x, keep(stored), border[:, 1:-1], 0, N)
    check(border[:, 1:-1], x, weight)
    assert border[0, 0] == border[0, -1] == 77
    shares = np.empty((1, N), np.float32)
    for begin, end in ((1, N), (0, 1)):
        matvec(x, keep(stored), shares, begin, end)
    np.testing.assert_array_equal(shares, border[:, 1:-1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("T", TOKENS)
def test_several_tokens(T: int, dtype: str, keep: Any) -> None:
    for N, K in (
        (13, 7),
        (1, 172),
        (12, 12),
        (64, 13),
        (172, 64),
        (7, 1),
        (3, 5000),
        (2 * LANES, 5000),
        (LANES + 8, 2000),
    ):
        stored, weight = random_weight(N, K, dtype)
        x = random_tokens(T, K)
        check(multiply(keep(x), keep(stored)), x, weight)


def test_a_model_s_width() -> None:
    stored, weight = random_weight(172, 576, "float32")
    x = random_tokens(45, 576)
    check(multiply(x, stored), x, weight)


@pytest.mark.parametrize("T", [1, 5, 20, LANES + 3])
@pytest.mark.parametrize("N", [12, 13, 40, 172])
def test_who_does_which_share_changes_no_bit(T: int, N: int) -> None:
    stored, _ = random_weight(N, 64, "float32")
    x = random_tokens(T, 64)
    borders = sorted({*range(0, N, LANES), N})
    whole = multiply(x, stored)
    by_block = list(itertools.pairwise(borders))
    np.testing.assert_array_equal(multiply(x, stored, by_block[::-1]), whole)
    middle = borders[len(borders) // 2]
    np.testing.assert_array_equal(multiply(x, stored, [(middle, N), (0, middle)]), whole)
    if T == 1:
        out = np.empty((1, N), np.float32)
        matvec(x, stored, out, 0, N)
        shares = np.empty((1, N), np.float32)
        for begin, end in by_block:
            matvec(x, stored, shares, begin, end)
        np.testing.assert_array_equal(shares, out)


def test_a_share_writes_its_rows_alone() -> None:
    stored, _ = random_weight(2 * LANES + 5, 13, "float32")
    for begin, end in ((LANES, 2 * LANES), (2 * LANES, len(stored))):
        out = multiply(random_tokens(20, 13), stored, [(begin, end)])
        assert (np.delete(out, range(begin, end), axis=1) == 77).all()
        assert (out[:, begin:end] != 77).all()


@pytest.mark.parametrize("T", [1, 3, 20, LANES + 9])
def test_a_token_s_logits_do_not_hang_on_its_neighbours(T: int) -> None:
    stored, _ = random_weight(LANES + 29, 64, "float32")
    x = random_tokens(T, 64)
    spoiled = x.copy()
    spoiled[T // 2] = np.nan
    out, clean = multiply(spoiled, stored), multiply(x, stored)
    assert np.isnan(out[T // 2]).all()
    np.testing.assert_array_equal(np.delete(out, T // 2, axis=0), np.delete(clean, T // 2, axis=0))


@pytest.mark.parametrize("T", [1, 3, 40])
def test_a_bad_weight_spoils_its_row_alone(T: int) -> None:
    N = LANES + 29
    for n in (0, 11, LANES - 1, LANES, N - 1):
        stored, _ = random_weight(N, 64, "float32")
        x = random_tokens(T, 64)
        stored[n, 63] = np.nan
        assert np.isnan(multiply(x, stored)).all(axis=0).tolist() == [row == n for row in range(N)]
        out = np.empty((1, N), np.float32)
        matvec(x[:1], stored, out, 0, N)
        assert np.isnan(out[0]).tolist() == [row == n for row in range(N)]


@pytest.mark.parametrize("T", [3, LANES, LANES + 5])
@pytest.mark.parametrize("K", [DEPTH - 1, DEPTH, DEPTH + 1, 3 * DEPTH])
def test_columns_in_parts(T: int, K: int) -> None:
    for N in (LANES, 2 * LANES + 1):
        stored, weight = random_weight(N, K, "bfloat16")
        x = random_tokens(T, K)
        check(multiply(x, stored), x, weight)
