"""A cache grows without losing anything, whatever happens meanwhile, and a copy shares nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tinylm.cache import KeyValueCache
from tinylm.kernels.attention import CAPACITY, FIRST_LAYER, PADDING

LAYERS, HEADS, HEAD_DIM = 3, 2, 5


def filled(used: int) -> tuple[KeyValueCache, list[np.ndarray]]:
    """A cache of so many positions, and what they hold."""
    cache = KeyValueCache(LAYERS, HEADS, HEAD_DIM)
    cache.reserve(used, 0)
    random = np.random.default_rng(used)
    held = []
    for array in (*cache.keys, *cache.values):
        array[:, :used] = random.standard_normal((HEADS, used, HEAD_DIM))
        held.append(array[:, :used].copy())
    return cache, held


def check(cache: KeyValueCache, held: list[np.ndarray], used: int) -> None:
    for array, expected in zip((*cache.keys, *cache.values), held, strict=True):
        assert array.shape == (HEADS, cache.capacity + PADDING, HEAD_DIM)
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array[:, :used], expected[:, :used])


def test_it_grows_by_need_and_keeps_what_it_holds() -> None:
    cache, held = filled(50)
    check(cache, held, 50)
    assert 50 <= cache.capacity < 128
    before = cache.nbytes
    cache.reserve(cache.capacity, 50)
    assert cache.nbytes == before, "there is room already"
    cache.reserve(400, 50)
    assert 400 <= cache.capacity < 500
    check(cache, held, 50)
    cache.reserve(1000, 20)
    check(cache, held, 20)
    assert np.isfinite(cache.keys[0]).all()


def test_the_kernels_are_told_where_it_lies() -> None:
    cache, _ = filled(70)
    row = cache.row()
    assert row[CAPACITY] == cache.capacity
    places = [[cache.keys[layer].ctypes.data, cache.values[layer].ctypes.data] for layer in range(LAYERS)]
    assert row[FIRST_LAYER:] == [address for pair in places for address in pair]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("calls", range(2 * LAYERS))
@pytest.mark.parametrize("then", [60, 200, 900])
def test_what_interrupts_its_growth_loses_nothing(
    error: type[BaseException], calls: int, then: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, held = filled(50)
    true, left = cache._room, [calls]

    def fail(capacity: int) -> np.ndarray:
        if not left[0]:
            raise error
        left[0] -= 1
        return true(capacity)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_room", fail)
        with pytest.raises(error):
            cache.reserve(500, 50)
    cache.reserve(then, 50)
    assert cache.capacity >= then
    check(cache, held, 50)


def test_a_copy_shares_nothing() -> None:
    cache, held = filled(50)
    copy = KeyValueCache(LAYERS, HEADS, HEAD_DIM)
    copy.copy_from(cache, 30)
    check(copy, held, 30)
    copy.keys[0][:] = 7
    check(cache, held, 50)
    assert copy.capacity <= cache.capacity
