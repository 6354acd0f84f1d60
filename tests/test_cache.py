"""A cache grows without losing anything, whatever happens meanwhile, and a copy shares nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tinylm.cache import KeyValueCache
from tinylm.errors import ParameterError
from tinylm.formats.key_values import KV_DTYPES, automatic, key_value_format, position_bytes
from tinylm.kernels.tile_attention import BLOCK

LAYERS, HEADS, HEAD_DIM = 3, 2, 5

EXACT = {"float32": 0, "bfloat16": 2**-8, "float16": 2**-11, "int8": 1 / 100}
"""How far a number may be from what was stored, relative to the largest of its head."""

Held = list[tuple[np.ndarray, np.ndarray]]


def filled(used: int, name: str = "float32") -> tuple[KeyValueCache, Held]:
    """A cache of so many positions, and what they hold."""
    cache = KeyValueCache(LAYERS, HEADS, HEAD_DIM, key_value_format(name))
    cache.reserve(used, 0)
    random = np.random.default_rng(used)
    held = []
    for layer in range(LAYERS):
        keys, values = random.standard_normal((2, used, HEADS, HEAD_DIM), np.float32)
        cache.write(layer, np.arange(used), keys, values)
        held.append((keys, values))
    return cache, held


def check(cache: KeyValueCache, held: Held, used: int) -> None:
    bound = EXACT[cache.format.name]
    for layer, expected in enumerate(held):
        assert cache.records[layer].flags.c_contiguous
        assert cache.records[layer].ctypes.data % 64 == 0
        assert cache.records[layer].shape[0] * BLOCK == cache.capacity
        for found, one in zip(cache.read(layer, used), expected, strict=True):
            assert found.shape == (used, HEADS, HEAD_DIM)
            largest = np.abs(one[:used]).max(axis=-1, keepdims=True)
            assert (np.abs(found - one[:used]) <= bound * largest).all()


@pytest.mark.parametrize("name", KV_DTYPES)
def test_it_grows_by_need_and_keeps_what_it_holds(name: str) -> None:
    cache, held = filled(50, name)
    check(cache, held, 50)
    assert 50 <= cache.capacity <= 50 + BLOCK
    before = cache.nbytes
    cache.reserve(cache.capacity, 50)
    assert cache.nbytes == before == cache.room_bytes(50), "there is room already"
    cache.reserve(400, 50)
    assert 400 <= cache.capacity <= 400 + BLOCK
    check(cache, held, 50)
    cache.reserve(1000, 20)
    check(cache, held, 20)
    for layer in range(LAYERS):
        assert np.isfinite(cache.read(layer, cache.capacity)).all()


def test_the_kernels_are_told_where_it_lies() -> None:
    cache, _ = filled(70)
    assert cache.row() == [records.ctypes.data for records in cache.records]
    cache.reserve(500, 70)
    assert cache.row() == [records.ctypes.data for records in cache.records]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("calls", range(LAYERS))
@pytest.mark.parametrize("then", [60, 200, 900])
def test_what_interrupts_its_growth_loses_nothing(
    error: type[BaseException], calls: int, then: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, held = filled(50)
    true, left = cache._room, [calls]

    def fail(blocks: int) -> np.ndarray:
        if not left[0]:
            raise error
        left[0] -= 1
        return true(blocks)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_room", fail)
        with pytest.raises(error):
            cache.reserve(500, 50)
    cache.reserve(then, 50)
    assert cache.capacity >= then
    check(cache, held, 50)


@pytest.mark.parametrize("name", KV_DTYPES)
def test_a_copy_shares_nothing(name: str) -> None:
    cache, held = filled(150, name)
    copy = KeyValueCache(LAYERS, HEADS, HEAD_DIM, cache.format)
    copy.copy_from(cache, 100)
    check(copy, held, 100)
    copy.records[0][:] = 7
    check(cache, held, 150)
    assert copy.capacity <= cache.capacity


def test_a_position_takes_what_its_numbers_take() -> None:
    assert position_bytes("float32", 30, 3, 64) == 2 * 4 * 30 * 3 * 64
    assert position_bytes("bfloat16", 30, 3, 64) == 2 * 2 * 30 * 3 * 64
    assert position_bytes("int8", 30, 3, 64) == 30 * 3 * (2 * 64 + 2 + 4)


def test_published_weights_keep_their_accuracy_and_int8_has_its_like() -> None:
    assert automatic(["float32", "float32"]) == "float32"
    assert automatic(["float32", "bfloat16"]) == "float32"
    assert automatic(["int8", "float32"]) == automatic(["int8"]) == automatic(["int4", "int8"]) == "int8"


def test_an_unknown_format_is_told_by_name() -> None:
    with pytest.raises(ParameterError, match="kv_dtype 'int4': expected one of float32, bfloat16"):
        key_value_format("int4")
