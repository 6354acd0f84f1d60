"""Which gates are made in one operation with the products that they join."""

from __future__ import annotations

import numpy as np
import pytest

from tinylm.formats import Matrix
from tinylm.formats.bfloat16 import BFloat16Matrix, narrow
from tinylm.formats.float32 import Float32Matrix
from tinylm.formats.key_values import key_value_format
from tinylm.formats.table import QUANTIZED
from tinylm.kernels.team import Team
from tinylm.lowering import Lowering
from tinylm.program import Program


def matrix(N: int, K: int, format: str) -> Matrix:
    weights = np.random.default_rng(N).standard_normal((N, K), np.float32)
    if format in QUANTIZED:
        return QUANTIZED[format].quantize(weights, Team(1))
    return BFloat16Matrix(narrow(weights)) if format == "bfloat16" else Float32Matrix(weights)


def program(formats: tuple[str, str, str], bias: bool = False, used_twice: bool = False) -> Program:
    """Two matrices, a gate, and a third matrix, of these formats."""
    found = Program(
        vocab_size=20, heads=2, key_value_heads=1, head_dim=8, inverse_frequencies=np.ones(4, np.float32)
    )
    x = found.embed("embed", matrix(20, 16, "float32"))
    pre = found.matmul("pre", x, matrix(64, 16, formats[0]), np.ones(64, np.float32) if bias else None)
    up = found.matmul("up", x, matrix(64, 16, formats[1]))
    gate = found.gate("gate", pre, up, "silu")
    out = found.matmul("out", gate, matrix(16, 64, formats[2]))
    if used_twice:
        out = found.add("sum", found.matmul("other", up, matrix(16, 64, formats[2])), out)
    found.matmul("logits", found.chosen_rows("chosen", out), matrix(20, 16, "float32"))
    return found


def kernels(of: Program) -> list[str]:
    return [row.kernel.name for row in Lowering(of, False, key_value_format("float32")).rows]


@pytest.mark.parametrize("format", QUANTIZED)
def test_a_gate_between_integer_matrices_is_one_operation(format: str) -> None:
    found = kernels(program((format,) * 3))
    assert sum(name.startswith("gated_") for name in found) == 1
    assert not any("gate_operation" in name for name in found)
    assert len([name for name in found if name.startswith("matmul_int")]) == 1  # of those after the gate
    single = [
        row.kernel.name for row in Lowering(program((format,) * 3), True, key_value_format("float32")).rows
    ]
    assert single.count("gate_operation") == 1
    assert not any(name.startswith("gated_") for name in single)


@pytest.mark.parametrize(
    "other",
    [
        program(("int8",) * 3, bias=True),
        program(("int8",) * 3, used_twice=True),
        program(("int8", "int4", "int8")),
        program(("int8", "int8", "float32")),
        program(("int8", "float32", "int8")),
        program(("bfloat16",) * 3),
    ],
    ids=["bias", "used twice", "two formats", "float32 after it", "float32 before it", "bfloat16"],
)
def test_otherwise_it_is_not(other: Program) -> None:
    found = kernels(other)
    assert found.count("gate_operation") == 1
    assert not any(name.startswith("gated_") for name in found)
