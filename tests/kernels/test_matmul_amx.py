"""The matrix unit gives the bits of `matmul_int8`; where there is none, what LLVM writes for it is looked at."""

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

from tinylm.kernels import tile_amx
from tinylm.kernels.matmul_amx import matmul_amx
from tinylm.kernels.matmul_int8 import matmul_int8, quantize_reference
from tinylm.kernels.matmul_integers import pack, packed_width
from tinylm.kernels.tile_amx import TOKENS, has_amx, permitted

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "emit_assembly.py"
X86 = "x86_64-unknown-linux-gnu"
FEATURES = "+amx-int8,+amx-tile,+avx512bw,+avx512dq,+avx512f,+avx512vl,+avx512vnni"


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


def test_what_is_written_for_a_processor_that_has_it() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "matmul_int8_amx", X86, "sapphirerapids", FEATURES],
        capture_output=True, text=True, check=False, timeout=600,
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    loops = [part for part in re.split(r"^\S+:", done.stdout, flags=re.MULTILINE) if "tdpbssd" in part]
    assert len(loops) == 2  # whole groups, and a last one that is not
    inner = loops[0]
    assert inner.count("tileload") == 2
    assert len(re.findall(r"vfmadd\d+ps\s.*%zmm", inner)) == TOKENS
    assert not re.findall(r"vmovu?a?ps\s+%zmm\d+, ", inner), "sums stay in registers"
    assert "tilerelease" in done.stdout
