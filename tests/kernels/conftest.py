"""Arrays as kernels meet them: writable ones, and the read-only ones of a memory-mapped file."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Keep = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


@pytest.fixture(params=["writable", "mapped"])
def keep(request: pytest.FixtureRequest, tmp_path: Path) -> Keep:
    """The same numbers in memory, or in a file that is mapped: read-only, and aligned to 4 bytes alone."""

    def mapped(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.bin"
        path.write_bytes(b"head" + array.tobytes())
        with open(path, "rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        found = np.frombuffer(view, array.dtype, array.size, 4).reshape(array.shape)
        assert not found.flags.writeable
        return found

    return mapped if request.param == "mapped" else np.array
