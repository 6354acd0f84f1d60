"""Rows rounded to bytes: within half a step of the numbers, sums and scales beside them."""

from __future__ import annotations

import numpy as np
import pytest

from tinylm.kernels.hadamard import GROUP
from tinylm.kernels.jit import njit
from tinylm.kernels.packed_rows import pack_reference, pack_row, packed_bytes


@njit
def run_row(numbers, packed):
    pack_row(numbers.ctypes.data, packed.ctypes.data, numbers.shape[0])


class Packed:
    """The parts of a packed row, which lies between guards."""

    def __init__(self, size: int) -> None:
        self.room = np.full(packed_bytes(size) + 128, 77, np.uint8)
        self.bytes = self.room[64:-64]
        groups = -(-size // GROUP)
        self.numbers = self.bytes[:size].view(np.int8)
        self.scales = self.bytes[size:][: 4 * groups].view(np.float32)
        self.sums = self.bytes[size + 4 * groups :].view(np.int32)

    def check(self, exact: np.ndarray) -> None:
        """That these numbers are packed."""
        assert (self.room[:64] == 77).all()
        assert (self.room[-64:] == 77).all()
        rounded, scales = pack_reference(exact)
        np.testing.assert_allclose(self.scales, scales, rtol=1e-6)
        assert np.abs(self.numbers.astype(int) - rounded).max() <= 1
        wide = np.repeat(self.scales.astype(np.float64), GROUP)[: len(exact)]
        assert (np.abs(self.numbers * wide - exact) <= 0.501 * wide).all()
        sums = [
            self.numbers[begin : begin + GROUP].sum(dtype=np.int32) for begin in range(0, len(exact), GROUP)
        ]
        np.testing.assert_array_equal(self.sums, sums)


SIZES = [16, 48, 64, 80, 96, 128, 256]


@pytest.mark.parametrize("size", SIZES)
def test_a_row(size: int) -> None:
    numbers = np.random.default_rng(size).standard_normal(size).astype(np.float32) * np.float32(3)
    packed = Packed(size)
    run_row(numbers, packed.bytes)
    packed.check(numbers)


def test_zeros_and_what_is_no_number() -> None:
    numbers = np.zeros(128, np.float32)
    numbers[70] = np.nan
    packed = Packed(128)
    run_row(numbers, packed.bytes)
    assert (packed.numbers[:64] == 0).all()
    assert packed.scales[0] == 0
    assert np.isnan(packed.scales[1])
