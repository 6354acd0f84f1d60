"""Attention against double precision, query by query: groups, blocks, splits, several sequences, formats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from tinylm.kernels.attention import (
    BEGIN,
    END,
    FIRST,
    QUERIES_HERE,
    ROW,
    SEQUENCE,
    SPLIT,
    TILE_FIRST,
    TILE_PARTS,
    TILE_QUERIES,
    TILE_ROW,
    TILE_TASK,
    attention,
    attention_reference,
    combine,
    padded,
    part_size,
    plan,
    record_length,
    store,
)
from tinylm.kernels.narrow_floats import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    narrow_reference,
    widen_reference,
)
from tinylm.kernels.tile import LANES
from tinylm.kernels.tile_attention import BLOCK, STRIP

SHAPES = [
    (1, 1, 8),
    (8, 4, 8),
    (9, 3, 64),
    (6, 1, 20),
    (4, 4, 20),
    (3, 1, 128),
    (2, 2, 64),
    (40, 1, 8),
    (5, 1, 2),
    (16, 1, 80),
    (17, 1, 16),
]
"""(H, Hkv, Dh)."""

STEPS = {
    "one token, first": [(1, 1)],
    "one token": [(1, 50)],
    "at a tile's end": [(1, 12)],
    "behind a tile's end": [(1, 13)],
    "at a block's end": [(1, BLOCK)],
    "behind a block's end": [(1, BLOCK + 1)],
    "at the split": [(1, SPLIT)],
    "behind the split": [(1, SPLIT + 1)],
    "larger parts": [(1, 17 * SPLIT)],
    "three parts": [(1, 2 * SPLIT + 77)],
    "few tokens over a split": [(5, SPLIT + 3)],
    "a prompt": [(LANES + 5, LANES + 5)],
    "a chunk of a prompt": [(70, 70 + BLOCK + 31)],
    "a long chunk": [(150, SPLIT + 200)],
    "three texts": [(1, 1), (1, SPLIT + 9), (1, BLOCK)],
    "texts that join": [(9, 9), (1, 30), (40, 130)],
}
"""For each sequence: tokens in the step, positions with them."""

JUNK = np.float32(1e4)
"""What lies where nobody should look: a number, for it may be multiplied by nothing."""


@dataclass
class Case:
    """A step of attention over caches of two layers, of which the second counts."""

    shape: tuple[int, int, int]
    step: list[tuple[int, int]]
    loud: float = 1.0
    """How far the scores are apart."""

    like: np.generic = FLOAT32
    """What the cache is stored in."""

    def __post_init__(self) -> None:
        random = np.random.default_rng(7)
        H, Hkv, Dh = self.shape
        T = sum(count for count, _ in self.step)
        self.scale = np.float32(Dh**-0.5)
        self.q = (random.standard_normal((T, H * Dh)) * self.loud).astype(np.float32)
        self.keys, self.values = (
            [
                widen_reference(
                    self.like,
                    narrow_reference(self.like, random.standard_normal((length, Hkv, Dh), np.float32)),
                )
                for _, length in self.step
            ]
            for _ in range(2)
        )
        self.positions = np.concatenate([np.arange(n - count, n) for count, n in self.step]).astype(np.int64)
        self.counts = [count for count, _ in self.step]
        self.starts = (np.cumsum(self.counts) - self.counts).tolist()
        self.tasks, self.tiles = plan(self.starts, self.counts, [n for _, n in self.step], H // Hkv)

    def caches(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Rows of addresses, and the records behind them: beyond the last position lies what was there before."""
        _, Hkv, Dh = self.shape
        rows, arrays = [], []
        for i, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            blocks = -(-len(keys) // BLOCK) + i
            for _ in range(2):
                junk = np.full(blocks * Hkv * record_length(Dh) + 16, JUNK, np.float32)
                arrays.append(narrow_reference(self.like, junk))
            rows.append([array.ctypes.data for array in arrays[-2:]])
            here = np.array([rows[-1]], np.int64)
            places, zeros = np.arange(len(keys)), np.zeros(len(keys), np.int64)
            new = [one.reshape(len(keys), -1) for one in (keys, values)]
            store(self.like, *new, places, zeros, here, 1, Hkv, Dh, 0, len(keys))
        return np.array(rows, np.int64), arrays

    def run(self, backwards: bool = False) -> np.ndarray:
        """The kernels, one unit at a time."""
        H, Hkv, Dh = self.shape
        caches, arrays = self.caches()
        parts = np.full((len(self.tasks) * Hkv + 1, part_size(Dh)), 77, np.float32)
        border = np.full((len(self.q) + 2, H * Dh), 77, np.float32)
        out = border[1:-1]
        order = range(len(self.tasks) * Hkv)
        for unit in reversed(order) if backwards else order:
            attention(
                self.like, self.q, self.positions, self.tasks, caches, 1, Hkv, Dh, self.scale, parts, unit, unit + 1
            )  # fmt: skip
        assert (parts[-1] == 77).all()
        for unit in range(len(self.tiles) * Hkv):
            combine(self.tiles, Hkv, Dh, parts, out, unit, unit + 1)
        assert (border[[0, -1]] == 77).all()
        del arrays
        return out.reshape(-1, H, Dh)

    def expected(self) -> np.ndarray:
        """Each query on its own, in double precision."""
        H, Hkv, Dh = self.shape
        out = np.empty((len(self.q), H, Dh))
        for (count, length), start, keys, values in zip(
            self.step, self.starts, self.keys, self.values, strict=True
        ):
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
    np.testing.assert_allclose(case.run(), case.expected(), atol=6e-6)


@pytest.mark.parametrize("like", [BFLOAT16, FLOAT16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("step", ["one token", "three parts", "a long chunk", "texts that join"])
@pytest.mark.parametrize("shape", [(9, 3, 64), (6, 1, 20), (4, 4, 80), (3, 1, 128)], ids=str)
def test_numbers_of_two_bytes(shape: tuple[int, int, int], step: str, like: np.generic) -> None:
    case = Case(shape, STEPS[step], like=like)
    np.testing.assert_allclose(case.run(), case.expected(), atol=6e-6)


@pytest.mark.parametrize("step", ["three parts", "texts that join"])
@pytest.mark.parametrize("loud", [0.0, 12.0])
def test_all_alike_and_far_apart(step: str, loud: float) -> None:
    case = Case((9, 3, 64), STEPS[step], loud)
    # scores of 40 are known to 40 * 2^-23, and so are the weights
    np.testing.assert_allclose(case.run(), case.expected(), atol=4e-5)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_the_order_of_the_work_changes_no_bit(step: list[tuple[int, int]]) -> None:
    case = Case((9, 3, 20), step)
    np.testing.assert_array_equal(case.run(), case.run(backwards=True))


def test_the_reference_and_its_pattern() -> None:
    case = Case((6, 2, 20), [(11, 40)])
    out, pattern = attention_reference(
        case.q.reshape(11, 6, 20), case.keys[0], case.values[0], case.positions, case.scale
    )
    np.testing.assert_allclose(out, case.expected(), atol=2e-6)
    assert pattern.shape == (6, 11, 40)
    np.testing.assert_allclose(pattern.sum(axis=-1), 1, rtol=1e-5)
    assert (pattern[:, np.arange(40)[None, :] > case.positions[:, None]] == 0).all()
    weighted = np.einsum("hts,shd->thd", pattern, np.repeat(case.values[0], 3, axis=1))
    np.testing.assert_allclose(weighted, out, atol=1e-6)


@pytest.mark.parametrize("group", [1, 3, 8, 40])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_the_plan_covers_every_query_and_position_once(step: list[tuple[int, int]], group: int) -> None:
    case = Case((group, 1, 1), step)
    seen = [np.zeros((count * group, length), int) for count, length in step]
    tasks, tiles = plan(case.starts, case.counts, [n for _, n in step], group)
    for task in tasks:
        assert 0 < task[QUERIES_HERE] <= LANES
        assert task[BEGIN] < task[END]
        assert task[ROW] == case.starts[task[SEQUENCE]]
        step_count, positions = step[task[SEQUENCE]]
        last = positions - step_count + (task[FIRST] + task[QUERIES_HERE] - 1) // group
        assert task[END] <= last + 1, "positions that none of its queries sees"
        queries = slice(task[FIRST], task[FIRST] + task[QUERIES_HERE])
        seen[task[SEQUENCE]][queries, task[BEGIN] : task[END]] += 1
    for (count, length), found in zip(step, seen, strict=True):
        needed = np.arange(length)[None, :] <= length - count + np.arange(count * group)[:, None] // group
        assert (found[needed] == 1).all()
        assert (found <= 1).all()
    covered = np.zeros(len(tasks), int)
    for tile in tiles:
        own = tasks[tile[TILE_TASK] :][: tile[TILE_PARTS]]
        covered[tile[TILE_TASK] :][: tile[TILE_PARTS]] += 1
        assert (own[:, [ROW, FIRST, QUERIES_HERE]] == tile[[TILE_ROW, TILE_FIRST, TILE_QUERIES]]).all()
    assert (covered == 1).all()


@pytest.mark.parametrize("at_once", [1, 17, 50])
@pytest.mark.parametrize("shape", [(8, 4, 8), (9, 3, 64), (2, 1, 20)], ids=str)
def test_keys_and_values_go_to_their_places(shape: tuple[int, int, int], at_once: int) -> None:
    _, Hkv, Dh = shape
    case = Case(shape, STEPS["texts that join"])
    caches, arrays = case.caches()
    before = [array.copy() for array in arrays]
    T = len(case.q)
    random = np.random.default_rng(3)
    keys, values = random.standard_normal((2, T, Hkv * Dh), np.float32)
    rows = np.repeat(np.arange(3), case.counts)
    for begin in reversed(range(0, T, at_once)):
        end = min(begin + at_once, T)
        store(FLOAT32, keys, values, case.positions, rows, caches, 1, Hkv, Dh, begin, end)
    size, columns = record_length(Dh), padded(Dh)
    for token in range(T):
        block, place = divmod(int(case.positions[token]), BLOCK)
        records = before[2 * rows[token] + 1][:-16].reshape(-1, Hkv, size)[block]
        strips = records[:, : BLOCK * Dh].reshape(Hkv, BLOCK // STRIP, Dh, STRIP)
        strips[:, place // STRIP, :, place % STRIP] = keys[token].reshape(Hkv, Dh)
        lines = records[:, BLOCK * Dh :].reshape(Hkv, BLOCK, columns)
        lines[:, place, :Dh] = values[token].reshape(Hkv, Dh)
    for found, expected in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_not_a_number_reaches_those_who_see_it() -> None:
    case = Case((6, 2, 20), [(1, SPLIT + 60), (1, 40)])
    case.keys[0][5, 1, 3] = np.nan
    out = case.run()
    assert np.isnan(out[0, 3:]).all()
    assert np.isfinite(out[0, :3]).all()
    assert np.isfinite(out[1]).all()
    case = Case((6, 2, 20), [(1, SPLIT + 60), (1, 40)])
    case.values[0][5, 0, 3] = np.nan
    out = case.run()
    assert np.isnan(out[0, :3, 3]).all()
    assert np.isfinite(np.delete(out[0, :3], 3, axis=-1)).all()
