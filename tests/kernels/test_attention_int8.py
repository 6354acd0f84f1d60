"""Attention over int8 keys and values: against double precision over the numbers that the cache holds."""

from __future__ import annotations

import numpy as np
import pytest

from tinylm.formats.key_values_int8 import Int8KeyValues
from tinylm.kernels.attention import SPLIT, combine, part_size, plan
from tinylm.kernels.attention_amx import attention_int8_amx_operation
from tinylm.kernels.attention_int8 import attention_int8_operation, record_bytes
from tinylm.kernels.hadamard import rotate_reference
from tinylm.kernels.jit import Operation
from tinylm.kernels.operands import array_operands
from tinylm.kernels.store_int8 import store
from tinylm.kernels.tile_amx import permitted
from tinylm.kernels.tile_attention import BLOCK

SHAPES = [(9, 3, 64), (8, 4, 8), (6, 1, 20), (4, 4, 80), (3, 1, 128), (16, 1, 64), (5, 1, 2)]
"""(H, Hkv, Dh)."""

STEPS = {
    "one token, first": [(1, 1)],
    "one token": [(1, 50)],
    "behind a block's end": [(1, BLOCK + 1)],
    "three parts": [(1, 2 * SPLIT + 77)],
    "few tokens over a split": [(5, SPLIT + 3)],
    "a prompt": [(37, 37)],
    "a long chunk": [(150, SPLIT + 200)],
    "texts that join": [(9, 9), (1, 30), (40, 130)],
}
"""For each sequence: tokens in the step, positions with them."""


class Case:
    """A step of attention over caches of two layers, of which the second counts."""

    def __init__(self, shape: tuple[int, int, int], step: list[tuple[int, int]]) -> None:
        self.shape, self.step = shape, step
        H, Hkv, Dh = shape
        random = np.random.default_rng(7)
        self.counts = [count for count, _ in step]
        self.starts = (np.cumsum(self.counts) - self.counts).tolist()
        self.scale = np.float32(Dh**-0.5)
        self.q = random.standard_normal((sum(self.counts), H * Dh)).astype(np.float32)
        self.positions = np.concatenate([np.arange(n - count, n) for count, n in step]).astype(np.int64)
        self.records = []
        for _, length in step:
            # what was there before: any bytes, of scales too
            records = random.integers(0, 256, (-(-length // BLOCK), Hkv, record_bytes(Dh)), np.uint8)
            keys, values = random.standard_normal((2, length, Hkv * Dh), np.float32)
            rows, here = np.zeros(length, np.int64), np.array([[0, records.ctypes.data]])
            store(keys, values, np.arange(length), rows, here, 1, Hkv, Dh, 0, length)
            self.records.append(records)

    def run(self, kernel: Operation = attention_int8_operation) -> np.ndarray:
        H, Hkv, Dh = self.shape
        caches = np.array([[0, records.ctypes.data] for records in self.records])
        tasks, tiles = plan(self.starts, self.counts, [n for _, n in self.step], H // Hkv)
        parts = np.full((len(tasks) * Hkv + 1, part_size(Dh)), 77, np.float32)
        border = np.full((len(self.q) + 2, H * Dh), 77, np.float32)
        operands = [
            *array_operands(self.q),
            *array_operands(self.positions),
            *array_operands(tasks),
            *array_operands(caches),
            *(1, Hkv, Dh, int(self.scale.view(np.int32))),
            *array_operands(parts),
        ]
        for unit in reversed(range(len(tasks) * Hkv)):
            kernel(np.array(operands, np.int64), unit, unit + 1)
        assert (parts[-1] == 77).all()
        for unit in range(len(tiles) * Hkv):
            combine(tiles, Hkv, Dh, parts, border[1:-1], unit, unit + 1)
        assert (border[[0, -1]] == 77).all()
        return border[1:-1].reshape(-1, H, Dh)

    def expected(self) -> np.ndarray:
        """Each query on its own, in double precision."""
        H, Hkv, Dh = self.shape
        out = np.empty((len(self.q), H, Dh))
        for (count, length), start, records in zip(self.step, self.starts, self.records, strict=True):
            with np.errstate(all="ignore"):  # what lies behind the last position is anything
                keys, values = (one[:length] for one in Int8KeyValues().read(records, Dh))
            for token in range(start, start + count):
                seen = length - count + token - start + 1
                for head in range(H):
                    query = self.q[token, head * Dh : (head + 1) * Dh].astype(np.float64)
                    scores = keys[:seen, head // (H // Hkv)] @ query * float(self.scale)
                    weights = np.exp(scores - scores.max())
                    out[token, head] = weights / weights.sum() @ values[:seen, head // (H // Hkv)]
        return out


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention(shape: tuple[int, int, int], step: list[tuple[int, int]]) -> None:
    case = Case(shape, step)
    error = np.abs(case.run() - case.expected())
    # queries and weights are rounded to a byte
    assert error.max() < 6e-2
    assert np.sqrt(np.square(error).mean()) < 1e-2


@pytest.mark.skipif(not permitted(), reason="this processor has no AMX, or the system does not give it")
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_matrix_unit_gives_the_same_bits(
    shape: tuple[int, int, int], step: list[tuple[int, int]]
) -> None:
    case = Case(shape, step)
    np.testing.assert_array_equal(case.run(attention_int8_amx_operation), case.run())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_cache_holds_what_was_stored(shape: tuple[int, int, int]) -> None:
    _, Hkv, Dh = shape
    random = np.random.default_rng(1)
    numbers = random.standard_normal((2, 150, Hkv, Dh), np.float32) * np.exp(
        random.normal(0, 3, (2, 150, Hkv, 1))
    )
    keys, values = numbers.astype(np.float32)
    keys[7], values[9] = 0, 0
    records, other = (np.full((2, Hkv, record_bytes(Dh)), 7, np.uint8) for _ in range(2))
    positions, rows, here = np.arange(150), np.zeros(150, np.int64), np.array([[0, records.ctypes.data]])
    flat = keys.reshape(150, -1), values.reshape(150, -1)
    store(*flat, positions, rows, here, 1, Hkv, Dh, 0, 150)
    Int8KeyValues().write(other, positions, keys, values)
    # the rotation is rounded in another order: a number may fall on the other side of a tie
    assert (records != other).mean() < 1e-2
    for found, exact in zip(Int8KeyValues().read(records, Dh), (keys, values), strict=True):
        step = np.abs(rotate_reference(exact)).max(axis=-1, keepdims=True) / 127
        error = rotate_reference(found[:150]) - rotate_reference(exact)
        assert (np.abs(error) <= 0.52 * step).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("first", [0, 5, 80])
def test_tokens_together_are_stored_as_alone(shape: tuple[int, int, int], first: int) -> None:
    _, Hkv, Dh = shape
    random = np.random.default_rng(2)
    count = 75
    keys, values = random.standard_normal((2, 2 * count, Hkv * Dh), np.float32)
    keys[3], values[9] = 0, 0
    keys[20, 1], values[30, 0] = np.nan, np.inf
    positions, rows = np.tile(np.arange(first, first + count), 2), np.repeat([0, 1], count)
    found = []
    for at_once in (1, 16, 150):
        records = np.full((2, 2, Hkv, record_bytes(Dh)), 7, np.uint8)
        here = np.array([[0, one.ctypes.data] for one in records])
        for begin in range(0, 2 * count, at_once):
            end = min(begin + at_once, 2 * count)
            store(keys, values, positions, rows, here, 1, Hkv, Dh, begin, end)
        found.append(records)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_not_a_number_reaches_those_who_see_it() -> None:
    case = Case((6, 2, 20), [(1, SPLIT + 60), (1, 40)])
    keys, values = np.ones((2, 1, 40), np.float32)
    keys[0, 20 + 3] = np.nan
    here = np.array([[0, case.records[0].ctypes.data]])
    place, row = np.array([5]), np.zeros(1, np.int64)
    store(keys, values, place, row, here, 1, 2, 20, 0, 1)
    out = case.run()
    assert np.isnan(out[0, 3:]).all()
    assert np.isfinite(out[0, :3]).all()
    assert np.isfinite(out[1]).all()
