"""bfloat16, as stored: 2 bytes a weight; a shift restores the float32 of exactly the same value."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinylm.formats import Packing
from tinylm.kernels.jit import Operation
from tinylm.kernels.matmul import matmul_bfloat16_operation, matvec_bfloat16_operation
from tinylm.kernels.matmul_amx_bf16 import (
    fits,
    matmul_bfloat16_amx_operation,
    pack_amx_operation,
    packed_width,
)
from tinylm.kernels.operands import array_operands
from tinylm.kernels.rows import take_bfloat16_operation
from tinylm.kernels.tile import LANES
from tinylm.kernels.tile_amx import TOKENS, permitted
from tinylm.kernels.tile_amx_bf16 import ROWS


class BFloat16Matrix:
    """A bfloat16 matrix (N, K), its bits in uint16."""

    format = "bfloat16"
    take = take_bfloat16_operation
    matvec = matvec_bfloat16_operation
    pack_single = False
    gated: Operation | None = None
    gated_rows = 0

    def __init__(self, bits: NDArray[np.uint16]) -> None:
        self._bits = bits
        self.shape: tuple[int, int] = bits.shape
        self.nbytes = bits.nbytes
        by_amx = permitted() and fits(*self.shape)
        self.matmul = matmul_bfloat16_amx_operation if by_amx else matmul_bfloat16_operation
        planes = packed_width(self.shape[1])
        self.packing = Packing(pack_amx_operation, planes, (1, TOKENS)) if by_amx else None
        self.grain = ROWS if by_amx else LANES

    def operands(self) -> list[int]:
        """Address, N, K."""
        return array_operands(self._bits)

    def rounded(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """As they are."""
        return x

    def dequantize(self) -> NDArray[np.float32]:
        """A float32 copy, the same values."""
        return widen(self._bits)


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 bits as float32 of the same values."""
    wide: NDArray[np.float32] = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return wide


def narrow(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 rounded to bfloat16 bits, to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded: NDArray[np.uint16] = (
        (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    ).astype(np.uint16)
    rounded[np.isnan(values)] = 0x7FC0
    return rounded
