"""Linking a kernel's object file here does what LLVM's own loader does with it; a damaged file is refused."""

from __future__ import annotations

import ctypes
import pkgutil
import struct
import subprocess
import sys
from importlib import import_module
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinylm.kernels
from tinylm.kernels import compiler, machine_code
from tinylm.kernels.jit import Operation
from tinylm.kernels.linker import LinkError, link
from tinylm.kernels.rows import add_bias_operation

OPERATIONS = {
    value.name: value
    for module in pkgutil.iter_modules(tinylm.kernels.__path__)
    for value in vars(import_module(f"tinylm.kernels.{module.name}")).values()
    if isinstance(value, Operation)
}
linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere LLVM places the code")
KIND = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


@pytest.fixture(scope="module")
def add_bias() -> bytes:
    return compiler.object_code(add_bias_operation.function)


def added(address: int) -> list[Any]:
    """What (2, 3) of ones and a bias are after the operation at an address."""
    x, bias = np.ones((2, 3), np.float32), np.arange(3, dtype=np.float32)
    operands = np.array([x.ctypes.data, 2, 3, bias.ctypes.data, 3], np.int64)
    KIND(address)(operands.ctypes.data, 0, 2)
    return x.tolist()


@linux
def test_both_ways_of_placing_code_give_a_function_that_works(add_bias: bytes) -> None:
    addresses = [
        place(add_bias, "add_bias_operation")
        for place in (machine_code._place_here, machine_code._place_by_llvm)
    ]
    assert [added(address) for address in addresses] == [[[1, 2, 3]] * 2] * 2


@linux
def test_where_the_system_refuses_llvm_places_it(add_bias: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(object_file: bytes, name: str) -> int:
        raise OSError("no code may be made")

    monkeypatch.setattr(machine_code, "_place_here", refuse)
    assert added(machine_code._place(add_bias, "add_bias_operation")) == [[1, 2, 3]] * 2


@linux
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_kernel_needs_nothing_from_outside(name: str) -> None:
    assert OPERATIONS[name].address
    made = compiler.object_code(OPERATIONS[name].function)
    code, address = link(made, name, lambda length: 1 << 40)
    assert 0 <= address - (1 << 40) < len(code)


@linux
def test_code_is_never_writable_and_executable_at_once() -> None:
    assert add_bias_operation.address
    with open("/proc/self/maps") as maps:
        for line in maps:
            begin, end = (int(number, 16) for number in line.split()[0].split("-"))
            if begin <= add_bias_operation.address < end:
                assert line.split()[1][:3] == "r-x"


@linux
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_object_file_is_refused_or_stays_within_its_bounds(
    data: st.DataObject, add_bias: bytes
) -> None:
    damaged = bytearray(add_bias[: data.draw(st.integers(0, len(add_bias)))] or add_bias)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        code, address = link(bytes(damaged), "add_bias_operation", lambda length: 1 << 40)
    except LinkError:
        return
    assert len(code) <= 1 << 26
    assert (1 << 40) <= address < (1 << 40) + len(code)


AARCH64_SOURCE = """
target triple = "aarch64-unknown-linux-gnu"
@numbers = internal constant [4 x i32] [i32 1, i32 2, i32 3, i32 4]
@table = internal constant [2 x i64] [i64 5, i64 6], align 64
define internal i64 @inner(i64 %i) noinline {
  %p = getelementptr [2 x i64], [2 x i64]* @table, i64 0, i64 %i
  %v = load i64, i64* %p
  ret i64 %v
}
define i64 @outer(i64 %i) {
  %a = call i64 @inner(i64 %i)
  %p = getelementptr [4 x i32], [4 x i32]* @numbers, i64 0, i64 %a
  %n = load i32, i32* %p
  %w = zext i32 %n to i64
  ret i64 %w
}
"""


def test_distances_on_arm_are_those_of_the_instructions() -> None:
    """An instruction's own fields, decoded by the reference manual, lead where the symbol is."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    source = AARCH64_SOURCE
    try:
        module = llvm.parse_assembly(source)
    except RuntimeError:  # an LLVM of opaque pointers alone
        module = llvm.parse_assembly(
            source.replace("[2 x i64]*", "ptr")
            .replace("[4 x i32]*", "ptr")
            .replace("i64*", "ptr")
            .replace("i32*", "ptr")
        )
    machine = llvm.Target.from_triple("aarch64-unknown-linux-gnu").create_target_machine(
        cpu="apple-m1", reloc="pic", codemodel="small", opt=0
    )
    base = 7 << 20
    code, address = link(machine.emit_object(module), "outer", lambda length: base)
    words = struct.unpack(f"<{len(code) // 4}I", code)
    tables = [base + code.index(struct.pack("<4I", 1, 2, 3, 4)), base + code.index(struct.pack("<2Q", 5, 6))]
    reached = set()
    pages: dict[int, int] = {}
    for i, word in enumerate(words):
        here = base + 4 * i
        if word & 0x9F000000 == 0x90000000:  # ADRP
            distance = (word >> 29 & 3) | (word >> 5 & 0x7FFFF) << 2
            distance -= (distance & 1 << 20) * 2
            pages[word & 31] = (here >> 12 << 12) + distance * 4096
        elif word & 0xFFC00000 == 0x91000000 and (word >> 5 & 31) in pages:  # ADD, immediate
            reached.add(pages[word >> 5 & 31] + (word >> 10 & 0xFFF))
        elif word & 0xFC000000 == 0x94000000:  # BL
            distance = word & 0x3FFFFFF
            distance -= (distance & 1 << 25) * 2
            target = here + 4 * distance
            assert base <= target < address, "inner stands before outer"
            reached.add("call")
    assert reached >= {*tables, "call"}


def test_a_start_that_finds_its_kernels_needs_neither_numba_nor_llvm() -> None:
    code = (
        "import sys, tinylm\n"
        "lm = tinylm.load('stories260k')\n"
        "text = str(lm.generate('Once upon a time', max_new_tokens=4, do_sample=False))\n"
        "loaded = [name for name in ('numba', 'llvmlite.binding') if name in sys.modules]\n"
        "print(len(text) > 4, loaded)\n"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ("True []" if sys.platform == "linux" else "True ['llvmlite.binding']")
