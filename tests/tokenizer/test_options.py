"""Small tokenizers that cross the options of tokenizer.json, against the `tokenizers` library."""

from __future__ import annotations

import json
import random
from itertools import product
from typing import Any

import pytest
import tokenizers

from tinylm.tokenizer import Tokenizer
from tinylm.tokenizer.byte_alphabet import ALPHABET

Json = dict[str, Any]

MERGES = [
    ["a", "b"],
    ["ab", "c"],
    ["b", "c"],
    ["▁", "a"],
    ["▁a", "b"],
    ["1", "2"],
    ["Ġ", "a"],
    ["Ã", "©"],
    [" ", " "],
]
CHARACTERS = [*"abcdeABCé▁ 12.,'\n", *ALPHABET]
FALLBACK = [f"<0x{byte:02X}>" for byte in range(256)]


def vocabulary(characters: list[str]) -> dict[str, int]:
    tokens = ["<unk>", *characters, *("".join(merge) for merge in MERGES)]
    return {token: id for id, token in enumerate(dict.fromkeys(tokens))}


MODELS: dict[str, Json] = {
    "unknown characters vanish": {"vocab": vocabulary(CHARACTERS)},
    "unknown token": {"vocab": vocabulary(CHARACTERS), "unk_token": "<unk>", "type": "BPE"},
    "fused unknown token": {"vocab": vocabulary(CHARACTERS), "unk_token": "<unk>", "fuse_unk": True},
    "bytes": {"vocab": vocabulary([*CHARACTERS, *FALLBACK]), "unk_token": "<unk>", "byte_fallback": True},
    "bytes but one": {
        "vocab": vocabulary([*CHARACTERS, *FALLBACK[:-64]]),
        "unk_token": "<unk>",
        "byte_fallback": True,
        "fuse_unk": True,
    },
    "whole words": {"vocab": vocabulary([*CHARACTERS, "cab", "Ġcab"]), "ignore_merges": True},
}

REPLACE_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
NORMALIZERS: dict[str, Json | None] = {
    "none": None,
    **{kind: {"type": kind} for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase")},
    "Prepend": {"type": "Prepend", "prepend": "▁"},
    "Replace a string": REPLACE_SPACE,
    "Replace by nothing": {"type": "Replace", "pattern": {"String": "ab"}, "content": ""},
    "Replace a pattern": {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": "$1"},
    "Strip left": {"type": "Strip", "strip_left": True, "strip_right": False},
    "Strip right": {"type": "Strip", "strip_left": False, "strip_right": True},
    "Llama": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, REPLACE_SPACE]},
    "Sequence": {
        "type": "Sequence",
        "normalizers": [{"type": "NFKD"}, {"type": "Lowercase"}, {"type": "NFC"}],
    },
    "empty Sequence": {"type": "Sequence", "normalizers": []},
}


def split(expression: str, behavior: str = "Isolated", invert: bool = False) -> Json:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": behavior, "invert": invert}


def byte_level(prefix: bool = False, **rest: bool) -> Json:
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, **rest}


def metaspace(**rest: Any) -> Json:
    return {"type": "Metaspace", "replacement": "▁", **rest}


def sequence(*parts: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": [*parts]}


BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
PRE_TOKENIZERS: dict[str, Json | None] = {
    "none": None,
    "ByteLevel": byte_level(),
    "ByteLevel prefix": byte_level(True),
    "ByteLevel whole": byte_level(use_regex=False),
    "ByteLevel whole prefix": byte_level(True, use_regex=False),
    **{
        f"Split {behavior} {invert}": split(r"\s+|[a-b]", behavior, invert)
        for behavior, invert in product(BEHAVIORS, (False, True))
    },
    "Split at a string": {
        "type": "Split",
        "pattern": {"String": "ab"},
        "behavior": "MergedWithNext",
        "invert": False,
    },
    "Split at groups": split("(a)(b)?"),
    "Split at nothing": split("c*", "MergedWithPrevious"),
    "Llama 3": sequence(
        split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        byte_level(use_regex=False),
    ),
    "SmolLM2": sequence({"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)),
    "DeepSeek": sequence(
        split(r"\p{N}{1,3}"), split("[一-龥]+"), split(r"[\p{L}\p{M}]+"), byte_level(use_regex=False)
    ),
    "Falcon": sequence(
        {"type": "Punctuation", "behavior": "Contiguous"},
        byte_level(),
        {"type": "Digits", "individual_digits": False},
        split("[0-9][0-9][0-9]"),
    ),
    "Digits": {"type": "Digits", "individual_digits": False},
    "Punctuation": {"type": "Punctuation"},
    "Whitespace": {"type": "Whitespace"},
    "Metaspace": metaspace(),
    "Metaspace first": metaspace(prepend_scheme="first"),
    "Metaspace never": metaspace(prepend_scheme="never", add_prefix_space=False),
    "Metaspace whole": metaspace(prepend_scheme="always", split=False),
    "Metaspace first, late": sequence(split(r"\d", "Removed"), metaspace(prepend_scheme="first", split=True)),
    "empty Sequence": sequence(),
}


def replace(pattern: Json, content: str) -> Json:
    return {"type": "Replace", "pattern": pattern, "content": content}


def strip(start: int, stop: int) -> Json:
    return {"type": "Strip", "content": " ", "start": start, "stop": stop}


def chain(*parts: Json) -> Json:
    return {"type": "Sequence", "decoders": [*parts]}


TO_SPACE = replace({"String": "▁"}, " ")
BYTES: Json = {"type": "ByteFallback"}
FUSE: Json = {"type": "Fuse"}
DECODERS: dict[str, Json | None] = {
    "none": None,
    "ByteLevel": byte_level(True),
    "ByteFallback": BYTES,
    "Fuse": FUSE,
    "Strip start of each": strip(2, 0),
    "Strip end of each": strip(0, 1),
    "Replace a pattern in each": replace({"Regex": r"[ab]+"}, "$1"),
    "Metaspace": metaspace(prepend_scheme="first"),
    "Metaspace never": metaspace(prepend_scheme="never"),
    "Llama": chain(TO_SPACE, BYTES, FUSE, strip(1, 0)),
    "Gemma": chain(TO_SPACE, BYTES, FUSE),
    "Replace a string in all": chain(BYTES, FUSE, replace({"String": "ab"}, "-")),
    "Replace a pattern in all": chain(FUSE, replace({"Regex": r"\s+$"}, "")),
    "Metaspace of all": chain(FUSE, metaspace()),
    "bytes of all": chain(FUSE, byte_level(), BYTES),
    "Sequence in Sequence": chain(chain(TO_SPACE), chain(BYTES, chain(FUSE))),
    "empty Sequence": chain(),
}


def token(id: int, content: str, **flags: bool) -> Json:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": id, "content": content} | dict.fromkeys(names, False) | flags


def document(model: Json, **parts: Any) -> Json:
    model = {"merges": MERGES, **model}
    return {"version": "1.0", "added_tokens": [], "model": model, **parts}


PIECES = [
    *(
        "a",
        "b",
        "ab",
        "abc",
        "cab",
        "c",
        "A",
        "AB",
        "é",
        "e\u0301",
        "\u0301",
        "\u0323",
        "ﬁ",
        "ß",
        "Σ",
        "½",
        "日",
        "😀",
    ),
    *(
        " ",
        "  ",
        "\n",
        "\t",
        "\xa0",
        "▁",
        "1",
        "12",
        "2",
        ".",
        "!",
        "'s",
        "<",
        "<s>",
        "<unk>",
        "x",
        "\u200d",
        "\u0378",
    ),
]


def agree(json_document: Json, seed: int, times: int = 25) -> None:
    """Everything that both can do, on strings of the pieces above."""
    text = json.dumps(json_document)
    ours, library = Tokenizer.from_json(text), tokenizers.Tokenizer.from_str(text)
    choose = random.Random(seed)
    known = [id for id in range(ours.vocab_size) if ours.id_to_token(id) is not None]
    for _ in range(times):
        string = "".join(choose.choices(PIECES, k=choose.randrange(12)))
        expected = library.encode(string)
        encoding = ours.encode_with_offsets(string)
        assert ours.encode(string) == expected.ids, string
        assert (encoding.ids, encoding.tokens) == (expected.ids, expected.tokens), string
        assert encoding.offsets == expected.offsets, string
        assert ours.encode(string, False) == library.encode(string, add_special_tokens=False).ids, string
        for ids in (expected.ids, choose.choices(known, k=choose.randrange(10))):
            for skip in (True, False):
                written = library.decode(ids, skip_special_tokens=skip)
                stream = ours.stream(skip)
                streamed = "".join([*map(stream.push, ids), stream.finish()])
                assert (ours.decode(ids, skip), streamed) == (written, written), [
                    library.id_to_token(id) for id in ids
                ]


@pytest.mark.parametrize("pre_tokenizer", PRE_TOKENIZERS)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_normalizers_and_pre_tokenizers(normalizer: str, pre_tokenizer: str) -> None:
    model = MODELS["bytes" if len(normalizer) % 2 else "unknown token"]
    parts = {"normalizer": NORMALIZERS[normalizer], "pre_tokenizer": PRE_TOKENIZERS[pre_tokenizer]}
    agree(document(model, **parts), seed=len(normalizer) + len(pre_tokenizer))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("model", MODELS)
def test_models_and_decoders(model: str, decoder: str) -> None:
    vocab: dict[str, int] = MODELS[model]["vocab"]
    parts = {
        "decoder": DECODERS[decoder],
        "pre_tokenizer": PRE_TOKENIZERS["ByteLevel" if len(decoder) % 2 else "none"],
        "added_tokens": [token(max(vocab.values()) + 1, "<s>", special=True)],
    }
    agree(document(MODELS[model], **parts), seed=len(model) + len(decoder))


A = {"Sequence": {"id": "A", "type_id": 0}}
BOS = {"SpecialToken": {"id": "bos", "type_id": 0}}
EOS = {"SpecialToken": {"id": "eos", "type_id": 0}}
SPECIALS = {
    "bos": {"id": "bos", "ids": [1], "tokens": ["a"]},
    "eos": {"id": "eos", "ids": [2, 3], "tokens": ["b", "c"]},
}


def template(*single: Json) -> Json:
    return {"type": "TemplateProcessing", "single": [*single], "pair": [*single], "special_tokens": SPECIALS}


def trim(prefix: bool, trims: bool = True) -> Json:
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trims}


POST_PROCESSORS: dict[str, Json] = {
    "trims": trim(False),
    "trims but the prefix": trim(True),
    "does not trim": trim(True, False),
    "begins": template(BOS, A),
    "ends": template(A, EOS),
    "begins and ends": template(BOS, A, EOS),
    "the text twice": template(A, EOS, A),
    "nothing": template(A),
    "Llama 3": {"type": "Sequence", "processors": [trim(True), template(BOS, A)]},
    "template, then trims": {"type": "Sequence", "processors": [template(BOS, A), trim(True)]},
    "empty Sequence": {"type": "Sequence", "processors": []},
}


@pytest.mark.parametrize("post_processor", POST_PROCESSORS)
@pytest.mark.parametrize("pre_tokenizer", ["none", "ByteLevel", "ByteLevel prefix", "Llama 3", "Metaspace"])
def test_post_processors(post_processor: str, pre_tokenizer: str) -> None:
    parts = {
        "post_processor": POST_PROCESSORS[post_processor],
        "pre_tokenizer": PRE_TOKENIZERS[pre_tokenizer],
    }
    agree(document(MODELS["unknown token"], **parts), seed=len(post_processor))


@pytest.mark.parametrize("flags", [*product((False, True), repeat=4)])
@pytest.mark.parametrize("normalizer", ["none", "Lowercase", "NFKC", "Llama"])
def test_added_tokens(flags: tuple[bool, ...], normalizer: str) -> None:
    names = ("single_word", "lstrip", "rstrip", "normalized")
    these = dict(zip(names, flags, strict=True))
    vocab = vocabulary(CHARACTERS)
    contents = [
        "<s>",
        "ab",
        "abc",
        "  ",
        "<",
        "1",
        "é1",
        "日",
        "b ",
        "AB" if normalizer != "Lowercase" else "xb",
    ]
    added = [
        token(len(vocab) + place, content, **these)
        for place, content in enumerate(c for c in contents if c not in vocab)
    ]
    added += [token(vocab[content], content, **these) for content in contents if content in vocab]
    for place in (1, 4):
        added[place] |= dict.fromkeys(names, False) | {"special": True}
    parts = {"normalizer": NORMALIZERS[normalizer], "pre_tokenizer": PRE_TOKENIZERS["ByteLevel"]}
    agree(
        document({"vocab": vocab, "unk_token": "<unk>"}, added_tokens=added, **parts),
        seed=sum(flags),
        times=60,
    )


@pytest.mark.parametrize("spelling", ["pairs", "strings", "version line", "line end"])
def test_both_spellings_of_merges(spelling: str) -> None:
    merges: list[Any] = [merge for merge in MERGES if merge != [" ", " "]]
    if spelling != "pairs":
        merges = [" ".join(merge) for merge in merges]
    if spelling == "version line":
        merges = ["#version: 0.2", *merges]
    vocab = vocabulary(CHARACTERS)
    if spelling == "line end":
        merges = ["\n \n", *merges, "a \n"]
        vocab |= {"\n\n": len(vocab), "a\n": len(vocab) + 1}
    agree(document({"vocab": vocab, "merges": merges}), seed=3)


def test_a_pair_that_is_merged_twice_counts_where_it_comes_last() -> None:
    merges = [["a", "b"], ["b", "c"], ["a", "b"]]
    both = document({"vocab": vocabulary(CHARACTERS), "merges": merges})
    agree(both, seed=1)
    ours = Tokenizer.from_json(json.dumps(both))
    assert [ours.id_to_token(id) for id in ours.encode("abc")] == ["a", "bc"]
