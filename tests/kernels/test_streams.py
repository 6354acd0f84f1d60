"""What is known of processors' ways to read, and that nothing is asked for where it was not found to help."""

from __future__ import annotations

import pytest
from llvmlite import ir

from tinylm.kernels import streams
from tinylm.kernels.simd import INT64

X86, MAC = "x86_64-unknown-linux-gnu", "arm64-apple-macosx"
PROCESSORS = [
    (X86, "emeraldrapids", 6144, 8192),
    (X86, "alderlake", 6144, 8192),
    ("i686-pc-windows-msvc", "haswell", 6144, 8192),
    (X86, "znver4", 0, 4096),
    (X86, "amdfam10", 0, 4096),
    (X86, "x86-64-v3", 0, 4096),
    (MAC, "apple-m1", 0, 16384),
    ("aarch64-unknown-linux-gnu", "generic", 0, 16384),
]


@pytest.mark.parametrize(("triple", "cpu", "ahead", "long"), PROCESSORS)
def test_processors(triple: str, cpu: str, ahead: int, long: int) -> None:
    assert streams.bytes_ahead(triple, cpu) == ahead
    assert streams.long_row(triple, cpu) == long
    assert (streams.kept_bytes(triple, cpu) < 2_000_000) == bool(ahead)


@pytest.mark.parametrize("ahead", [0, 6144])
def test_what_is_written_for_them(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    monkeypatch.setattr(streams, "AHEAD", ahead)
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INT64]), "ask")
    builder = ir.IRBuilder(function.append_basic_block())
    streams.emit_ahead(builder, function.args[0])
    builder.ret_void()
    assert str(module).count('call void @"llvm.prefetch.p0"') == bool(ahead)
