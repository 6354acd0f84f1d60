"""How an `Operation` sees its operands: arrays over the addresses in its row of the table.

An array of n dimensions takes 1 + n places there: its address and its shape, C-contiguous.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylm.kernels.jit import carray, njit
from tinylm.kernels.simd import CACHE_LINE, memory


def aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array, zero, that begins at a cache line: no register full of it straddles two."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(size + CACHE_LINE, np.uint8)
    skip = -room.ctypes.data % CACHE_LINE
    return room[skip : skip + size].view(dtype).reshape(shape)


def array_operands(array: NDArray[Any]) -> list[int]:
    """Address and shape of a C-contiguous array."""
    if not array.flags.c_contiguous:
        raise AssertionError("an operand must be C-contiguous")
    return [array.ctypes.data, *array.shape]


@njit
def float32_1d(operands, index):
    """(n,) float32 of `operands[index : index + 2]`."""
    return carray(memory(operands[index]), (operands[index + 1],), np.float32)


@njit
def float32_2d(operands, index):
    """(n, m) float32 of `operands[index : index + 3]`."""
    return carray(memory(operands[index]), (operands[index + 1], operands[index + 2]), np.float32)


@njit
def uint16_2d(operands, index):
    """(n, m) uint16, the bits of float16 or bfloat16, of `operands[index : index + 3]`."""
    return carray(memory(operands[index]), (operands[index + 1], operands[index + 2]), np.uint16)


@njit
def int64_1d(operands, index):
    """(n,) int64 of `operands[index : index + 2]`."""
    return carray(memory(operands[index]), (operands[index + 1],), np.int64)


@njit
def int64_2d(operands, index):
    """(n, m) int64 of `operands[index : index + 3]`."""
    return carray(memory(operands[index]), (operands[index + 1], operands[index + 2]), np.int64)


@njit
def int32_1d(operands, index):
    """(n,) int32 of `operands[index : index + 2]`."""
    return carray(memory(operands[index]), (operands[index + 1],), np.int32)


@njit
def float32_1d_at(address, n):
    """(n,) float32 at an address."""
    return carray(memory(address), (n,), np.float32)


@njit
def int32_1d_at(address, n):
    """(n,) int32 at an address."""
    return carray(memory(address), (n,), np.int32)


@njit
def float32_2d_at(address, n, m):
    """(n, m) float32 at an address."""
    return carray(memory(address), (n, m), np.float32)
