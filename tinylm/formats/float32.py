"""float32, as stored: 4 bytes a weight, read straight from the checkpoint's memory map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinylm.formats import Packing
from tinylm.kernels.jit import Operation
from tinylm.kernels.matmul import matmul_operation, matvec_operation
from tinylm.kernels.operands import array_operands
from tinylm.kernels.rows import take_operation
from tinylm.kernels.tile import LANES


class Float32Matrix:
    """A float32 matrix (N, K)."""

    format = "float32"
    take = take_operation
    matvec = matvec_operation
    matmul = matmul_operation
    packing: Packing | None = None
    pack_single = False
    gated: Operation | None = None
    gated_rows = 0
    grain = LANES

    def __init__(self, weights: NDArray[np.float32]) -> None:
        self._weights = weights
        self.shape: tuple[int, int] = weights.shape
        self.nbytes = weights.nbytes

    def operands(self) -> list[int]:
        """Address, N, K."""
        return array_operands(self._weights)

    def rounded(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """As they are."""
        return x

    def dequantize(self) -> NDArray[np.float32]:
        """The matrix itself."""
        return self._weights
