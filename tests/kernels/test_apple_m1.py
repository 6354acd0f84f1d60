"""The kernels for the machine that is not at hand: what LLVM makes of them for an M1."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "emit_assembly.py"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}  # a checkout that is not installed will do
ATTENTION = ("attention_float32", "attention_bfloat16", "attention_float16", "attention_int8")
KERNELS = (
    "matvec",
    "matvec_bfloat16",
    "matmul",
    "matmul_int8",
    "matmul_int4",
    "gated_int8",
    *ATTENTION,
    "gate",
    "pack_int8",
)
TEAM = ("open", "walk", "attend", "close")


@pytest.fixture(scope="module")
def assembly():
    """The assembly of each kernel for arm64-apple-macosx / apple-m1; each in a process of its own."""
    found = {}
    for kernel in KERNELS + TEAM:
        command = [sys.executable, str(SCRIPT), kernel, "arm64-apple-macosx", "apple-m1"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=600, env=ENVIRONMENT
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found[kernel] = done.stdout
    return found


def count(pattern, text):
    return len(re.findall(pattern, text, flags=re.MULTILINE))


@pytest.mark.parametrize(
    "kernel", ["matvec", "matvec_bfloat16", "matmul", *ATTENTION[:3], "gate", "gated_int8"]
)
def test_sums_are_vectors_of_four(assembly, kernel):
    assert count(r"^\s+fmla(\.4s|\s+v\d+\.4s)", assembly[kernel]) >= 4


def test_a_matrix_tile_keeps_its_sums_in_registers(assembly):
    # 6 tokens x 16 rows are 24 registers of sums; its unrolled loop has 4 x 24 of them
    for kernel in ("matmul", "attention_float32"):
        loops = re.split(r"^\w+:", assembly[kernel], flags=re.MULTILINE)
        sizes = [count(r"^\s+fmla(\.4s|\s+v\d+\.4s)", loop) for loop in loops]
        assert max(sizes) == 96
        for size, loop in zip(sizes, loops, strict=True):
            assert size < 64 or not count(r"^\s+(ldr|ldp|str|stp)\s+q.*\[sp", loop)


@pytest.mark.parametrize(
    ("kernel", "products"), [("matmul_int8", 6 * 4), ("matmul_int4", 4 * 4 * 2), ("gated_int8", 6 * 4)]
)
def test_integers_use_the_dot_product_instruction(assembly, kernel, products):
    # the loop of many tokens alone: 6 or 4 tokens x 4 registers, for each four columns of a block
    loops = re.split(r"^\w+:", assembly[kernel], flags=re.MULTILINE)
    assert max(count(r"^\s+sdot(\.4s|\s+v\d+\.4s)", loop) for loop in loops) >= products


def test_four_bits_are_looked_up_in_a_register(assembly):
    found = assembly["matmul_int4"]
    # of 16 bytes the low halves and the high ones, in four registers of a block
    assert count(r"^\s+tbl(\.16b|\s+v\d+\.16b)", found) >= 8
    loops = [part for part in re.split(r"^\w+:", found, flags=re.MULTILINE) if count(r"^\s+sdot", part) >= 8]
    assert loops
    assert all(count(r"^\s+tbl", part) >= 2 for part in loops), "in the same loop as the products"


@pytest.mark.parametrize(("kernel", "widened"), [("bfloat16", r"shll|ushll"), ("float16", r"fcvtl")])
def test_keys_and_values_of_two_bytes_are_widened_in_registers(assembly, kernel, widened):
    assert count(rf"^\s+({widened})2?(\.4s|\s+v\d+\.4s)", assembly[f"attention_{kernel}"]) >= 4


def test_int8_keys_and_values_use_the_dot_product_instruction(assembly):
    # tiles of 4, 2 and 1 queries, of 4 registers each, for scores and for weighted sums
    assert count(r"^\s+sdot(\.4s|\s+v\d+\.4s)", assembly["attention_int8"]) >= 2 * 4 * 7


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_function_of_the_mathematics_library_is_called(assembly, kernel):
    called = set(re.findall(r"^\s+bl\s+_(\w+)", assembly[kernel], flags=re.MULTILINE))
    assert not called & {"exp", "expf", "exp2f", "erff", "tanhf", "powf", "fmaf", "sqrtf", "rintf"}


def test_the_team_orders_what_its_threads_see(assembly):
    """ARM reorders loads and stores; an emulator on x86 does not, so the instructions themselves are looked for."""
    opened, walk, attend, close = (assembly[name] for name in TEAM)
    for one in (walk, attend):
        assert count(r"^\s+ldaddal\s", one) >= 4  # come in, take a chunk, report it, leave
        assert count(r"^\s+ldsetal\s", one) >= 2  # who ends a piece first, of those who take it and who help
        assert count(r"^\s+ldar\s", one) >= 2  # the step is open; the units are done
    for one in (opened, walk, close):
        assert count(r"^\s+stlr\s", one) >= 1  # the step is closed for those to come ...
        assert count(r"^\s+ldar\s", one) >= 1  # ... before it is asked who is inside
    # the caller opens a step and then asks who sleeps, a worker says that it sleeps and then looks for a step
    assert count(r"^\s+stlr\s", opened) >= 2
    assert count(r"^\s+stlr\s", attend) >= 2
    assert count(r"^\s+yield", attend) >= 1
    assert not count(r"^\s+(ldaddl|ldadda|ldsetl|ldseta|ldapu?r)\s", opened + walk + attend + close)
