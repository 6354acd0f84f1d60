"""Arrays that begin at cache lines."""

from __future__ import annotations

import numpy as np
import pytest

from tinylm.formats.table import QUANTIZED
from tinylm.kernels.operands import aligned
from tinylm.kernels.team import Team


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int8])
@pytest.mark.parametrize("shape", [(1,), (7, 3), (2, 5, 16)])
def test_an_array_begins_at_a_cache_line(shape: tuple[int, ...], dtype: type) -> None:
    found = [aligned(shape, dtype) for _ in range(5)]
    for array in found:
        assert (array.shape, array.dtype, array.flags.c_contiguous) == (shape, np.dtype(dtype), True)
        assert array.ctypes.data % 64 == 0
        assert not array.any()
        array[...] = 1
    assert all((array == 1).all() for array in found)


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_weights_do(name: str) -> None:
    weight = np.random.default_rng(0).standard_normal((48, 172), np.float32)
    for array in QUANTIZED[name].quantize(weight, Team(1)).arrays():
        assert array.ctypes.data % 64 == 0
