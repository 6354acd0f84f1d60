"""The singular values of a model's weight matrices: how far each stretches some directions more than others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinylm.program import Operation, Program

Array = NDArray[np.float64]

ROWS = 8192
"""Rows of a matrix that are widened to float64 at a time."""

SAFE_CONDITION = 1e5
"""Up to here the eigenvalues of W^T W, whose condition is the square, give the singular values to 1e-5."""

GROUPS = ("attention q", "attention k", "attention v", "attention o", "MLP", "head")
"""The groups in the order in which they are shown."""


@dataclass(frozen=True)
class Spectrum:
    """A matrix: the name of the value that it makes, its group, its shape, its outermost singular values."""

    name: str
    group: str
    shape: tuple[int, int]
    largest: float
    smallest: float

    @property
    def condition(self) -> float:
        """The condition number, largest / smallest; infinite for a matrix that loses a direction."""
        return self.largest / self.smallest if self.smallest > 0 else float("inf")


@dataclass(frozen=True)
class Summary:
    """The condition numbers of a group of matrices. p95 is interpolated linearly, as NumPy does."""

    count: int
    median: float
    mean: float
    p95: float
    max: float


def spectra(program: Program, progress: Callable[[int, int], None] | None = None) -> list[Spectrum]:
    """The spectrum of every matrix of a model, each part of a fused one by itself.

    `progress(done, total)` is called in numbers of the matrices.
    """
    parts = list(named_parts(program))
    done, total = 0, sum(part.shape[0] * part.shape[1] for part in parts)
    found = []
    for part in parts:
        values = singular_values(part.rows())
        found.append(Spectrum(part.name, part.group, part.shape, float(values[0]), float(values[-1])))
        done += part.shape[0] * part.shape[1]
        if progress is not None:
            progress(done, total)
    return found


def summaries(found: Sequence[Spectrum]) -> dict[str, Summary]:
    """The condition numbers by group, those of all attention and of all matrices too; empty groups are left out."""
    groups = {group: [one for one in found if one.group == group] for group in GROUPS}
    attention = [one for one in found if one.group.startswith("attention")]
    ordered = {**{group: groups[group] for group in GROUPS[:4]}, "attention": attention}
    ordered |= {group: groups[group] for group in GROUPS[4:]} | {"all": list(found)}
    return {
        group: summary([one.condition for one in members]) for group, members in ordered.items() if members
    }


def summary(conditions: Sequence[float]) -> Summary:
    """Of some condition numbers."""
    values = np.asarray(conditions, np.float64)
    p95 = np.percentile(values, 95) if np.isfinite(values).all() else values.max()
    return Summary(
        len(values), float(np.median(values)), float(values.mean()), float(p95), float(values.max())
    )


@dataclass(frozen=True)
class Part:
    """A matrix of the program, or the rows of a fused one that make q, k or v."""

    name: str
    group: str
    operation: Operation
    offset: int = 0
    size: int = 0
    stride: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        assert self.operation.matrix is not None
        N, K = self.operation.matrix.shape
        return (N // self.stride * self.size if self.stride else N), K

    def rows(self) -> NDArray[np.float32]:
        """`(N, K)` float32."""
        assert self.operation.matrix is not None
        weights = self.operation.matrix.dequantize()
        if not self.stride:
            return weights
        K = weights.shape[1]
        heads = weights.reshape(-1, self.stride, K)[:, self.offset : self.offset + self.size]
        return heads.reshape(-1, K)


def named_parts(program: Program) -> Iterator[Part]:
    """Every matrix that is multiplied with, in the order of use."""
    fused = {one.inputs[0].name for one in program.operations if one.kind == "heads"}
    products = {one.output.name: one for one in program.operations if one.kind == "matmul"}
    for operation in program.operations:
        name = operation.output.name
        if operation.kind == "matmul" and name not in fused:
            yield Part(name, group_of(name), operation)
        elif operation.kind == "heads":
            offset, size, stride = (int(operation.numbers[key]) for key in ("offset", "size", "stride"))
            yield Part(name, group_of(name), products[operation.inputs[0].name], offset, size, stride)


def group_of(name: str) -> str:
    """The group of the matrix that makes a value."""
    if name == "logits":
        return "head"
    last = name.rpartition(".")[2]
    if last in ("q", "k", "v"):
        return f"attention {last}"
    return "attention o" if last == "attn_out" else "MLP"


def singular_values(weights: NDArray[np.float32]) -> Array:
    """(min(N, K),) float64, the largest first."""
    tall = weights if weights.shape[0] >= weights.shape[1] else weights.T
    K = tall.shape[1]
    gram = np.zeros((K, K))
    for begin in range(0, len(tall), ROWS):
        block = tall[begin : begin + ROWS].astype(np.float64)
        gram += block.T @ block
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))
    if values[-1] * SAFE_CONDITION > values[0]:
        return np.asarray(values)
    # By rotations alone, which lose nothing: the triangle of all rows has the matrix's singular values.
    triangle = np.zeros((0, K))
    for begin in range(0, len(tall), ROWS):
        block = tall[begin : begin + ROWS].astype(np.float64)
        triangle = np.asarray(np.linalg.qr(np.concatenate([triangle, block]), mode="r"))
    return np.asarray(np.linalg.svd(triangle, compute_uv=False))
