"""Merging words: the kernel against its reference, and against the merge loop of the tokenizer."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from tinylm.kernels.merge import SHORT, fill_table, merge_words, merge_words_reference
from tinylm.tokenizer.bpe import merge
from tinylm.tokenizer.merge_table import MergeTable

Arrays = tuple[np.ndarray[Any, Any], ...]


def model(seed: int, symbols: int, merges: int) -> tuple[dict[int, int], list[int]]:
    """Ranks by pair and the symbols that merges make: symbols below `symbols` are given, each merge adds one."""
    choose = random.Random(seed)
    strings = [chr(97 + symbol) for symbol in range(symbols)]
    known = {string: symbol for symbol, string in enumerate(strings)}
    ranks: dict[int, int] = {}
    merged: list[int] = []
    for _ in range(merges):
        left, right = choose.randrange(len(strings)), choose.randrange(len(strings))
        if left << 32 | right in ranks:
            continue
        both = strings[left] + strings[right]
        if both not in known:
            known[both] = len(strings)
            strings.append(both)
        ranks[left << 32 | right] = len(merged)
        merged.append(known[both])
    return ranks, merged


def table(ranks: dict[int, int], merged: list[int]) -> Arrays:
    size = 1 << max(4, (2 * len(ranks)).bit_length())
    pairs, slots = np.full(size, -1, dtype=np.int64), np.zeros(size, dtype=np.int32)
    known = np.full(len(merged), -1, dtype=np.int64)
    for pair, rank in ranks.items():
        known[rank] = pair
    fill_table(known, pairs, slots)
    return pairs, slots, np.array([*merged, 0], dtype=np.int32)


def words_of(
    lengths: list[int], seed: int, symbols: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    choose = random.Random(seed)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.array([choose.randrange(symbols) for _ in range(starts[-1])], dtype=np.int32), starts


def run(function: Any, symbols: np.ndarray[Any, Any], starts: np.ndarray[Any, Any], arrays: Arrays) -> Any:
    symbols, places = symbols.copy(), np.zeros_like(symbols)
    counts = np.zeros(len(starts) - 1, dtype=np.int64)
    function(symbols, starts, *arrays, places, counts)
    kept = [slice(start, start + count) for start, count in zip(starts[:-1], counts, strict=True)]
    return [(symbols[part].tolist(), places[part].tolist()) for part in kept]


@pytest.mark.parametrize("seed", range(6))
def test_the_kernel_merges_as_the_reference(seed: int) -> None:
    ranks, merged = model(seed, symbols=4, merges=10 * 4**seed)
    arrays = table(ranks, merged)
    lengths = [0, 1, 2, 3, 5, SHORT - 1, SHORT, SHORT + 1, SHORT + 2, 150, 0, 7, 300]
    symbols, starts = words_of(lengths, seed, 4)
    expected = run(merge_words_reference, symbols, starts, arrays)
    assert run(merge_words, symbols, starts, arrays) == expected
    for (kept, places), start, length in zip(expected, starts, lengths, strict=False):
        word, own_places = symbols[start : start + length].tolist(), list(range(length))
        merge(word, ranks, merged, own_places)
        assert (word, own_places) == (kept, places)


def test_every_pair_is_in_the_table_once() -> None:
    ranks, merged = model(9, symbols=30, merges=5_000)
    pairs, slots, _ = table(ranks, merged)
    held = {int(pair): int(rank) for pair, rank in zip(pairs, slots, strict=True) if pair >= 0}
    assert held == ranks


@pytest.mark.parametrize("word", ["a" * 1_000_000, "ab" * 500_000], ids=["a", "ab"])
def test_a_million_characters_in_one_word_do_not_hang(word: str) -> None:
    # a a -> aa, aa aa -> aaaa, ... and the same for ab: every symbol is merged twenty times.
    unit = [0] if word.startswith("aa") else [0, 1]
    ranks, merged, last = {}, [], 0
    if len(unit) == 2:
        ranks[0 << 32 | 1], last = 0, 2
        merged.append(2)
    for symbol in range(3, 20):
        ranks[last << 32 | last] = len(merged)
        merged.append(symbol)
        last = symbol
    symbols = [0 if character == "a" else 1 for character in word]
    [(kept, places)] = MergeTable(ranks, merged).merge([symbols])
    assert len(kept) == len(places) < 40
    width = len(word) // len(unit) >> 17
    assert kept[:width] == [19] * width
    assert places[:3] == [0, len(unit) << 17, len(unit) << 18]


def test_no_words_and_no_merges() -> None:
    assert MergeTable({}, []).merge([]) == []
    assert MergeTable({}, []).merge([[], [3, 1]]) == [([], []), ([3, 1], [0, 1])]
