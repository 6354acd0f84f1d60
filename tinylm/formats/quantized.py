"""Weights as small integers with a scale for every row and group of 64 columns, rotated group by group.

The layout is that of `kernels/matmul_integers.py`, in memory as on disk, so that a quantized folder is mapped and
ready: `NAME` (blocks, steps, 16, 4) and `NAME.scales` (blocks, G, 16) BF16. A format is a class that names its kernels;
`QUANTIZED` of `formats/table.py` lists them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tinylm.formats import Packing
from tinylm.kernels.dot import COLUMNS, ROWS
from tinylm.kernels.hadamard import GROUP
from tinylm.kernels.jit import Operation
from tinylm.kernels.matmul_integers import (
    BLOCK_ROWS,
    blocks_of,
    groups_of,
    pack_int8_operation,
    packed_width,
    round_reference,
    steps_of,
)
from tinylm.kernels.operands import aligned, array_operands
from tinylm.kernels.team import Team
from tinylm.kernels.walk import single

SCALES = ".scales"
"""What the name of a matrix's scales ends in, beside its own."""

Shapes = tuple[tuple[int, ...], tuple[int, ...]]


class QuantizedMatrix:
    """A matrix (N, K) of few bits: numbers (blocks, steps, 16, 4) of 1 byte, scales (blocks, G, 16) bfloat16 bits."""

    format: str
    bits: ClassVar[int]
    stored: ClassVar[str]
    """The safetensors type of the numbers, by which a folder tells the formats apart."""
    numpy_type: ClassVar[type[np.generic]]
    of_vocabulary: ClassVar[type[QuantizedMatrix]]
    """The format of matrices with a row for each token, embedding and head, where the others have this one."""
    take: Operation
    matvec: Operation
    matmul: Operation
    gated: Operation | None
    quantize_operations: ClassVar[tuple[Operation, Operation]]
    """Of float32 weights, and of bfloat16."""
    dequantize_reference: ClassVar[Callable[..., NDArray[np.float32]]]

    pack_single = True
    grain = BLOCK_ROWS
    gated_rows = GROUP

    def __init__(self, numbers: NDArray[Any], scales: NDArray[np.uint16], shape: tuple[int, int]) -> None:
        assert (numbers.shape, scales.shape) == self.stored_shapes(shape)
        self._numbers, self._scales = numbers, scales
        self.shape = shape
        self.nbytes = numbers.nbytes + scales.nbytes
        self.packing: Packing | None = Packing(pack_int8_operation, int(packed_width(shape[1])))

    @classmethod
    def stored_shapes(cls, shape: tuple[int, int]) -> Shapes:
        """The shapes of numbers and scales of a matrix (N, K)."""
        N, K = shape
        return (blocks_of(N), steps_of(K, cls.bits), ROWS, COLUMNS), (blocks_of(N), groups_of(K), ROWS)

    @classmethod
    def stored_bytes(cls, shape: tuple[int, int]) -> int:
        """Bytes of a matrix (N, K)."""
        numbers, scales = cls.stored_shapes(shape)
        return math.prod(numbers) + 2 * math.prod(scales)

    @classmethod
    def quantize(cls, weights: NDArray[Any], team: Team) -> QuantizedMatrix:
        """A float32 matrix (N, K), or bfloat16 bits in uint16, rounded by all threads of a team."""
        shape = (weights.shape[0], weights.shape[1])
        number_shape, scale_shape = cls.stored_shapes(shape)
        numbers, scales = aligned(number_shape, cls.numpy_type), aligned(scale_shape, np.uint16)
        kernel = cls.quantize_operations[weights.dtype == np.uint16]
        blocks = number_shape[0]
        operands = [*array_operands(weights), numbers.ctypes.data, number_shape[1], scales.ctypes.data]
        team.run(single(kernel.address, blocks, 4, [*operands, scale_shape[1], blocks]))
        return cls(numbers, scales, shape)

    def operands(self) -> list[int]:
        """Address of the numbers, address of the scales, K."""
        return [array_operands(self._numbers)[0], array_operands(self._scales)[0], self.shape[1]]

    def rounded(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rotated, rounded to int8, and turned back."""
        values: NDArray[np.float32] = round_reference(x)
        return values

    def dequantize(self) -> NDArray[np.float32]:
        """A float32 copy of what the numbers stand for."""
        return type(self).dequantize_reference(self._numbers, self._scales, *self.shape)

    def arrays(self) -> tuple[NDArray[Any], NDArray[np.uint16]]:
        """Numbers and scales, as they are stored."""
        return self._numbers, self._scales
