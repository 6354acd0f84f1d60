"""Products of bytes, four at a time, in every way that this processor can run."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from tinylm.kernels.dot import DOT, Dot
from tinylm.kernels.jit import njit
from tinylm.kernels.simd import INT32, pointer

TRIPLE, CPU, FEATURES = cpu_target.target_context.codegen().magic_tuple()
X86 = platform.machine().lower() in ("x86_64", "amd64")

WAYS = {
    "this processor's": (TRIPLE, CPU, FEATURES),
    "by hand": ("riscv64-unknown-linux", "generic", ""),
    "SSE": ("x86_64-unknown-linux", "generic", "+sse2"),
    "AVX2": ("x86_64-unknown-linux", "generic", "+avx2"),
    "AVX-VNNI": ("x86_64-unknown-linux", "generic", "+avx2,+avxvnni"),
    "AVX-512": ("x86_64-unknown-linux", "generic", "+avx2,+avx512f,+avx512vnni"),
}


def runnable(features: str) -> bool:
    return set(filter(None, features.split(","))) <= set(FEATURES.split(","))


LEVELS = (-127, -98, -77, -60, -46, -33, -21, -10, 0, 11, 23, 35, 48, 63, 82, 127)


def product_of(dot: Dot, positive: bool, looked_up: bool) -> Any:
    """A function of addresses: bytes of weights, or their places in LEVELS, an int32 of four activations, sums."""

    @intrinsic  # type: ignore[untyped-decorator]
    def product(typingctx: Any, weights: Any, activations: Any, sums: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def load(address: Any, of: ir.Type) -> Any:
                return builder.load(pointer(builder, address, of), align=1)

            left = load(arguments[0], dot.bytes)
            left = dot.levels(builder, left, LEVELS) if looked_up else dot.weights(builder, left, positive)
            right = dot.activations(builder, load(arguments[1], INT32))
            found = dot.add(builder, load(arguments[2], dot.integers), left, right, positive)
            builder.store(found, pointer(builder, arguments[2], dot.integers), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate

    return product


@pytest.mark.parametrize("kind", ["signed", "positive", "looked up"])
@pytest.mark.parametrize("way", WAYS)
def test_sums_of_four_products(way: str, kind: str) -> None:
    triple, cpu, features = WAYS[way]
    if triple.startswith("x86") and not X86:
        pytest.skip("another kind of processor")
    if not runnable(features):
        pytest.skip(f"this processor has not {features}")
    dot = Dot(triple, cpu, features)
    positive, looked_up = kind == "positive", kind == "looked up"
    product = product_of(dot, positive, looked_up)
    least, most, offset = (0, dot.most, 0) if positive else (-127, 127, dot.offset)

    def run(weights, activations, sums):
        product(weights.ctypes.data, activations.ctypes.data, sums.ctypes.data)

    compiled = njit(run)
    random = np.random.default_rng(0)
    for round in range(30):
        low = -127 if round else 127  # first the largest of all
        places = random.integers(0 if round else 15, 16, (dot.lanes, 4)).astype(np.int8)
        weights = random.integers(low, 128, (dot.lanes, 4)).astype(np.int8)
        if looked_up:
            weights = np.array(LEVELS, np.int8)[places]
        activations = random.integers(least if round else most, most + 1, 4)
        before = random.integers(-(10**6), 10**6, dot.lanes).astype(np.int32)
        sums = before.copy()
        compiled(places if looked_up else weights, activations.astype(np.uint8), sums)
        expected = before + (weights.astype(np.int64) + offset) @ activations
        np.testing.assert_array_equal(sums, expected)


@pytest.mark.parametrize(
    ("triple", "cpu", "features", "kind", "lanes", "offset"),
    [
        ("x86_64-pc-windows-msvc", "znver4", "+avx2,+avx512f,+avx512vnni", "vpdpbusd.512", 16, 128),
        ("x86_64-unknown-linux-gnu", "alderlake", "+avx2,+avxvnni", "vpdpbusd.256", 8, 128),
        ("x86_64-apple-darwin", "haswell", "+avx2,+fma", "avx2.pmadd.wd", 8, 0),
        ("x86_64-unknown-linux-gnu", "nehalem", "+sse4.2", "sse2.pmadd.wd", 4, 0),
        ("arm64-apple-darwin23.0.0", "apple-m1", "", "sdot", 4, 0),
        ("aarch64-unknown-linux-gnu", "neoverse-n1", "+neon,+dotprod", "sdot", 4, 0),
        ("aarch64-unknown-linux-gnu", "cortex-a53", "+neon", "generic", 4, 0),
        ("powerpc64le-unknown-linux-gnu", "pwr9", "", "generic", 4, 0),
    ],
)
def test_each_processor_gets_what_it_has(
    triple: str, cpu: str, features: str, kind: str, lanes: int, offset: int
) -> None:
    dot = Dot(triple, cpu, features)
    assert dot.kind.endswith(kind) or kind in dot.kind
    assert (dot.lanes, dot.offset) == (lanes, offset)
    assert 16 % DOT.lanes == 0
