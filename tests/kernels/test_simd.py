"""The intrinsics do what their names say."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numba import carray

from tinylm.kernels.jit import njit
from tinylm.kernels.simd import (
    atomic_add,
    atomic_load,
    atomic_store,
    float_from_bits,
    float_of_int32_bits,
    memory,
    nearest_int32,
    to_float32,
)


@njit
def add_often(cells, times):
    for _ in range(times):
        atomic_add(cells.ctypes.data + 8, 1)


@njit
def exchange(cells):
    before = atomic_add(cells.ctypes.data, 5)
    atomic_store(cells.ctypes.data + 8, before)
    return atomic_load(cells.ctypes.data)


def test_additions_of_several_threads_are_all_counted() -> None:
    cells = np.array([3, 0, 4], np.int64)
    add_often(cells, 1)
    threads = [threading.Thread(target=add_often, args=(cells, 100_000)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cells.tolist() == [3, 400_001, 4]


def test_an_addition_returns_what_was_there() -> None:
    cells = np.array([-2, 9, 7], np.int64)
    assert exchange(cells) == 3
    assert cells.tolist() == [3, -2, 7]


@njit
def float_of(bits):
    return float_from_bits(bits)


@njit
def floats_of(bits, out):
    for i in range(bits.shape[0]):
        out[i] = float_of_int32_bits(bits[i])


VALUES = np.array([0, -0.0, 1, -1.5, 3e38, 1e-45, np.inf, -np.inf, np.nan], np.float32)


def test_floats_are_their_bits() -> None:
    bits = VALUES.view(np.int32)
    for one in bits:
        for number in (int(one), int(one) + (7 << 32)):  # the high half does not matter
            assert np.float32(float_of(number)).view(np.int32) == one
    out = np.empty_like(VALUES)
    floats_of(bits, out)
    np.testing.assert_array_equal(out.view(np.int32), bits)


@njit
def widen_all(numbers, out):
    for i in range(numbers.shape[0]):
        out[i] = to_float32(numbers[i])


def test_bfloat16_is_the_upper_half_of_a_float32() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    out = np.empty(65536, np.float32)
    widen_all(bits, out)
    np.testing.assert_array_equal(out.view(np.uint32), np.arange(65536, dtype=np.uint32) << 16)
    widen_all(VALUES, out)
    np.testing.assert_array_equal(out[: len(VALUES)], VALUES)


def test_other_numbers_are_refused() -> None:
    with pytest.raises(Exception, match="no way to read int32 as float32"):
        widen_all(np.zeros(1, np.int32), np.zeros(1, np.float32))


@njit
def third_of(address):
    return carray(memory(address), (3,), np.float32)[2]


def test_memory_by_address() -> None:
    assert third_of(VALUES[2:].ctypes.data) == VALUES[4]


@njit
def nearest_of_all(numbers, out):
    for i in range(numbers.shape[0]):
        out[i] = nearest_int32(numbers[i])


def test_the_nearest_integer() -> None:
    numbers = np.array([0, 0.4, 0.6, -0.4, -0.6, 0.5, 1.5, -2.5, 32639.4, -32639.4], np.float32)
    out = np.empty(len(numbers), np.int32)
    nearest_of_all(numbers, out)
    np.testing.assert_array_equal(out, np.rint(numbers))
