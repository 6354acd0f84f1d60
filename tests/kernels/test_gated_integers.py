"""Two products, a gate and its packing in one give what they give one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinylm.kernels import matmul_int4, matmul_int8
from tinylm.kernels.activation import ACTIVATIONS, gate_reference
from tinylm.kernels.gated_integers import FEWEST, GATED_TOKENS
from tinylm.kernels.hadamard import GROUP
from tinylm.kernels.jit import Function
from tinylm.kernels.matmul_amx import gated_amx
from tinylm.kernels.matmul_integers import groups_of, pack, pack_reference, packed_columns, packed_width
from tinylm.kernels.tile_amx import permitted

KERNELS: dict[str, tuple[Any, Function, Function]] = {
    "int8": (matmul_int8, matmul_int8.matmul_int8, matmul_int8.gated_int8),
    "int4": (matmul_int4, matmul_int4.matmul_int4, matmul_int4.gated_int4),
}
if permitted():
    KERNELS["int8 by AMX"] = (matmul_int8, matmul_int8.matmul_int8, gated_amx)


Stored = list[Any]


def quantized(kernels: Any, N: int, K: int, seed: int, keep: Any) -> Stored:
    weight = np.random.default_rng(seed).standard_normal((N, K), np.float32)
    return [keep(one) for one in kernels.quantize_reference(weight)]


def addresses(stored: Stored) -> tuple[int, int]:
    return stored[0].ctypes.data, stored[1].ctypes.data


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "T", [1, 3, FEWEST - 1, FEWEST, FEWEST + 1, 33, GATED_TOKENS + 1, 2 * GATED_TOKENS + 19]
)
def test_as_one_after_the_other(name: str, T: int, keep: Any) -> None:
    kernels, product, gated = KERNELS[name]
    for kind, (N, K) in enumerate([(64, 64), (172, 64), (7, 130), (200, 33), (320, 576)]):
        kind %= len(ACTIVATIONS)
        stored = [quantized(kernels, N, K, seed, keep) for seed in (1, 2)]
        gates, ups = map(addresses, stored)
        x = np.random.default_rng(T).standard_normal((T, K), np.float32)
        packed = np.zeros((T + 3, packed_width(K)), np.float32)  # with more room than tokens
        pack(x, packed, 0, T)
        results = np.zeros((2, T, N), np.float32)
        for result, (weights, scales) in zip(results, (gates, ups), strict=True):
            product(packed, weights, scales, K, result, 0, N)
        expected, scale = pack_reference(gate_reference(kind, *results))

        border = np.full((T + 2, packed_width(N)), 77, np.float32)
        out = border[1:-1]
        for group in reversed(range(groups_of(N))):
            gated(packed, gates, ups, K, N, T, kind, out, group, group + 1)
        assert (border[[0, -1]] == 77).all()
        columns, groups = packed_columns(N), groups_of(N)
        numbers = out.view(np.int8)[:, :columns]
        found = out[:, columns // 4 : columns // 4 + groups]
        np.testing.assert_allclose(found, scale, rtol=2e-5, atol=1e-30)
        wrong = np.abs(numbers[:, :N] - expected[:, :N])
        assert wrong.max() <= 1
        assert (wrong != 0).mean() < 2e-3
        assert not numbers[:, N:].any()

        whole = np.full((T, packed_width(N)), 77, np.float32)
        gated(packed, gates, ups, K, N, T, kind, whole, 0, groups)
        np.testing.assert_array_equal(whole.view(np.int32), out.view(np.int32))


@pytest.mark.parametrize("name", KERNELS)
def test_what_is_packed_is_what_the_next_product_takes(name: str, keep: Any) -> None:
    """A packed token holds, beside its numbers and scales, what sums begin with: as `pack` writes it."""
    kernels, product, gated = KERNELS[name]
    N, K, T = 3 * GROUP + 20, 96, 37
    stored = [quantized(kernels, N, K, seed, keep) for seed in (3, 4)]
    gates, ups = map(addresses, stored)
    packed = np.zeros((T, packed_width(K)), np.float32)
    pack(np.random.default_rng(0).standard_normal((T, K), np.float32), packed, 0, T)
    results = np.zeros((2, T, N), np.float32)
    for result, (weights, scales) in zip(results, (gates, ups), strict=True):
        product(packed, weights, scales, K, result, 0, N)
    expected, found = np.zeros((2, T, packed_width(N)), np.float32)
    pack(
        np.maximum(results[0], np.float32(0)) * results[1], expected, 0, T
    )  # a gate without rounding of its own
    gated(packed, gates, ups, K, N, T, ACTIVATIONS.index("relu"), found, 0, groups_of(N))
    np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))
