"""What nobody asks for is left out, and what is asked for stays the same."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from tinylm.cache import KeyValueCache
from tinylm.early_choice import OF_EACH_TOKEN, choose_early
from tinylm.formats.float32 import Float32Matrix
from tinylm.formats.key_values import key_value_format
from tinylm.program import Program
from tinylm.reference import run_reference
from tinylm.step import make_step

random = np.random.default_rng(0)


def matrix(N: int, K: int) -> Float32Matrix:
    return Float32Matrix(random.standard_normal((N, K), np.float32))


def program(parallel: bool, layers: int = 2) -> Program:
    """A small model whose feed-forward part reads what attention made, or what it read (`parallel`)."""
    found = Program(
        vocab_size=20, heads=2, key_value_heads=1, head_dim=8, inverse_frequencies=np.ones(4, np.float32)
    )
    ones = np.ones(16, np.float32)
    x = found.embed("embed", matrix(20, 16))
    for layer in range(layers):
        h = found.rmsnorm(f"{layer}.ln1", x, ones, 1e-5)
        q, k, v = (
            found.matmul(f"{layer}.{name}", h, matrix(N, 16)) for name, N in (("q", 16), ("k", 8), ("v", 8))
        )
        z = found.attention(f"{layer}.z", found.rope(f"{layer}.rot_q", q), found.rope(f"{layer}.rot_k", k), v)
        a = found.add(f"{layer}.mid", x, found.matmul(f"{layer}.out", z, matrix(16, 16)))
        m = found.layernorm(f"{layer}.ln2", x if parallel else a, ones, ones, 1e-5)
        m = found.gate(
            f"{layer}.gate",
            found.matmul(f"{layer}.pre", m, matrix(24, 16)),
            found.matmul(f"{layer}.up", m, matrix(24, 16)),
            "silu",
        )
        x = found.add(f"{layer}.post", a, found.matmul(f"{layer}.down", m, matrix(16, 24)))
    x = found.chosen_rows("ln_final.input", x)
    found.matmul("logits", found.rmsnorm("ln_final", x, ones, 1e-5), matrix(20, 16))
    return found


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("wanted", [[5], [0, 3, 4], []])
def test_chosen_rows_are_the_same(parallel: bool, wanted: list[int]) -> None:
    whole = program(parallel)
    early = copy.copy(whole)
    early.operations = choose_early(whole.operations)
    assert early.output == whole.output
    logits = []
    for one in (whole, early):
        cache = KeyValueCache(one.layers, 1, 8, key_value_format("float32"))
        cache.reserve(6, 0)
        step = make_step([(cache, 0, [3, 1, 4, 1, 5, 9])], 2, np.array(wanted, np.int64))
        logits.append(run_reference(one, step)["logits"])
    assert logits[0].shape == (len(wanted), 20)
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parallel", [False, True])
def test_after_the_last_attention_all_rows_are_chosen_ones(parallel: bool) -> None:
    operations = choose_early(program(parallel).operations)
    last = max(i for i, one in enumerate(operations) if one.kind == "attention")
    for one in operations[last + 1 :]:
        assert one.output.rows == "L"
        assert one.kind == "chosen_rows" or all(buffer.rows == "L" for buffer in one.inputs)
    assert sum(one.kind == "chosen_rows" for one in operations) == 2
    early = {one.output.name for one in operations if one.kind in OF_EACH_TOKEN and one.output.rows == "L"}
    assert early >= {"1.out", "1.mid", "1.ln2", "1.pre", "1.up", "1.gate", "1.down", "1.post", "logits"}
    assert not any(name.startswith("0.") for name in early)


def test_what_something_else_reads_whole_is_made_whole() -> None:
    found = program(False, layers=1)
    operations = [*found.operations]
    mid = next(one.output for one in operations if one.output.name == "0.mid")
    used = found.rope("again", mid.name)
    operations.insert(-3, found.operations.pop())
    assert used == "again"
    chosen = {one.output.name: one.output.rows for one in choose_early(operations)}
    assert chosen["0.mid"] == chosen["0.out"] == "T"
    assert chosen["0.down"] == "L"


def test_without_a_choice_nothing_changes() -> None:
    operations = program(False).operations
    for end in (5, len(operations) - 2):  # before the choice, and right after it: its rows are the result
        assert choose_early(operations[:end]) == operations[:end]
