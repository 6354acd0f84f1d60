"""Rows are moved whole, and nothing beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinylm.kernels.rows import add_bias, add_bias_reference, heads, heads_reference, take, take_reference


@pytest.mark.parametrize("K", [1, 7, 12, 13, 64, 172, 576])
def test_rows_by_index(K: int, keep: Any) -> None:
    table = np.random.default_rng(K).standard_normal((11, K), np.float32)
    indices = np.array([10, 0, 3, 3, 9], np.int64)
    out = np.full((5, K), 77, np.float32)
    take(keep(table), keep(indices), out, 1, 4)
    np.testing.assert_array_equal(out[1:4], take_reference(table, indices)[1:4])
    assert (out[[0, 4]] == 77).all()


def test_rows_of_bfloat16_are_widened_exactly(keep: Any) -> None:
    bits = np.array([[0x3F80, 0xC000, 0x0001], [0x7F80, 0xFF80, 0x8000], [0x7FC0, 0x3F81, 0x0000]], np.uint16)
    out = np.empty((3, 3), np.float32)
    take(keep(bits), np.arange(3), out, 0, 3)
    np.testing.assert_array_equal(out.view(np.uint32), bits.astype(np.uint32) << 16)
    np.testing.assert_array_equal(out[0], np.array([1, -2, 2.0**-133], np.float32))


@pytest.mark.parametrize("N", [1, 7, 64, 172])
def test_biases(N: int, keep: Any) -> None:
    random = np.random.default_rng(N)
    x, bias = random.standard_normal((6, N), np.float32), random.standard_normal(N, np.float32)
    expected = add_bias_reference(x, bias)
    expected[[0, 5]] = x[[0, 5]]
    add_bias(x, keep(bias), 1, 5)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize(("H", "size", "stride"), [(1, 1, 1), (4, 8, 24), (3, 7, 20), (9, 64, 192)])
def test_parts_of_heads(H: int, size: int, stride: int, keep: Any) -> None:
    x = np.random.default_rng(H).standard_normal((5, H * stride), np.float32)
    for offset in range(0, stride - size + 1, size):
        expected = np.stack([x[:, h * stride + offset :][:, :size] for h in range(H)], axis=1).reshape(5, -1)
        out = np.full((5, H * size), 77, np.float32)
        heads(keep(x), offset, size, stride, out, 1, 5)
        np.testing.assert_array_equal(out[1:], expected[1:])
        assert (out[0] == 77).all()
        np.testing.assert_array_equal(heads_reference(x, offset, size, stride), expected)
