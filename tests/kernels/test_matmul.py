"""Matrix products against double precision, for every shape of tile, share and storage."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinylm.kernels.matmul import (
    BLOCK_ROWS,
    COLUMNS,
    DEPTH,
    LONG_BYTES,
    STRIP,
    matmul,
    matmul_reference,
    matvec,
    pack,
    packed_length,
    tiled,
)
from tinylm.kernels.streams import LONG
from tinylm.kernels.tile import LANES

WIDTHS = (1, 7, 12, 13, 64, 172, 576)
TOKENS = sorted(
    {1, 2, 4, 5, 7, 8, 9, 16, 17, LANES, LANES + 1, LANES + 9, 2 * LANES + 17, 100, STRIP + LANES + 3}
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


def packed_tokens(x: np.ndarray) -> np.ndarray:
    """Tokens (T, K) in a packed buffer, which takes as much room as they need."""
    packed = np.full((packed_length(len(x)), x.shape[1]), 77, np.float32)
    pack(x, packed, 0, -(-len(x) // LANES))
    return packed


def multiply(x: np.ndarray, weight: np.ndarray, shares: list[tuple[int, int]] | None = None) -> np.ndarray:
    """Tokens times weights as the executor does it, with a border around the result that must not change."""
    (T, K), N = x.shape, weight.shape[0]
    room = np.full(packed_length(T) * K + 64, 77, np.float32)
    packed = room[: packed_length(T) * K].reshape(packed_length(T), K)
    units = -(-T // LANES)
    for unit in reversed(range(units)):
        pack(x, packed, unit, unit + 1)
    border = np.full((T + 2) * N, 77, np.float32)
    out = border[N:-N].reshape(T, N)
    for begin, end in shares or [(0, N)]:
        matmul(packed, weight, out, False, begin, end)
    assert (room[packed_length(T) * K :] == 77).all()
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
    for N, K in ((13, 7), (1, 172), (12, 12), (64, 13), (172, 64), (7, 1), (3, 5000)):
        stored, weight = random_weight(N, K, dtype)
        x = random_tokens(T, K)
        check(multiply(x, keep(stored)), x, weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("T", TOKENS)
def test_a_result_that_stays_packed_is_as_it_would_be_packed(T: int, dtype: str) -> None:
    for N, K in ((13, 7), (12, 172), (64, 13), (3 * BLOCK_ROWS, DEPTH + 1)):
        stored, _ = random_weight(N, K, dtype)
        x = random_tokens(T, K)
        expected = packed_tokens(multiply(x, stored))
        room = np.full((packed_length(T) + 2, N), 77, np.float32)
        for begin, end in ((0, BLOCK_ROWS), (BLOCK_ROWS, N)):
            matmul(packed_tokens(x), stored, room[1 : T + 1], True, begin, end)
        np.testing.assert_array_equal(room[1:-1], expected)
        assert (room[0] == 77).all()
        assert (room[-1] == 77).all()


def test_a_model_s_width() -> None:
    stored, weight = random_weight(172, 576, "float32")
    x = random_tokens(45, 576)
    check(multiply(x, stored), x, weight)


@pytest.mark.parametrize("T", [1, 5, 20, LANES + 3])
@pytest.mark.parametrize("N", [12, 13, 40, 172])
def test_who_does_which_share_changes_no_bit(T: int, N: int) -> None:
    stored, _ = random_weight(N, 64, "float32")
    x = random_tokens(T, 64)
    borders = sorted({*range(0, N, BLOCK_ROWS), N})
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
    stored, _ = random_weight(40, 13, "float32")
    x = random_tokens(20, 13)
    out = multiply(x, stored, [(BLOCK_ROWS, 2 * BLOCK_ROWS)])
    assert (np.delete(out, range(BLOCK_ROWS, 2 * BLOCK_ROWS), axis=1) == 77).all()
    assert (out[:, BLOCK_ROWS : 2 * BLOCK_ROWS] != 77).all()


@pytest.mark.parametrize("T", [1, 3, 20, LANES + 9])
def test_a_token_s_logits_do_not_hang_on_its_neighbours(T: int) -> None:
    stored, _ = random_weight(29, 64, "float32")
    x = random_tokens(T, 64)
    spoiled = x.copy()
    spoiled[T // 2] = np.nan
    out, clean = multiply(spoiled, stored), multiply(x, stored)
    assert np.isnan(out[T // 2]).all()
    np.testing.assert_array_equal(np.delete(out, T // 2, axis=0), np.delete(clean, T // 2, axis=0))


@pytest.mark.parametrize("T", [1, 3, 40])
def test_a_bad_weight_spoils_its_row_alone(T: int) -> None:
    for n in (0, 11, 12, 28):
        stored, _ = random_weight(29, 64, "float32")
        x = random_tokens(T, 64)
        stored[n, 63] = np.nan
        assert np.isnan(multiply(x, stored)).all(axis=0).tolist() == [row == n for row in range(29)]
        out = np.empty((1, 29), np.float32)
        matvec(x[:1], stored, out, 0, 29)
        assert np.isnan(out[0]).tolist() == [row == n for row in range(29)]


@pytest.mark.parametrize("T", [3, LANES, LANES + 5])
@pytest.mark.parametrize("K", [DEPTH - 1, DEPTH, DEPTH + 1, 3 * DEPTH])
def test_columns_in_parts(T: int, K: int) -> None:
    for N in (BLOCK_ROWS, 2 * BLOCK_ROWS + 1):
        stored, weight = random_weight(N, K, "bfloat16")
        x = random_tokens(T, K)
        check(multiply(x, stored), x, weight)


def test_a_last_tile_is_half_full_or_there_is_none() -> None:
    for T in range(1, 4 * LANES):
        assert T - LANES // 2 <= tiled(T) <= T
        empty = -tiled(T) % LANES
        assert empty < LANES // 2
        assert tiled(T) + empty <= packed_length(T)
