"""int4: 0.53 bytes a weight; a matrix with a row for each token of the vocabulary stays int8."""

from __future__ import annotations

import numpy as np

from tinylm.formats.int8 import Int8Matrix
from tinylm.formats.quantized import QuantizedMatrix
from tinylm.kernels.matmul_int4 import (
    dequantize_reference,
    gated_int4_operation,
    matmul_int4_operation,
    quantize_bfloat16_operation,
    quantize_float32_operation,
    take_int4_operation,
)


class Int4Matrix(QuantizedMatrix):
    """An int4 matrix (N, K)."""

    format, bits, stored, numpy_type = "int4", 4, "U8", np.uint8
    of_vocabulary = Int8Matrix
    take = take_int4_operation
    matvec = matmul = matmul_int4_operation
    gated = gated_int4_operation
    quantize_operations = quantize_float32_operation, quantize_bfloat16_operation
    dequantize_reference = staticmethod(dequantize_reference)
