"""How a weight matrix is stored. One file a format; what they share stands here.

A format is a class over the stored arrays that can `dequantize` itself for the reference and names the
operations that compute with it. The models and the program never look inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tinylm.kernels.jit import Operation


@dataclass(frozen=True)
class Packing:
    """How tokens are laid out, and perhaps rounded, for a matrix."""

    operation: Operation
    """Makes `packed` of x: operands x (3), packed (3)."""

    width: int
    """Places (of 4 bytes) of a packed token."""

    units: tuple[int, int] = (1, 1)
    """Units of the operation a token, as a fraction."""


class Matrix(Protocol):
    """A weight matrix (N, K): N outputs, K inputs."""

    shape: tuple[int, int]
    nbytes: int
    """Bytes that one multiplication reads."""

    format: str
    """The name of the format, such as "float32"."""

    take: Operation
    """Rows by index: operands (this matrix), indices (2), out (3). A unit is one index."""

    matvec: Operation
    """One token: operands x or packed (3), (this matrix), out (3). A unit is one row."""

    matmul: Operation
    """Several tokens: operands x or packed (3), (this matrix), out (3). A unit is one row."""

    gated: Operation | None
    """Several tokens times this matrix and another of its shape and class, gated, and packed for a third, if there is
    such a kernel: operands packed (3), (this matrix), (the other), N, tokens, kind (1 each), packed (3). A unit is
    `gated_rows`."""

    gated_rows: int
    """Rows of both matrices that are gated together."""

    packing: Packing | None
    """How tokens are packed first, if they are not read as they are."""

    pack_single: bool
    """Whether one token must be packed too."""

    grain: int
    """Shares of the rows begin at multiples of this."""

    def operands(self) -> list[int]:
        """The matrix as operands of its operations: addresses and sizes."""

    def rounded(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Activations (T, K) as they meet this matrix: as they are, or rounded as its packing rounds them."""

    def dequantize(self) -> NDArray[np.float32]:
        """`(N, K)` float32, what the matrix stands for."""
