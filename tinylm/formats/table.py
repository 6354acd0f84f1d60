"""The number formats of weights, by name; what a new one is entered in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from tinylm.formats.int4 import Int4Matrix
from tinylm.formats.int8 import Int8Matrix
from tinylm.formats.quantized import QuantizedMatrix

FLOATS = {"float32": 4, "bfloat16": 2}
"""Name -> bytes of a weight."""

QUANTIZED: dict[str, type[QuantizedMatrix]] = {one.format: one for one in (Int8Matrix, Int4Matrix)}
"""Those that a folder can be quantized to, from the widest to the narrowest."""

DTYPES = ("auto", *FLOATS, *QUANTIZED)
"""What weights can be asked for as; "auto" is as they are stored."""


def matrix_format(dtype: str, rows: int, vocab_size: object) -> type[QuantizedMatrix]:
    """The class of a matrix of so many rows in a model of a quantized format."""
    chosen = QUANTIZED[dtype]
    return chosen.of_vocabulary if rows == vocab_size else chosen


def stored_bytes(shape: tuple[int, int], dtype: str, vocab_size: object) -> int:
    """Bytes of a matrix (N, K) in a model of a format."""
    if dtype in FLOATS:
        return FLOATS[dtype] * math.prod(shape)
    return matrix_format(dtype, shape[0], vocab_size).stored_bytes(shape)


def model_format(sizes: Mapping[str, int]) -> str:
    """What a model is called whose matrices of each format have so many bytes: the format of most of them.

    Where some are quantized, it is the narrowest: the others stand beside it.
    """
    for name in reversed(QUANTIZED):
        if sizes.get(name):
            return name
    return max(sizes, key=lambda name: sizes[name], default="float32")


def any_quantized(formats: Iterable[str]) -> bool:
    """Whether some of these are formats of few bits."""
    return not QUANTIZED.keys().isdisjoint(formats)
