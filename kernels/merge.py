"""The merge loop of byte pair encoding, over many words or very long ones.

Merges are looked up in a table with open addressing: `pairs` (M,) int64 holds `left << 32 | right` or -1 for
an empty slot, `ranks` (M,) int32 the rank of that pair; M is a power of two. `merged[rank]` is the symbol that
a merge makes.
"""

from itertools import pairwise

import numpy as np

from tinylm.kernels.jit import njit, operation
from tinylm.kernels.operands import array_operands, int32_1d, int64_1d

NEVER = np.iinfo(np.int32).max
SHORT = 48
"""Symbols of a word up to which looking at all pairs is faster than keeping them in order."""


@njit
def slot_of(pairs, pair):
    """The slot of a pair, or the empty one where it would be."""
    # Fibonacci hashing: the upper bits of the product are well mixed.
    mask = np.int64(pairs.shape[0] - 1)
    hashed = np.uint64(pair) * np.uint64(0x9E3779B97F4A7C15)
    slot = np.int64(hashed >> np.uint64(32)) & mask
    while pairs[slot] != pair and pairs[slot] != -1:
        slot = (slot + 1) & mask
    return slot


def fill_table(known, pairs, ranks):
    """Put the pairs `known[rank]` into an empty table; -1 is no pair, and the last of equal ones counts."""
    operands = [number for array in (known, pairs, ranks) for number in array_operands(array)]
    fill_table_operation(np.array(operands, np.int64))


@operation
def fill_table_operation(operands, begin, end):
    """known, pairs, ranks (2 each)."""
    known, pairs, ranks = int64_1d(operands, 0), int64_1d(operands, 2), int32_1d(operands, 4)
    for rank in range(known.shape[0]):
        if known[rank] >= 0:
            slot = slot_of(pairs, known[rank])
            pairs[slot] = known[rank]
            ranks[slot] = rank


@njit
def rank_of(pairs, ranks, left, right):
    """The rank of two neighbours, NEVER if they are not merged."""
    pair = (np.int64(left) << 32) | np.int64(right)
    slot = slot_of(pairs, pair)
    return np.int32(ranks[slot]) if pairs[slot] == pair else np.int32(NEVER)


def merge_words_reference(symbols, starts, pairs, ranks, merged, places, counts):
    """Merge each word `symbols[starts[w]:starts[w + 1]]`, lowest rank first and leftmost among equals, in place.

    `symbols` (N,) int32, `starts` (W + 1,) int64. Word w leaves `counts[w]` symbols at its start; `places`
    (N,) int32 says for each at which symbol of the word it begins. Source: Sennrich et al. 2016, arXiv:1508.07909.
    """
    known = {int(pair): int(rank) for pair, rank in zip(pairs, ranks, strict=True) if pair >= 0}
    for w in range(len(starts) - 1):
        word = [(int(symbol), place) for place, symbol in enumerate(symbols[starts[w] : starts[w + 1]])]
        while True:
            found = [known.get(left << 32 | right) for (left, _), (right, _) in pairwise(word)]
            best = min((rank for rank in found if rank is not None), default=None)
            if best is None:
                break
            at = found.index(best)
            word[at : at + 2] = [(int(merged[best]), word[at][1])]
        counts[w] = len(word)
        for place, (symbol, start) in enumerate(word):
            symbols[starts[w] + place] = symbol
            places[starts[w] + place] = start


def merge_words(symbols, starts, pairs, ranks, merged, places, counts):
    """What `merge_words_reference` does, in O(n log n) for a word of n symbols."""
    longest = int(np.diff(starts).max(initial=0))
    links = np.empty(3 * longest, np.int32)
    # Every merge adds at most two pairs to those at the beginning.
    heap = np.empty(3 * longest if longest > SHORT else 0, np.int64)
    arrays = (symbols, starts, pairs, ranks, merged, places, counts, links, heap)
    operands = [number for array in arrays for number in array_operands(array)]
    merge_words_operation(np.array(operands, np.int64), 0, len(starts) - 1)


@operation
def merge_words_operation(operands, begin, end):
    """symbols, starts, pairs, ranks, merged, places, counts, links (3 * longest word), heap (2 each)."""
    symbols, starts, pairs = int32_1d(operands, 0), int64_1d(operands, 2), int64_1d(operands, 4)
    ranks, merged, places = int32_1d(operands, 6), int32_1d(operands, 8), int32_1d(operands, 10)
    counts, links, heap = int64_1d(operands, 12), int32_1d(operands, 14), int64_1d(operands, 16)
    longest = links.shape[0] // 3
    waiting, following, before = links[:longest], links[longest : 2 * longest], links[2 * longest :]
    for w in range(begin, end):
        word = symbols[starts[w] : starts[w + 1]]
        begins = places[starts[w] : starts[w + 1]]
        if word.shape[0] <= SHORT:
            counts[w] = merge_short(word, pairs, ranks, merged, begins, waiting)
        else:
            counts[w] = merge_long(word, pairs, ranks, merged, begins, waiting, following, before, heap)


@njit
def merge_short(word, pairs, ranks, merged, begins, waiting):
    """One word by looking at all its pairs for each merge; `waiting` takes their ranks."""
    length = word.shape[0]
    for place in range(length):
        begins[place] = place
    for place in range(length - 1):
        waiting[place] = rank_of(pairs, ranks, word[place], word[place + 1])
    while length > 1:
        at = 0
        for place in range(1, length - 1):
            if waiting[place] < waiting[at]:
                at = place
        rank = waiting[at]
        if rank == NEVER:
            break
        word[at] = merged[rank]
        for place in range(at + 1, length - 1):
            word[place] = word[place + 1]
            begins[place] = begins[place + 1]
            waiting[place - 1] = waiting[place]
        length -= 1
        if at > 0:
            waiting[at - 1] = rank_of(pairs, ranks, word[at - 1], word[at])
        if at < length - 1:
            waiting[at] = rank_of(pairs, ranks, word[at], word[at + 1])
    return length


@njit
def push(heap, size, entry):
    """Add an entry to a heap of `size` entries, smallest first."""
    place = size
    while place > 0 and heap[(place - 1) >> 1] > entry:
        heap[place] = heap[(place - 1) >> 1]
        place = (place - 1) >> 1
    heap[place] = entry


@njit
def pop(heap, size):
    """Take the smallest entry out of a heap of `size` entries."""
    smallest = heap[0]
    last = heap[size - 1]
    place = 0
    while 2 * place + 1 < size - 1:
        child = 2 * place + 1
        if child + 1 < size - 1 and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= last:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = last
    return smallest


@njit
def merge_long(word, pairs, ranks, merged, begins, waiting, following, before, heap):
    """One word with its pairs in a heap, as `rank << 32 | place`; symbols are a doubly linked list.

    `waiting[place]` is the rank of the pair that begins there now: an entry with another rank is out of date.
    """
    length = word.shape[0]
    size = 0
    for place in range(length):
        following[place] = place + 1
        before[place] = place - 1
        waiting[place] = NEVER
        if place + 1 < length:
            waiting[place] = rank_of(pairs, ranks, word[place], word[place + 1])
            if waiting[place] != NEVER:
                push(heap, size, (np.int64(waiting[place]) << 32) | place)
                size += 1
    while size > 0:
        entry = pop(heap, size)
        size -= 1
        rank = np.int32(entry >> 32)
        place = entry & 0xFFFFFFFF
        if waiting[place] != rank:
            continue
        word[place] = merged[rank]
        gone = following[place]
        after = following[gone]
        waiting[gone] = NEVER
        waiting[place] = NEVER
        following[place] = after
        if after < length:
            before[after] = place
            waiting[place] = rank_of(pairs, ranks, word[place], word[after])
            if waiting[place] != NEVER:
                push(heap, size, (np.int64(waiting[place]) << 32) | place)
                size += 1
        left = before[place]
        if left >= 0:
            waiting[left] = rank_of(pairs, ranks, word[left], word[place])
            if waiting[left] != NEVER:
                push(heap, size, (np.int64(waiting[left]) << 32) | left)
                size += 1
    count = 0
    place = np.int64(0)
    while place < length:
        word[count] = word[place]
        begins[count] = place
        count += 1
        place = np.int64(following[place])
    return count
