"""A model as a program: a flat list of named operations over named buffers.

An architecture (`tinylm/models`) writes it with the methods of `Program`, each of which appends one operation
and returns the name of the buffer that it fills. `executor.py` compiles the list and runs it on a team of
threads; `reference.py` runs the same list in NumPy, one operation at a time. Names follow TransformerLens
where it has one, without its `hook_`: `embed`, `blocks.3.attn.q`, `blocks.3.resid_post`, `ln_final`.

A buffer has one row for each token of the step ("T"), or for each token whose logits are asked for ("L").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylm.formats import Matrix
from tinylm.kernels.activation import ACTIVATIONS

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Buffer:
    """What an operation writes: `rows` is "T" or "L", `width` the number of float32 in a row."""

    name: str
    rows: str
    width: int


@dataclass(frozen=True)
class Operation:
    """One line of a program: `output = kind(inputs; matrix, vectors, numbers)`."""

    kind: str
    output: Buffer
    inputs: tuple[Buffer, ...] = ()
    matrix: Matrix | None = None
    vectors: Mapping[str, Vector] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        shape = f"({self.output.rows}, {self.output.width})"
        inputs = ", ".join(buffer.name for buffer in self.inputs)
        details = []
        if self.matrix is not None:
            details.append(f"{self.matrix.format} {self.matrix.shape[0]}x{self.matrix.shape[1]}")
        details += [f"{name} {vector.shape[0]}" for name, vector in self.vectors.items()]
        details += [
            f"{name}={ACTIVATIONS[int(value)] if name == 'kind' else f'{value:g}'}"
            for name, value in self.numbers.items()
        ]
        arguments = "; ".join(part for part in (inputs, ", ".join(details)) if part)
        return f"{self.output.name} {shape} = {self.kind}({arguments})"


class Program:
    """The list of operations, and what all attention layers share.

    heads, key_value_heads, head_dim: the shape of attention (H, Hkv, Dh). inverse_frequencies (half,): angles
    a position for rotary embedding, `2 * half <= Dh` numbers of each head turn; rope_scale multiplies the
    cosines and sines (1 for all but a few scalings).
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        heads: int,
        key_value_heads: int,
        head_dim: int,
        inverse_frequencies: Vector,
        rope_scale: float = 1.0,
    ) -> None:
        self.vocab_size = vocab_size
        self.heads, self.key_value_heads, self.head_dim = heads, key_value_heads, head_dim
        self.inverse_frequencies, self.rope_scale = inverse_frequencies, rope_scale
        self.layers = 0
        self.operations: list[Operation] = []
        self._buffers: dict[str, Buffer] = {}

    def _append(self, kind: str, name: str, inputs: tuple[str, ...], width: int, **parts: Any) -> str:
        if name in self._buffers:
            raise AssertionError(f"two operations write {name}")
        buffers = tuple(self._buffers[one] for one in inputs)
        rows = parts.pop("rows", buffers[0].rows if buffers else "T")
        output = self._buffers[name] = Buffer(name, rows, width)
        self.operations.append(Operation(kind, output, buffers, **parts))
        return name

    def embed(self, name: str, matrix: Matrix) -> str:
        """`(T,) ids, (V, D) -> (T, D)`: the row of each token's id."""
        return self._append("embed", name, (), matrix.shape[1], matrix=matrix)

    def rmsnorm(self, name: str, x: str, weight: Vector, eps: float) -> str:
        """RMSNorm of each row, or of each stretch of a row as long as `weight` (heads, for QK-norm)."""
        numbers = {"eps": eps}
        return self._append("rmsnorm", name, (x,), self.width(x), vectors={"weight": weight}, numbers=numbers)

    def layernorm(self, name: str, x: str, weight: Vector, bias: Vector, eps: float) -> str:
        """LayerNorm of each row."""
        vectors = {"weight": weight, "bias": bias}
        return self._append("layernorm", name, (x,), self.width(x), vectors=vectors, numbers={"eps": eps})

    def matmul(self, name: str, x: str, matrix: Matrix, bias: Vector | None = None) -> str:
        """`(T, K) @ (N, K).T + (N,) -> (T, N)`."""
        vectors = {} if bias is None else {"bias": bias}
        return self._append("matmul", name, (x,), matrix.shape[0], matrix=matrix, vectors=vectors)

    def part_of_heads(self, name: str, x: str, offset: int, size: int, stride: int) -> str:
        """Of each stretch of `stride` numbers, `size` from `offset` on: q, k or v of a fused matrix."""
        numbers = {"offset": offset, "size": size, "stride": stride}
        return self._append("heads", name, (x,), self.width(x) // stride * size, numbers=numbers)

    def rope(self, name: str, x: str) -> str:
        """Rotary position embedding of every head, half-split."""
        return self._append("rope", name, (x,), self.width(x))

    def attention(self, name: str, q: str, k: str, v: str) -> str:
        """`(T, H * Dh), (T, Hkv * Dh), (T, Hkv * Dh) -> (T, H * Dh)`: stores k and v, then attends causally."""
        layer, self.layers = self.layers, self.layers + 1
        return self._append("attention", name, (q, k, v), self.width(q), numbers={"layer": layer})

    def activation(self, name: str, x: str, kind: str) -> str:
        """`kind` is one of ACTIVATIONS."""
        numbers = {"kind": ACTIVATIONS.index(kind)}
        return self._append("activate", name, (x,), self.width(x), numbers=numbers)

    def gate(self, name: str, x: str, y: str, kind: str) -> str:
        """activation(x) * y."""
        numbers = {"kind": ACTIVATIONS.index(kind)}
        return self._append("gate", name, (x, y), self.width(x), numbers=numbers)

    def add(self, name: str, x: str, y: str) -> str:
        """x + y."""
        return self._append("add", name, (x, y), self.width(x))

    def chosen_rows(self, name: str, x: str) -> str:
        """`(T, D) -> (L, D)`: only the tokens whose logits are asked for."""
        return self._append("chosen_rows", name, (x,), self.width(x), rows="L")

    def width(self, name: str) -> int:
        """The number of float32 in a row of a buffer."""
        return self._buffers[name].width

    @property
    def output(self) -> Buffer:
        """What the last operation writes: the logits (L, V)."""
        return self.operations[-1].output

    @property
    def matrices(self) -> list[Matrix]:
        """Every matrix once, in the order of use."""
        found = {id(one.matrix): one.matrix for one in self.operations if one.matrix is not None}
        return list(found.values())
