"""int8: 1.03 bytes a weight."""

from __future__ import annotations

import numpy as np

from tinylm.formats.quantized import QuantizedMatrix
from tinylm.kernels.matmul_amx import gated_int8_amx_operation, matmul_int8_amx_operation
from tinylm.kernels.matmul_int8 import (
    dequantize_reference,
    gated_int8_operation,
    matmul_int8_operation,
    quantize_bfloat16_operation,
    quantize_float32_operation,
    take_int8_operation,
)
from tinylm.kernels.tile_amx import permitted


class Int8Matrix(QuantizedMatrix):
    """An int8 matrix (N, K)."""

    format, bits, stored, numpy_type = "int8", 8, "I8", np.int8
    take = take_int8_operation
    matvec = matmul_int8_operation
    matmul = matmul_int8_amx_operation if permitted() else matmul_int8_operation
    gated = gated_int8_amx_operation if permitted() else gated_int8_operation
    quantize_operations = quantize_float32_operation, quantize_bfloat16_operation
    dequantize_reference = staticmethod(dequantize_reference)


Int8Matrix.of_vocabulary = Int8Matrix
