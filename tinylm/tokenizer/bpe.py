"""Byte pair encoding: a word becomes symbols, and the pair of neighbours learnt first is merged, again and again.

Example, with the merges `l o`, `lo w`, `e r`: `lower` is `l o w e r`, then `lo w e r`, `low e r`, `low er`.
Source: Sennrich, Haddow and Birch 2016, arXiv:1508.07909.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from itertools import accumulate, pairwise
from operator import add, itemgetter
from typing import Any

from tinylm.errors import TokenizerError

from .byte_alphabet import ALPHABET, to_alphabet
from .fields import Fields, show
from .merge_table import MergeTable

HIGHEST_ID = 2**31 - 1
NEVER = 1 << 62
"""The rank of a pair that is not merged."""
LOWER_HALF = 0 if sys.byteorder == "little" else 1
"""Which of two 32-bit numbers in memory is the lower half of a 64-bit one."""

Ids = tuple[int, ...]

ENOUGH = {"kernel": (200, 5_000), "numba": (3_000, 150_000), "nothing": (6_000, 1_000_000)}
"""Characters of one word, and of all words, from which the kernel is used, by what is loaded already."""


class BytePairEncoding:
    """The model of a tokenizer.json: words to ids."""

    def __init__(self, fields: Fields) -> None:
        kind = fields.text("type", "BPE")
        if kind != "BPE":
            raise fields.unsupported("model", ["BPE"])
        for key in ("continuing_subword_prefix", "end_of_word_suffix"):
            if fields.text(key, ""):
                raise TokenizerError(
                    f"{fields.where}.{key} is {show(fields.values[key])}; only empty is supported"
                )
        if fields.values.get("dropout"):
            raise TokenizerError(
                f"{fields.where}.dropout is {show(fields.values['dropout'])}; random merges are not supported"
            )
        self.vocab, self.tokens = read_vocab(fields)
        self._ranks, self._merged = read_merges(fields, self.vocab)
        self._ignore_merges = fields.flag("ignore_merges", False)
        self._fuse_unknown = fields.flag("fuse_unk", False)
        unknown = fields.text("unk_token", "")
        self._unknown = self.vocab.get(unknown) if "unk_token" in fields.values else None
        self._unknown_name = unknown if fields.values.get("unk_token") is not None else None
        fallback = [self.vocab.get(f"<0x{byte:02X}>") for byte in range(256)]
        self._fallback = fallback if fields.flag("byte_fallback", False) else [None] * 256
        self._merge_table: MergeTable | None = None
        self._byte_ids = [self.vocab.get(character) for character in ALPHABET]

    def encode(self, words: Iterable[str], as_bytes: bool) -> dict[str, Ids]:
        """The ids of each word; `as_bytes` words are spelled in the byte-level alphabet first."""
        found: dict[str, Ids] = {}
        spelled: list[str] = []
        for word in words:
            id = self._whole(word, as_bytes)
            if id is None:
                spelled.append(word)
            else:
                found[word] = (id,)
        if self._pays_for_kernel(spelled):
            merged = self._table().merge([self._symbols(word, as_bytes) for word in spelled])
            found.update((word, tuple(symbols)) for word, (symbols, _) in zip(spelled, merged, strict=True))
            return found
        for word in spelled:
            symbols = self._symbols(word, as_bytes)
            merge(symbols, self._ranks, self._merged)
            found[word] = tuple(symbols)
        return found

    def encode_with_lengths(self, word: str) -> list[tuple[int, int]]:
        """The ids of one spelled word, each with the number of its UTF-8 bytes that it covers."""
        id = self._whole(word, False)
        if id is not None:
            return [(id, len(word.encode()))]
        symbols, lengths = self._symbols_with_lengths(word)
        if self._pays_for_kernel([word]):
            [(symbols, starts)] = self._table().merge([symbols])
        else:
            starts = list(range(len(symbols)))
            merge(symbols, self._ranks, self._merged, starts)
        ends = [0, *accumulate(lengths)]
        places = [ends[start] for start in starts] + ends[-1:]
        return [(id, end - start) for id, (start, end) in zip(symbols, pairwise(places), strict=True)]

    def _pays_for_kernel(self, words: list[str]) -> bool:
        """Whether there is enough to merge for the time that loading the kernel takes."""
        loaded = "kernel" if self._merge_table else "numba" if "numba" in sys.modules else "nothing"
        lengths = [*map(len, words)]
        one, all_words = ENOUGH[loaded]
        return max(lengths, default=0) >= one or sum(lengths) >= all_words

    def _table(self) -> MergeTable:
        if self._merge_table is None:
            self._merge_table = MergeTable(self._ranks, self._merged)
        return self._merge_table

    def _whole(self, word: str, as_bytes: bool) -> int | None:
        """The id of a word that is taken as it is because merges are to be ignored."""
        if not self._ignore_merges:
            return None
        return self.vocab.get(to_alphabet(word) if as_bytes else word)

    def _symbols(self, word: str, as_bytes: bool) -> list[int]:
        """The ids before merging."""
        if as_bytes:
            ids = [*map(self._byte_ids.__getitem__, word.encode())]
            if None not in ids:
                return ids  # type: ignore[return-value]
            word = to_alphabet(word)
        ids = [*map(self.vocab.get, word)]
        if None not in ids:
            return ids  # type: ignore[return-value]
        return self._symbols_with_lengths(word)[0]

    def _symbols_with_lengths(self, word: str) -> tuple[list[int], list[int]]:
        """The ids before merging, with the number of UTF-8 bytes of each.

        A character that is no token becomes its bytes where `byte_fallback` has tokens for them, else the
        unknown token, else nothing. As in the library, an unknown token is written only when the next
        character is a token or unknown too: bytes overtake it.
        """
        ids: list[int] = []
        lengths: list[int] = []
        waiting = 0
        for character in word:
            length = len(character.encode())
            id = self.vocab.get(character)
            if id is not None:
                if waiting:
                    ids.append(self._unknown_id())
                    lengths.append(waiting)
                    waiting = 0
                ids.append(id)
                lengths.append(length)
                continue
            by_byte = [self._fallback[byte] for byte in character.encode()]
            if None not in by_byte:
                ids += by_byte  # type: ignore[arg-type]
                lengths += [1] * length
            elif self._unknown_name is not None:
                if waiting and not self._fuse_unknown:
                    ids.append(self._unknown_id())
                    lengths.append(waiting)
                    waiting = 0
                waiting += length
        if waiting:
            ids.append(self._unknown_id())
            lengths.append(waiting)
        return ids, lengths

    def _unknown_id(self) -> int:
        if self._unknown is None:
            raise TokenizerError(f"the unknown token {show(self._unknown_name)} is not in the vocabulary")
        return self._unknown


def merge(
    symbols: list[int], ranks: dict[int, int], merged: list[int], starts: list[int] | None = None
) -> None:
    """Merge the pairs of a word in place, lowest rank first, leftmost first among equals.

    `ranks` knows a pair as `left << 32 | right`; `merged` gives the symbol that a rank makes. `starts` loses
    an entry wherever `symbols` does. Quadratic in the length of the word: for short ones.
    """
    rank_of = ranks.get
    pairs = [rank_of(left << 32 | right, NEVER) for left, right in pairwise(symbols)]
    while pairs:
        rank = min(pairs)
        if rank == NEVER:
            break
        place = pairs.index(rank)
        symbol = symbols[place] = merged[rank]
        del symbols[place + 1], pairs[place]
        if starts is not None:
            del starts[place + 1]
        if place:
            pairs[place - 1] = rank_of(symbols[place - 1] << 32 | symbol, NEVER)
        if place < len(pairs):
            pairs[place] = rank_of(symbol << 32 | symbols[place + 1], NEVER)


def read_vocab(fields: Fields) -> tuple[dict[str, int], dict[int, str]]:
    """The ids of the tokens and the tokens of the ids, checked."""
    vocab: dict[str, Any] = fields.inner("vocab").values
    ids = vocab.values()
    if set(map(type, ids)) - {int} or not 0 <= min(ids, default=0) <= max(ids, default=0) <= HIGHEST_ID:
        for token, id in vocab.items():
            if type(id) is not int or not 0 <= id <= HIGHEST_ID:
                raise TokenizerError(
                    f"{fields.where}.vocab[{show(token)}] is {show(id)}; it must be an integer from 0 to {HIGHEST_ID}"
                )
    tokens = dict(zip(ids, vocab, strict=True))
    if len(tokens) < len(vocab):
        one, other = next((token, tokens[id]) for token, id in vocab.items() if tokens[id] != token)
        raise TokenizerError(
            f"{fields.where}.vocab gives the id {vocab[one]} to both {show(one)} and {show(other)}"
        )
    return vocab, tokens


def read_merges(fields: Fields, vocab: dict[str, int]) -> tuple[dict[int, int], list[int]]:
    """The rank of each pair, `left << 32 | right`, and the symbol that each rank makes."""
    entries: list[Any] = fields.entries("merges")
    kinds = set(map(type, entries))
    if not kinds <= {str} and not kinds <= {list}:
        raise TokenizerError(f"{fields.where}.merges must hold only strings, or only pairs of strings")
    # A quarter of a million merges: each step is one call for all of them.
    try:
        if kinds == {str}:
            entries, lefts, rights = split_merges(entries)
        else:
            if set(map(len, entries)) - {2}:
                raise ValueError
            lefts, rights = [*map(itemgetter(0), entries)], [*map(itemgetter(1), entries)]
        merged = [*map(vocab.__getitem__, map(add, lefts, rights))]
        halves = array("i", bytes(8 * len(merged)))
        halves[1 - LOWER_HALF :: 2] = array("i", [*map(vocab.__getitem__, lefts)])
        halves[LOWER_HALF::2] = array("i", [*map(vocab.__getitem__, rights)])
        pairs = memoryview(halves).cast("B").cast("q").tolist()
        return dict(zip(pairs, range(len(merged)), strict=True)), merged
    except (KeyError, TypeError, ValueError):
        raise wrong_merge(fields, entries, vocab) from None


def split_merges(entries: list[str]) -> tuple[list[str], list[str], list[str]]:
    """(merges without comments, their left tokens, their right ones). Raises ValueError where one is not `a b`."""
    joined = " \n ".join(entries)
    if "#version" in joined:
        entries = [entry for entry in entries if not entry.startswith("#version")]
        joined = " \n ".join(entries)
    between = max(0, len(entries) - 1)
    if joined.count("\n") == between:
        tokens = joined.split(" ") if entries else []
        if len(tokens) == 2 * len(entries) + between and tokens[2::3].count("\n") == between:
            return entries, tokens[::3], tokens[1::3]
    pairs = [entry.split(" ") for entry in entries]  # one of them has a line end in it, or is wrong
    return entries, [left for left, _ in pairs], [right for _, right in pairs]


def wrong_merge(fields: Fields, entries: list[Any], vocab: dict[str, int]) -> TokenizerError:
    """The error that names the first merge that makes no sense."""
    for place, entry in enumerate(entries):
        where = f"{fields.where}.merges[{place}] is {show(entry)}"
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if len(pair) != 2 or not all(type(token) is str for token in pair):
            return TokenizerError(f"{where}; it must be two tokens, as 'a b' or ['a', 'b']")
        for token in (*pair, "".join(pair)):
            if token not in vocab:
                return TokenizerError(f"{where}, but {show(token)} is not in the vocabulary")
    raise AssertionError("no merge is wrong")
