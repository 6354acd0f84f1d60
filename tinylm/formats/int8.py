"""int8 with a scale for every row and group of 64 columns, rotated group by group: 1.03 bytes a weight.

The layout is that of `kernels/matmul_int8.py`, in memory as on disk, so that a quantized folder is mapped and
ready: `NAME` (blocks, K / 4, 16, 4) I8 and `NAME.scales` (blocks, G, 16) BF16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylm.kernels.dot import COLUMNS, ROWS
from tinylm.kernels.matmul_int8 import (
    BLOCK_ROWS,
    blocks_of,
    dequantize_reference,
    groups_of,
    matmul_int8_operation,
    pack_int8_operation,
    packed_width,
    padded_columns,
    quantize_bfloat16_operation,
    quantize_float32_operation,
    round_reference,
    take_int8_operation,
)
from tinylm.kernels.operands import array_operands
from tinylm.kernels.team import Team, single

SCALES = ".scales"
"""What the name of a matrix's scales ends in, beside its own."""


class Int8Matrix:
    """An int8 matrix (N, K): numbers (blocks, K / 4, 16, 4) int8 and scales (blocks, G, 16) bfloat16 bits."""

    format = "int8"
    take = take_int8_operation
    matvec = matmul_int8_operation
    matmul = matmul_int8_operation
    pack = pack_int8_operation
    pack_single = True
    grain = BLOCK_ROWS

    def __init__(self, numbers: NDArray[np.int8], scales: NDArray[np.uint16], shape: tuple[int, int]) -> None:
        assert (numbers.shape, scales.shape) == stored_shapes(shape)
        self._numbers, self._scales = numbers, scales
        self.shape = shape
        self.nbytes = numbers.nbytes + scales.nbytes

    def pack_width(self) -> int:
        """Bytes, scales and sums."""
        return packed_width(self.shape[1])

    def pack_units(self) -> tuple[int, int]:
        """A unit is one token."""
        return 1, 1

    def operands(self) -> list[int]:
        """Address of the numbers, address of the scales, K."""
        return [array_operands(self._numbers)[0], array_operands(self._scales)[0], self.shape[1]]

    def rounded(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rotated, rounded to int8, and turned back."""
        values: NDArray[np.float32] = round_reference(x)
        return values

    def dequantize(self) -> NDArray[np.float32]:
        """A float32 copy of what the numbers stand for."""
        values: NDArray[np.float32] = dequantize_reference(self._numbers, self._scales, *self.shape)
        return values

    def arrays(self) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
        """Numbers and scales, as they are stored."""
        return self._numbers, self._scales


def stored_shapes(shape: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of numbers and scales of a matrix (N, K)."""
    N, K = shape
    return (blocks_of(N), padded_columns(K) // COLUMNS, ROWS, COLUMNS), (blocks_of(N), groups_of(K), ROWS)


def quantize(weights: NDArray[Any], team: Team) -> Int8Matrix:
    """A float32 matrix (N, K), or bfloat16 bits in uint16, rounded to int8 by all threads of a team."""
    shape = (weights.shape[0], weights.shape[1])
    number_shape, scale_shape = stored_shapes(shape)
    numbers, scales = np.empty(number_shape, np.int8), np.empty(scale_shape, np.uint16)
    kernel = quantize_bfloat16_operation if weights.dtype == np.uint16 else quantize_float32_operation
    blocks = number_shape[0]
    operands = [*array_operands(weights), numbers.ctypes.data, number_shape[1], scales.ctypes.data]
    team.run(single(kernel.address, blocks, 4, [*operands, scale_shape[1], blocks]))
    return Int8Matrix(numbers, scales, shape)
