"""Products of 8-bit integers, four at a time into an int32, by what this CPU has for it.

The weights stand in blocks of 16 rows x 4 columns: one load of 64 bytes meets one broadcast of four
activations, and 16 sums grow side by side without ever being added up across a register.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from tinylm.kernels.jit import cgutils
from tinylm.kernels.simd import INT8, INT16, INT32
from tinylm.kernels.target import target

ROWS = 16
"""Rows of a block of weights."""

COLUMNS = 4
"""Columns of a block: what one product adds up."""


class Dot:
    """`sums + products of four`, on registers of `lanes` int32.

    `offset`: what must be added to a weight, as a byte, before it is multiplied: x86 multiplies unsigned by
    signed, so there the weights are moved by 128, and 128 times the activations taken off the sums.
    `shuffle`: what looks bytes up in a table of 16, in each 16 bytes of a register; "" where there is no such thing.
    """

    def __init__(self, triple: str, cpu: str, features: str) -> None:
        x86, arm = triple.startswith(("x86_64", "i686")), triple.startswith(("aarch64", "arm64"))
        have = set(features.split(","))
        self.kind, self.lanes, self.offset = "generic", 4, 0
        self.shuffle = ""
        if x86 and {"+avx512vnni", "+avx512f"} <= have:
            self.kind, self.lanes, self.offset = "llvm.x86.avx512.vpdpbusd.512", 16, 128
        elif x86 and "+avxvnni" in have:
            self.kind, self.lanes, self.offset = "llvm.x86.avx512.vpdpbusd.256", 8, 128
        elif x86 and "+avx2" in have:
            self.kind, self.lanes = "llvm.x86.avx2.pmadd.wd", 8
        elif x86:
            self.kind = "llvm.x86.sse2.pmadd.wd"
        elif arm and ("+dotprod" in have or cpu.startswith("apple-")):
            self.kind = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        if x86 and "+avx2" in have:
            self.shuffle = {16: "llvm.x86.avx512.pshuf.b.512", 8: "llvm.x86.avx2.pshuf.b"}[self.lanes]
        elif x86 and "+ssse3" in have:
            self.shuffle = "llvm.x86.ssse3.pshuf.b.128"
        elif arm:
            self.shuffle = "llvm.aarch64.neon.tbl1.v16i8"
        self.integers = ir.VectorType(INT32, self.lanes)
        self.bytes = ir.VectorType(INT8, 4 * self.lanes)
        self._shorts = ir.VectorType(INT16, 2 * self.lanes)

    @property
    def most(self) -> int:
        """The largest of positive activations, which take no offset: x86 multiplies them unsigned."""
        return 255 if self.offset else 127

    def weights(self, builder: ir.IRBuilder, loaded: ir.Value, positive: bool = False) -> Any:
        """What `add` takes, of 4 * lanes bytes of weights; done once for all the activations they meet."""
        if self.offset and positive:
            return loaded
        if self.offset:
            return builder.xor(loaded, ir.Constant(self.bytes, [-128] * 4 * self.lanes))
        if self.kind.endswith("pmadd.wd"):
            return self._even_and_odd(builder, loaded)
        return loaded

    def levels(self, builder: ir.IRBuilder, places: ir.Value, levels: Sequence[int]) -> Any:
        """What `add` takes, of 4 * lanes bytes that are places in a list of 16 weights."""
        table = [(level + self.offset + 128) % 256 - 128 for level in levels]
        found = self._look_up(builder, table, places)
        return self._even_and_odd(builder, found) if self.kind.endswith("pmadd.wd") else found

    def _look_up(self, builder: ir.IRBuilder, table: list[int], places: ir.Value) -> ir.Value:
        """The byte of a table of 16 for each place below 16."""
        if self.shuffle:
            kind = ir.FunctionType(self.bytes, [self.bytes] * 2)
            function = cgutils.get_or_insert_function(builder.module, kind, self.shuffle)
            return builder.call(function, [ir.Constant(self.bytes, table * (self.lanes // 4)), places])
        same = [ir.Constant(self.bytes, [number] * 4 * self.lanes) for number in (*table, *range(16))]
        found = same[0]
        for place in range(1, 16):
            found = builder.select(builder.icmp_signed("==", places, same[16 + place]), same[place], found)
        return found

    def activations(self, builder: ir.IRBuilder, four: ir.Value) -> Any:
        """What `add` takes, of four activations in an int32: the same four for every lane."""
        undefined = ir.Constant(self.integers, ir.Undefined)
        first = builder.insert_element(undefined, four, INT32(0))
        same = builder.shuffle_vector(first, undefined, ir.Constant(self.integers, [0] * self.lanes))
        spread = builder.bitcast(same, self.bytes)
        return self._even_and_odd(builder, spread) if self.kind.endswith("pmadd.wd") else spread

    def add(
        self, builder: ir.IRBuilder, sums: ir.Value, weights: Any, activations: Any, positive: bool = False
    ) -> ir.Value:
        """The sums with the products of four weights and four activations in each lane added."""
        if "vpdpbusd" in self.kind:
            unsigned, signed = (activations, weights) if positive else (weights, activations)
            parts = [builder.bitcast(one, self.integers) for one in (unsigned, signed)]
            return builder.call(self._function(builder, [self.integers] * 3), [sums, *parts])
        if "sdot" in self.kind:
            function = self._function(builder, [self.integers, self.bytes, self.bytes])
            return builder.call(function, [sums, weights, activations])
        if "pmadd" in self.kind:
            function = self._function(builder, [self._shorts] * 2)
            for one, two in zip(weights, activations, strict=True):
                sums = builder.add(sums, builder.call(function, [one, two]))
            return sums
        return self._by_hand(builder, sums, weights, activations)

    def _function(self, builder: ir.IRBuilder, arguments: list[ir.Type]) -> ir.Function:
        return cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(self.integers, arguments), self.kind
        )

    def _even_and_odd(self, builder: ir.IRBuilder, numbers: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Bytes 0, 2, ... and 1, 3, ... as int16."""
        shorts = builder.bitcast(numbers, self._shorts)
        eight = ir.Constant(self._shorts, [8] * 2 * self.lanes)
        return builder.ashr(builder.shl(shorts, eight), eight), builder.ashr(shorts, eight)

    def _by_hand(
        self, builder: ir.IRBuilder, sums: ir.Value, weights: ir.Value, activations: ir.Value
    ) -> ir.Value:
        wide = ir.VectorType(INT32, 4 * self.lanes)
        products = builder.mul(builder.sext(weights, wide), builder.sext(activations, wide))
        for column in range(COLUMNS):
            picked = ir.Constant(self.integers, [4 * lane + column for lane in range(self.lanes)])
            sums = builder.add(
                sums, builder.shuffle_vector(products, ir.Constant(wide, ir.Undefined), picked)
            )
        return sums


DOT = Dot(*target())
"""This CPU's."""
