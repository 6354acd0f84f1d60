"""The matrix unit gives the bits of `matmul_int8`, and bfloat16's products to float32's digits.

Where there is none, what LLVM writes for it is looked at.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinylm.formats.bfloat16 import BFloat16Matrix, narrow, widen
from tinylm.kernels import tile_amx
from tinylm.kernels.matmul_amx import matmul_amx
from tinylm.kernels.matmul_amx_bf16 import fits, matmul_amx_bf16, pack_amx, packed_length
from tinylm.kernels.matmul_amx_bf16 import packed_width as planes_width
from tinylm.kernels.matmul_int8 import matmul_int8, quantize_reference
from tinylm.kernels.matmul_integers import pack, packed_width
from tinylm.kernels.tile_amx import TOKENS, has_amx, permitted
from tinylm.kernels.tile_amx_bf16 import ROWS, planes_reference

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "emit_assembly.py"
X86 = "x86_64-unknown-linux-gnu"
FEATURES = "+amx-bf16,+amx-int8,+amx-tile,+avx512bw,+avx512dq,+avx512f,+avx512vl,+avx512vnni"


@pytest.mark.skipif(not permitted(), reason="this processor has no AMX, or the system does not give it")
@pytest.mark.parametrize("T", [1, TOKENS - 1, TOKENS, TOKENS + 1, 3 * TOKENS, 5 * TOKENS - 3])
def test_the_bits_of_other_registers(T: int, keep: Any) -> None:
    for N, K in ((16, 64), (17, 172), (100, 576), (1, 4), (33, 44), (48, 130), (7, 61)):
        random = np.random.default_rng(1000 * N + K)
        weights, scales = quantize_reference(random.standard_normal((N, K), np.float32))
        weights, scales = keep(weights), keep(scales)
        x = random.standard_normal((T, K), np.float32)
        packed = np.zeros((T, packed_width(K)), np.float32)
        pack(x, packed, 0, T)
        expected, border = np.zeros((T, N), np.float32), np.full((T + 2, N), 77, np.float32)
        addresses = weights.ctypes.data, scales.ctypes.data
        matmul_int8(packed, *addresses, K, expected, 0, N)
        for begin in range(0, N, 32):
            matmul_amx(packed, *addresses, K, border[1:-1], begin, min(N, begin + 32))
        np.testing.assert_array_equal(border[1:-1], expected)
        assert (border[[0, -1]] == 77).all()


@pytest.mark.parametrize(
    ("triple", "features", "has"),
    [
        (X86, FEATURES, True),
        (X86, FEATURES.replace("+amx-int8", "-amx-int8"), False),
        (X86, FEATURES.replace("+amx-tile", "-amx-tile"), False),
        (X86, FEATURES.replace("+amx-bf16", "-amx-bf16"), False),
        (X86, FEATURES.replace("+avx512f", "-avx512f"), False),
        ("x86_64-pc-windows-msvc", "+avx2", False),
        ("arm64-apple-macosx", FEATURES, False),
    ],
)
def test_processors(triple: str, features: str, has: bool) -> None:
    assert has_amx(triple, features) is has


@pytest.mark.parametrize(("answer", "platform"), [(-1, "linux"), (0, "darwin"), (0, "win32")])
def test_without_leave_there_are_no_tiles(
    monkeypatch: pytest.MonkeyPatch, answer: int, platform: str
) -> None:
    class System:
        def __init__(self, name: Any) -> None:
            self.syscall = lambda *arguments: answer

    monkeypatch.setattr(ctypes, "CDLL", System)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(tile_amx, "target", lambda: (X86, "emeraldrapids", FEATURES))
    assert permitted.__wrapped__() is False


def loops_for_amx(kernel: str, instruction: str) -> list[str]:
    """The parts between labels of a kernel's assembly for a processor with AMX that have an instruction."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), kernel, X86, "sapphirerapids", FEATURES],
        capture_output=True, text=True, check=False, timeout=600,
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "tilerelease" in done.stdout
    return [part for part in re.split(r"^\S+:", done.stdout, flags=re.MULTILINE) if instruction in part]


def test_what_is_written_for_int8() -> None:
    loops = loops_for_amx("matmul_int8_amx", "tdpbssd")
    assert len(loops) == 2  # whole groups, and a last one that is not
    assert loops[0].count("tileload") == 2
    assert len(re.findall(r"vfmadd\d+ps\s.*%zmm", loops[0])) == TOKENS
    assert not re.findall(r"vmovu?a?ps\s+%zmm\d+, ", loops[0]), "sums stay in registers"


def test_what_is_written_for_attention() -> None:
    assert loops_for_amx("attention_int8_amx", "tdpbssd")
    loops = loops_for_amx("attention_int8_amx", "tdpbusd")
    assert loops
    for loop in loops:  # a block of 96 positions is 64 and 32
        assert len(re.findall(r"\stdpbusd", loop)) == 2
        assert len(re.findall(r"vfmadd\d+ps\s.*%zmm", loop)) == TOKENS


def test_what_is_written_for_bfloat16() -> None:
    loops = loops_for_amx("matmul_bfloat16_amx", "tdpbf16ps")
    # three planes of two tiles of tokens, and two of rows: twelve products for eight tiles that are loaded
    counts = [
        (len(re.findall(r"\stdpbf16ps", loop)), len(re.findall(r"\stileloadd", loop))) for loop in loops
    ]
    assert counts
    assert all(3 * loaded == 2 * products for products, loaded in counts)


@pytest.mark.skipif(not permitted(), reason="this processor has no AMX, or the system does not give it")
@pytest.mark.parametrize("T", [1, TOKENS - 1, TOKENS, TOKENS + 1, 2 * TOKENS, 5 * TOKENS - 3, 7 * TOKENS])
def test_bfloat16_is_as_exact_as_float32(T: int, keep: Any) -> None:
    for N, K in ((32, 32), (33, 64), (100, 576), (65, 224), (300, 160), (48, 2048)):
        assert fits(N, K)
        random = np.random.default_rng(1000 * N + K)
        bits = narrow(random.standard_normal((N, K), np.float32))
        x = random.standard_normal((T, K), np.float32) * random.uniform(0.01, 100, (T, 1)).astype(np.float32)
        packed = np.full((packed_length(T) + 1, planes_width(K)), 77, np.float32)
        for tile in reversed(range(-(-T // TOKENS))):
            pack_amx(keep(x), packed[:-1], tile, tile + 1)
        assert (packed[-1] == 77).all()
        border = np.full((T + 2, N), 77, np.float32)
        for begin in range(0, N, ROWS):
            matmul_amx_bf16(packed, keep(bits), border[1:-1], begin, min(N, begin + ROWS))
        whole = np.zeros((T, N), np.float32)
        matmul_amx_bf16(packed, bits, whole, 0, N)
        np.testing.assert_array_equal(whole, border[1:-1])
        assert (border[[0, -1]] == 77).all()
        weight = widen(bits).astype(np.float64)
        room = 1e-6 * (np.abs(x) @ np.abs(weight).T)
        assert (np.abs(whole - x.astype(np.float64) @ weight.T) <= room).all()
        if T >= TOKENS:  # the planes, as the module says that they lie
            tiles = -(-T // TOKENS)
            pairs = packed.reshape(-1)[: tiles * TOKENS * 3 * K // 2].view(np.uint16)
            planes = widen(pairs).reshape(tiles, 3, K // 2, TOKENS, 2).transpose(1, 0, 3, 2, 4)
            planes = planes.reshape(3, tiles * TOKENS, K)
            np.testing.assert_array_equal(planes[:, :T], planes_reference(x))
            assert not planes[:, T:].any()


def test_three_planes_are_a_float32() -> None:
    x = np.random.default_rng(0).standard_normal((100, 100), np.float32) * np.float32(1e3)
    planes = planes_reference(x)
    assert not (planes.view(np.uint32) & 0xFFFF).any()
    np.testing.assert_array_equal(planes.astype(np.float64).sum(axis=0), x.astype(np.float64))


@pytest.mark.parametrize(
    ("N", "K", "taken"), [(32, 32, True), (31, 32, False), (64, 48, False), (576, 1536, True)]
)
def test_what_the_unit_takes(N: int, K: int, taken: bool) -> None:
    assert fits(N, K) is taken
    matrix = BFloat16Matrix(np.zeros((N, K), np.uint16))
    assert (matrix.matmul.name == "matmul_bfloat16_amx_operation") is (taken and permitted())
    assert (matrix.packing is not None) is (taken and permitted())
