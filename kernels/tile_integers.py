"""The register tile of weights of 8 or 4 bits: a few tokens times blocks of 16 rows, over all columns.

Sums are int32 within a group of columns; at its end they are scaled to float32 and added up. A block of 64 bytes
is 16 rows x 4 columns of int8; or 16 rows x 8 columns of 4 bits, each of which is the place of its weight in
LEVELS: the low half of a byte is one of the first four columns, the high half one of the others.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tinylm.kernels.dot import COLUMNS, DOT, ROWS
from tinylm.kernels.hadamard import GROUP
from tinylm.kernels.jit import intrinsic, types
from tinylm.kernels.simd import FLOAT, INT16, INT32, INT64, pointer
from tinylm.kernels.streams import emit_ahead
from tinylm.kernels.vectors import at, load, loop, multiply_add, opaque, spread

LEVELS = (-127, -98, -77, -60, -46, -33, -21, -10, 0, 11, 23, 35, 48, 63, 82, 107)
"""What 4 bits stand for, times the scale of their group: the 16 numbers of which the nearest is nearest on average.

They are those of Lloyd's algorithm on groups of 64 numbers of a normal distribution, which rotated weights have, each
group with the scale, of either sign, that suits it best; but for the 0, which is there for what is exactly 0.
"""

PARTS = ROWS // DOT.lanes
"""Registers of a block."""

CHAINS = 8
"""Sums that grow side by side, at least."""

IN_REGISTERS = 16 if DOT.lanes == 16 else 4
"""Up to so many float32 registers of results stay in registers from group to group; more go to memory."""

FEW, UNROLL = 8, 4
"""A tile of up to FEW sums has the steps of a group unrolled, a larger one UNROLL: more run out of registers."""


class Products:
    """Integer products of `tokens` activations and `blocks` blocks of 16 rows, as they are written into a tile.

    Addresses, and strides in bytes. `positive` activations are bytes from 0 to DOT.most. Weights that are a `stream`
    come from memory, once and in order.
    """

    def __init__(
        self,
        builder: ir.IRBuilder,
        shape: tuple[int, int],
        places: list[ir.Value],
        bits: int = 8,
        positive: bool = False,
        stream: bool = False,
    ) -> None:
        self.builder = builder
        self.tokens, self.blocks = shape
        self.bits, self.positive, self.stream = bits, positive, stream
        self.fours = 8 // bits  # of columns, in a block
        self.weights, self.block_stride, x, token_stride, self.out, self.out_stride = places
        self.x = [at(builder, x, (token_stride, t)) for t in range(self.tokens)]
        if self.blocks > 1:  # few products are better off with LLVM's order of what they read
            self.x = [opaque(builder, address) for address in self.x]
        self.floats, self.shorts = ir.VectorType(FLOAT, DOT.lanes), ir.VectorType(INT16, DOT.lanes)
        self.registers = [(b, part) for b in range(self.blocks) for part in range(PARTS)]
        self.keys = [(t, register) for register in self.registers for t in range(self.tokens)]
        # A product takes some cycles: a tile of few sums has several for each, to begin one meanwhile.
        self.chains = max(1, CHAINS // len(self.keys))

    def constant(self, value: int) -> ir.Constant:
        """An integer in every lane."""
        return ir.Constant(DOT.integers, [value] * DOT.lanes)

    def zeros(self) -> dict[Any, ir.Value]:
        """What the sums of every register and chain begin with."""
        return {(key, chain): self.constant(0) for key in self.keys for chain in range(self.chains)}

    def four_columns(self, number: ir.Value, i: int, block: int, part: int) -> Any:
        """A register of a block of weights, its i-th four columns, as `DOT.add` takes them."""
        builder = self.builder
        address = at(builder, self.weights, (INT64(COLUMNS * ROWS), number), (self.block_stride, block))
        if self.stream and i == part == 0:
            emit_ahead(builder, address)
        address = builder.add(address, INT64(COLUMNS * DOT.lanes * part))
        numbers = load(builder, address, DOT.bytes)
        if self.bits == 8:
            return DOT.weights(builder, numbers, self.positive)
        if i == 0:
            half = builder.and_(numbers, ir.Constant(DOT.bytes, [15] * 4 * DOT.lanes))
        else:
            half = builder.lshr(numbers, ir.Constant(DOT.bytes, [4] * 4 * DOT.lanes))
        return DOT.levels(builder, half, LEVELS)

    def step(self, number: ir.Value, sums: dict[Any, ir.Value], chain: int) -> None:
        """Adds the products of a block's columns: `number` counts blocks, `chain` is the first sum to use."""
        builder = self.builder
        for i in range(self.fours):
            met = {register: self.four_columns(number, i, *register) for register in self.registers}
            for t in range(self.tokens):
                address = at(builder, self.x[t], (INT64(COLUMNS * self.fours), number))
                address = builder.add(address, INT64(COLUMNS * i))
                four = DOT.activations(builder, load(builder, address, INT32))
                for register, weights in met.items():
                    key = (t, register), (chain + i) % self.chains
                    sums[key] = DOT.add(builder, sums[key], weights, four, self.positive)

    def total(self, key: Any, sums: dict[Any, ir.Value]) -> ir.Value:
        """The sums of a register as float32, those of its chains together."""
        total = sums[key, 0]
        for chain in range(1, self.chains):
            total = self.builder.add(total, sums[key, chain])
        return self.builder.sitofp(total, self.floats)

    def place(self, t: int, register: tuple[int, int]) -> ir.Value:
        """Where a register of results goes: a token after another at a stride."""
        b, part = register
        address = at(self.builder, self.out, (self.out_stride, t))
        return pointer(
            self.builder, self.builder.add(address, INT64(4 * (ROWS * b + DOT.lanes * part))), self.floats
        )

    def loop(self, end: ir.Value, state: dict[Any, ir.Value], body: Any) -> dict[Any, ir.Value]:
        """`state = body(index, state)` for index = 0, 1, ... below end; the state by its keys."""
        keys = list(state)

        def named(index: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
            new = body(index, dict(zip(keys, values, strict=True)))
            return [new[key] for key in keys]

        _, values = loop(self.builder, INT64(0), end, 1, list(state.values()), named)
        return dict(zip(keys, values, strict=True))


class _Tile(Products):
    """Writes one tile over all groups of columns."""

    def __init__(
        self, builder: ir.IRBuilder, shape: tuple[int, int], bits: int, arguments: list[ir.Value]
    ) -> None:
        added = arguments[10:]
        places = [*arguments[:4], *arguments[8:10]]
        super().__init__(builder, shape, places, bits, stream=shape[1] == 1 and not added)
        self.steps = GROUP // COLUMNS // self.fours
        self.scales, self.scale_stride, self.x_scale, self.x_begin = arguments[4:8]
        self.added = added

    def first_sums(self, group: ir.Value) -> dict[Any, ir.Value]:
        """What the int32 sums of a group begin with: zero, or what pays for the offset of the weights."""
        sums = self.zeros()
        for t in range(self.tokens) if DOT.offset else ():
            address = at(self.builder, self.x[t], (INT64(4), group), (1, self.x_begin))
            begin = spread(self.builder, load(self.builder, address, INT32, 4), DOT.integers)
            for register in self.registers:
                sums[(t, register), 0] = begin
        return sums

    def first_result(self, block: int, part: int) -> ir.Value:
        """What a register of float32 results begins with."""
        if not self.added:
            return ir.Constant(self.floats, [0.0] * DOT.lanes)
        place = self.builder.add(self.added[0], INT64(4 * (ROWS * block + DOT.lanes * part)))
        return load(self.builder, place, self.floats)

    def finish(
        self, group: ir.Value, sums: dict[Any, ir.Value], results: dict[Any, ir.Value]
    ) -> dict[Any, ir.Value]:
        """The results with a group's sums, scaled, added."""
        builder = self.builder
        new = {}
        for b, part in self.registers:
            address = at(self.builder, self.scales, (INT64(2 * ROWS), group), (self.scale_stride, b))
            bits = load(self.builder, builder.add(address, INT64(2 * DOT.lanes * part)), self.shorts, 2)
            scale = builder.bitcast(
                builder.shl(builder.zext(bits, DOT.integers), self.constant(16)), self.floats
            )
            for t in range(self.tokens):
                address = at(builder, self.x[t], (INT64(4), group), (1, self.x_scale))
                factor = load(builder, address, FLOAT, 4)
                factor = builder.fmul(scale, spread(self.builder, factor, self.floats))
                key = t, (b, part)
                new[key] = multiply_add(builder, self.total(key, sums), factor, results[key])
        return new

    def emit(self, groups: ir.Value, tail: ir.Value) -> None:
        """All whole groups, then a last one of `tail` blocks of columns."""
        builder = self.builder
        keys = self.keys
        kept = len(keys) <= IN_REGISTERS
        unrolled = self.steps if len(keys) <= FEW else UNROLL // self.fours if kept else 1
        first = {register: self.first_result(*register) for register in self.registers}
        firsts = {key: first[key[1]] for key in keys}

        def add_up(
            group: ir.Value, sums: dict[Any, ir.Value], results: dict[Any, ir.Value]
        ) -> dict[Any, ir.Value]:
            if kept:
                return self.finish(group, sums, results)
            loaded = {key: builder.load(self.place(*key), align=4) for key in keys}
            for key, value in self.finish(group, sums, loaded).items():
                builder.store(value, self.place(*key), align=4)
            return {}

        def whole(group: ir.Value, results: dict[Any, ir.Value]) -> dict[Any, ir.Value]:
            sums = self.first_sums(group)
            first = builder.mul(group, INT64(self.steps))

            def some(number: ir.Value, sums: dict[Any, ir.Value]) -> dict[Any, ir.Value]:
                for step in range(unrolled):
                    here = builder.add(builder.mul(number, INT64(unrolled)), INT64(step))
                    self.step(builder.add(first, here), sums, step * self.fours)
                return sums

            sums = self.loop(INT64(self.steps // unrolled), sums, some)
            return add_up(group, sums, results)

        def part(_: ir.Value, results: dict[Any, ir.Value]) -> dict[Any, ir.Value]:
            first = builder.mul(groups, INT64(self.steps))

            def one(step: ir.Value, sums: dict[Any, ir.Value]) -> dict[Any, ir.Value]:
                self.step(builder.add(first, step), sums, 0)
                return sums

            sums = self.loop(tail, self.first_sums(groups), one)
            return add_up(groups, sums, results)

        if not kept:
            for key, value in firsts.items():
                builder.store(value, self.place(*key), align=4)
        results = self.loop(groups, firsts if kept else {}, whole)
        is_part = builder.zext(builder.icmp_signed(">", tail, INT64(0)), INT64)
        results = self.loop(is_part, results, part)
        for key, value in results.items():
            builder.store(value, self.place(*key), align=4)


def make_tile(tokens: int, blocks: int, bits: int, added: bool = False) -> Any:
    """The tile of a shape, as an intrinsic of int64: addresses, and strides in bytes.

    Whole groups, and blocks of the last one that is not; the weights and the stride of their blocks; the packed tokens
    and their stride; the scales of the weights (bfloat16) and the stride of their blocks; where in a token its
    scales stand, and where what the sums of each group begin with (int32); where the result goes and its stride by
    token. And with `added`, what is added to the result of every token: a float32 for each row of the blocks.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _Tile(builder, (tokens, blocks), bits, arguments[2:]).emit(*arguments[:2])
        return context.get_dummy_value()

    @intrinsic
    def tile(
        typingctx: Any, groups: Any, tail: Any, weights: Any, block_stride: Any, x: Any, token_stride: Any,
        scales: Any, scale_stride: Any, x_scale: Any, x_begin: Any, out: Any, out_stride: Any,
    ) -> Any:  # fmt: skip
        return types.void(*[types.int64] * 12), generate

    @intrinsic
    def tile_added(
        typingctx: Any, groups: Any, tail: Any, weights: Any, block_stride: Any, x: Any, token_stride: Any,
        scales: Any, scale_stride: Any, x_scale: Any, x_begin: Any, out: Any, out_stride: Any, first: Any,
    ) -> Any:  # fmt: skip
        return types.void(*[types.int64] * 13), generate

    return tile_added if added else tile
