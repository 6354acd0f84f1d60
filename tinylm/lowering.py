"""From a program to the rows of kernels that compute it, for steps of one token or of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from tinylm.early_choice import choose_early
from tinylm.formats import Matrix, Packing
from tinylm.formats.key_values import KeyValueFormat
from tinylm.kernels import activation, attention, norm, rope, rows
from tinylm.kernels.jit import Operation as Kernel
from tinylm.kernels.operands import array_operands
from tinylm.kernels.walk import by_tokens_operation, chain_operation
from tinylm.program import Buffer, Operation, Program

CHUNK_BYTES = 96 * 1024
"""Bytes of weights that a thread takes at a time in a step of one token: some microseconds of bandwidth, and fewer than
another spins for before it sleeps."""

CHUNK_ROWS = 128
"""Rows that a thread takes at a time in a step of several tokens: they stay in its cache meanwhile."""


CHAIN_TOKENS = 16
"""Tokens that a thread takes at a time through a chain of rows: their numbers stay in its caches meanwhile."""


LIGHT = 16_384
"""Numbers of a step of one token that one thread makes from others before a second thread could have helped."""


@dataclass(frozen=True)
class Live:
    """An operand that is only known with the step: `facts[name] * factor / divisor`, rounded up."""

    name: str
    factor: int = 1
    divisor: int = 1

    def value(self, facts: dict[str, int]) -> int:
        """The number, given what is known of the step."""
        return -(-facts[self.name] * self.factor // self.divisor)


def float_bits(number: float) -> int:
    """A float32 as the integer of its bits."""
    return int(np.float32(number).view(np.int32))


@dataclass(frozen=True)
class Address:
    """An operand that is the address of a buffer alone; a buffer as operand is address, rows and width."""

    buffer: Buffer


Operand = int | Live | Address | Buffer


@dataclass(frozen=True)
class Row:
    """A row of the table before its addresses are known.

    A thread takes at least `grain` units at a time, and multiples of it, and at most `most`.
    """

    kernel: Kernel
    units: int | Live
    operands: Sequence[Operand]
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]
    grain: int = 1
    most: int = 1 << 30
    weights: tuple[int, int] = (0, 0)
    """Address and bytes of the weights that a step of one token reads, for who waits before it."""
    vectors: tuple[NDArray[np.float32], ...] = ()
    """What the kernel reads whole beside buffers and weights."""
    chain: tuple[Row, ...] = ()
    """The rows that this one stands for, which one thread does in turn: all of a step of one token, or as far as
    they are about the tokens that it has taken."""


def _is_light(row: Row) -> bool:
    """Whether a row of a step of one token takes a thread less time than to share it with others."""
    heavy = row.weights[1] or any(buffer.rows == "parts" for buffer in row.writes)
    return not heavy and sum(buffer.width for buffer in row.writes) <= LIGHT


def _joined(
    kernel: Kernel, units: int | Live, run: tuple[Row, ...], grain: int = 1, most: int = 1 << 30
) -> Row:
    """The row that stands for some: it reads and writes what they do."""
    reads = dict.fromkeys(buffer for row in run for buffer in row.reads)
    writes = dict.fromkeys(buffer for row in run for buffer in row.writes)
    return Row(kernel, units, [], tuple(reads), tuple(writes), grain, most, chain=run)


def chained(rows: Sequence[Row]) -> list[Row]:
    """The rows of a step of one token, neighbours that are light put together in one."""
    result: list[Row] = []
    for light, group in groupby(rows, _is_light):
        run = tuple(group)
        if not light or len(run) == 1:
            result += run
            continue
        result.append(_joined(chain_operation, 1, run))
    return result


def _is_by_tokens(row: Row) -> bool:
    """Whether a row makes of each token what is its own."""
    return isinstance(row.units, Live) and row.units.name == "T"


def chained_by_tokens(rows: Sequence[Row]) -> list[Row]:
    """The rows of a step of several tokens, neighbours that make of each token its own put together in one.

    A thread does all of them for a few tokens, which are in its caches meanwhile.
    """
    result: list[Row] = []
    for by_tokens, group in groupby(rows, _is_by_tokens):
        run = tuple(group)
        if not by_tokens or len(run) == 1:
            result += run
            continue
        whole = 1  # so many tokens are whole units of every row
        for row in run:
            assert isinstance(row.units, Live)
            whole = math.lcm(whole, row.units.divisor // math.gcd(row.units.factor, row.units.divisor))
        most = max(whole, CHAIN_TOKENS // whole * whole)
        result.append(_joined(by_tokens_operation, Live("T"), run, whole, most))
    return result


def users_of(operations: Sequence[Operation]) -> dict[Buffer, list[Operation]]:
    """For each buffer that is read, who reads it, as often as it does."""
    users: dict[Buffer, list[Operation]] = {}
    for one in operations:
        for buffer in one.inputs:
            users.setdefault(buffer, []).append(one)
    return users


@dataclass(frozen=True)
class Gated:
    """A gate that one kernel makes together with the two products it joins, and packs for the matrix after it."""

    products: tuple[Operation, Operation]
    matrices: tuple[Matrix, Matrix]
    kernel: Kernel
    following: Packing


def gated_in_one(operations: Sequence[Operation]) -> dict[Buffer, Gated]:
    """Such gates, by what they write: of products that nobody else reads, alike, read only by what packs alike."""
    users = users_of(operations)
    makers = {one.output: one for one in operations}
    found: dict[Buffer, Gated] = {}
    for one in operations:
        if one.kind != "gate" or one.output not in users:
            continue
        first, second = (makers[buffer] for buffer in one.inputs)
        left, right = first.matrix, second.matrix
        if left is None or right is None or left.gated is None or left.packing is None:
            continue
        alone = all(users[other.output] == [one] and not other.vectors for other in (first, second))
        alike = (first.inputs, type(left), left.shape) == (second.inputs, type(right), right.shape)
        following, *others = {user.matrix.packing if user.matrix else None for user in users[one.output]}
        if following is None or others or following.operation is not left.packing.operation:
            continue
        if alone and alike:
            found[one.output] = Gated((first, second), (left, right), left.gated, following)
    return found


class Lowering:
    """The rows of a program, for steps of one token (`single`) or of several."""

    def __init__(self, program: Program, single: bool, kv_format: KeyValueFormat) -> None:
        self.program, self.single, self.kv_format = program, single, kv_format
        self.rows: list[Row] = []
        self.packed: set[Buffer] = set()
        operations = program.operations if single else choose_early(program.operations)
        self.gated = {} if single else gated_in_one(operations)
        inside = {product.output for one in self.gated.values() for product in one.products}
        for operation in operations:
            if operation.output not in inside:
                getattr(self, f"_lower_{operation.kind}")(operation)

    def _row(
        self,
        kernel: Kernel,
        units: int | Live,
        operands: Sequence[Operand],
        reads: tuple[Buffer, ...],
        *writes: Buffer,
        grain: int = 1,
        most: int = 1 << 30,
        weights: tuple[int, int] = (0, 0),
        vectors: tuple[NDArray[np.float32], ...] = (),
    ) -> None:
        self.rows.append(Row(kernel, units, operands, reads, writes, grain, most, weights, vectors))

    def _lower_embed(self, operation: Operation) -> None:
        assert operation.matrix is not None
        operands: list[Operand] = [*operation.matrix.operands(), Live("ids"), Live("T"), operation.output]
        self._row(operation.matrix.take, Live("T"), operands, (), operation.output)

    def _lower_chosen_rows(self, operation: Operation) -> None:
        operands: list[Operand] = [operation.inputs[0], Live("chosen"), Live("L"), operation.output]
        self._row(rows.take_operation, Live("L"), operands, operation.inputs, operation.output)

    def _lower_rmsnorm(self, operation: Operation) -> None:
        x, out = operation.inputs[0], operation.output
        weight = operation.vectors["weight"]
        parts = x.width // len(weight)
        units = Live(x.rows, parts)
        shape: list[Operand] = [units, len(weight)]
        operands: list[Operand] = [
            Address(x),
            *shape,
            *array_operands(weight),
            float_bits(operation.numbers["eps"]),
        ]
        operands += [Address(out), *shape]
        self._row(norm.rmsnorm_operation, units, operands, operation.inputs, out, vectors=(weight,))

    def _lower_layernorm(self, operation: Operation) -> None:
        weight, bias = operation.vectors["weight"], operation.vectors["bias"]
        operands: list[Operand] = [
            operation.inputs[0],
            *array_operands(weight),
            *array_operands(bias),
            float_bits(operation.numbers["eps"]),
            operation.output,
        ]
        self._row(
            norm.layernorm_operation,
            Live(operation.output.rows),
            operands,
            operation.inputs,
            operation.output,
            vectors=(weight, bias),
        )

    def _lower_matmul(self, operation: Operation) -> None:
        matrix, x, out = operation.matrix, operation.inputs[0], operation.output
        assert matrix is not None
        if matrix.pack_single or not self.single:
            x = self._read(matrix, x)
        rows_of_chunk = CHUNK_BYTES * matrix.shape[0] // matrix.nbytes if self.single else CHUNK_ROWS
        bias = operation.vectors.get("bias")
        place = out
        if bias is not None and self.single:  # a piece that is done again must not take the bias away
            place = Buffer(f"{out.name}.product", out.rows, out.width)
        operands: list[Operand] = [x, *matrix.operands(), place]
        self._row(
            matrix.matvec if self.single else matrix.matmul,
            matrix.shape[0],
            operands,
            (x,),
            place,
            grain=matrix.grain,
            most=rows_of_chunk,
            weights=(matrix.operands()[0], matrix.nbytes) if self.single else (0, 0),
        )
        if bias is not None and self.single:
            size = Live(out.rows, out.width)
            operands = [Address(place), size, *array_operands(bias), Address(out), size]
            units = Live(out.rows, out.width, activation.BLOCK)
            self._row(activation.add_operation, units, operands, (place,), out, vectors=(bias,))
        elif bias is not None:
            operands = [out, *array_operands(bias)]
            self._row(rows.add_bias_operation, Live(out.rows), operands, (out,), out, vectors=(bias,))

    def _read(self, matrix: Matrix, x: Buffer) -> Buffer:
        """What a matrix reads of a buffer: it, or its packed form, made once for all the matrices that it meets."""
        packing = matrix.packing
        if packing is None:
            return x
        packed = self._packed(packing, x)
        if packed not in self.packed:
            self.packed.add(packed)
            self._row(packing.operation, Live(x.rows, *packing.units), [x, packed], (x,), packed)
        return packed

    @staticmethod
    def _packed(packing: Packing, x: Buffer) -> Buffer:
        """What holds the packed form of a buffer."""
        return Buffer(f"{x.name}.{packing.operation.name}", f"packed {x.rows}", packing.width)

    def _lower_heads(self, operation: Operation) -> None:
        numbers = [int(operation.numbers[name]) for name in ("offset", "size", "stride")]
        operands: list[Operand] = [operation.inputs[0], *numbers, operation.output]
        self._row(rows.heads_operation, Live("T"), operands, operation.inputs, operation.output)

    def _lower_rope(self, operation: Operation) -> None:
        half = len(self.program.inverse_frequencies)
        operands: list[Operand] = [
            operation.inputs[0],
            Live("positions"),
            Live("T"),
            Live("rope table"),
            Live("rope length"),
        ]
        operands += [2 * half, self.program.head_dim, operation.output]
        self._row(rope.rope_operation, Live("T"), operands, operation.inputs, operation.output)

    def _lower_attention(self, operation: Operation) -> None:
        program, layer, out = self.program, int(operation.numbers["layer"]), operation.output
        heads, head_dim = program.key_value_heads, program.head_dim
        q, k, v = operation.inputs
        caches: list[Operand] = [Live("caches"), Live("sequences"), program.layers]
        stored = Buffer(f"cache {layer}", "none", 0)
        operands: list[Operand] = [
            k,
            v,
            Live("positions"),
            Live("T"),
            Live("rows"),
            Live("T"),
            *caches,
            layer,
            heads,
            head_dim,
        ]
        self._row(self.kv_format.store, Live("T"), operands, (k, v), stored)
        parts = Buffer(f"{out.name}.parts", "parts", attention.part_size(head_dim))
        operands = [q, Live("positions"), Live("T"), Live("tasks"), Live("task count"), attention.TASK_FIELDS]
        operands += [*caches, layer, heads, head_dim, float_bits(head_dim**-0.5), parts]
        self._row(self.kv_format.attention, Live("task count", heads), operands, (q, stored), parts, most=1)
        operands = [Live("tiles"), Live("tile count"), attention.TILE_FIELDS, heads, head_dim, parts, out]
        self._row(attention.combine_operation, Live("tile count", heads), operands, (parts,), out)

    def _elementwise(self, kernel: Kernel, numbers: list[int], operation: Operation) -> None:
        inputs, out = operation.inputs, operation.output
        operands: list[Operand] = list(numbers)
        for buffer in (*inputs, out):
            operands += [Address(buffer), Live(buffer.rows, buffer.width)]
        units = Live(out.rows, out.width, activation.BLOCK)
        self._row(kernel, units, operands, inputs, out)

    def _lower_activate(self, operation: Operation) -> None:
        self._elementwise(activation.activate_operation, [int(operation.numbers["kind"])], operation)

    def _lower_gate(self, operation: Operation) -> None:
        kind, out = int(operation.numbers["kind"]), operation.output
        gated = self.gated.get(out)
        if gated is None:
            self._elementwise(activation.gate_operation, [kind], operation)
            return
        left, right = gated.matrices
        x, packed = self._read(left, gated.products[0].inputs[0]), self._packed(gated.following, out)
        self.packed.add(packed)
        operands: list[Operand] = [
            x,
            *left.operands(),
            *right.operands(),
            out.width,
            Live(out.rows),
            kind,
            packed,
        ]
        units, most = -(-out.width // left.gated_rows), max(1, CHUNK_ROWS // left.gated_rows)
        self._row(gated.kernel, units, operands, (x,), packed, most=most)

    def _lower_add(self, operation: Operation) -> None:
        self._elementwise(activation.add_operation, [], operation)
