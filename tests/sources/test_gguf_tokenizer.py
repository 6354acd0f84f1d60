"""Tokenizers that went through GGUF metadata give the ids that they gave before.

The oracle is the `tokenizers` library: it trains a small vocabulary under the pre-tokenizer that a name of
`tokenizer.ggml.pre` stands for, and encodes with what came back.
"""

import heapq
import json
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tinylm.errors import CheckpointError
from tinylm.sources.gguf_import import import_gguf
from tinylm.sources.gguf_pretokenizers import PRE_TOKENIZERS

pytest.importorskip("gguf")
tokenizers = pytest.importorskip("tokenizers")

STORIES = Path(__file__).parents[1] / "fixtures" / "stories260k"

TEXTS = [
    "The contract of 2024-11-03 shall not be 1234567 dollars; it's void, they'd said.\n\n  Indented\tline",
    "I'LL go — naïve café, 日本語テスト, Привет мир! \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 ½ ² ٣٤",
    "a" * 40 + " !!! ... ``x'' <|end|> y<|end|>\r\n\r\n \u00a0 \u3000 z   ",
    "",
    " ",
    "e\u0301 \ufb01 \U0001f600\U0001f468\u200d\U0001f469 \x00\x7f",
    'print("x") # 3.14159 + $5.00 ~ ^^^ ||| <=>',
]

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def pre_tokenizer(name):
    """As the published tokenizer.json files of models with this `pre` have it."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if name == "gpt-2":
        return ByteLevel(add_prefix_space=False)
    if name == "smollm":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    digits = {"llama-bpe": r"\p{N}{1,3}", "qwen2": r"\p{N}"}[name]
    return Sequence(
        [Split(Regex(WORDS % digits), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def train(name):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizer(name)
    tokenizer.decoder = decoders.ByteLevel()
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, Path(__file__).read_text(encoding="utf-8")], trainer)
    return tokenizer


def metadata_of(tokenizer):
    """The metadata that llama.cpp's converter would write: tokens by id, their types, merges."""
    model = json.loads(tokenizer.to_str())
    special = {entry["id"] for entry in model["added_tokens"]}
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["model"]["merges"]]
    return {
        "tokens": tokens,
        "token_type": [3 if id_ in special else 1 for id_ in range(len(tokens))],
        "merges": merges,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_ids_come_back(tmp_path, write_tokenizer, name):
    original = train(name)
    file = write_tokenizer(**metadata_of(original), pre=name)
    imported = tokenizers.Tokenizer.from_file(str(import_gguf(file, tmp_path / "m") / "tokenizer.json"))
    for text in [*TEXTS, Path(__file__).read_text(encoding="utf-8")]:
        ids = original.encode(text).ids
        assert imported.encode(text, add_special_tokens=False).ids == ids
        assert imported.decode(ids, skip_special_tokens=False) == original.decode(
            ids, skip_special_tokens=False
        )
    assert imported.get_vocab() == original.get_vocab()


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_pre_tokenizer_loads_and_loses_nothing(tmp_path, write_tokenizer, name):
    file = write_tokenizer(**metadata_of(train("gpt-2")), pre=name)
    imported = tokenizers.Tokenizer.from_file(str(import_gguf(file, tmp_path / "m") / "tokenizer.json"))
    for text in TEXTS:
        text = text if name not in ("qwen2", "deepseek-r1-qwen") else text.replace("e\u0301", "")
        ids = imported.encode(text, add_special_tokens=False).ids
        assert imported.decode(ids, skip_special_tokens=False) == text


PIECES = {  # published examples of what each cuts: digits in threes, singly, after the punctuation
    "default": ("abc, 1234567 x=y", ["abc", ",", " ", "123", "456", "7", " x", "=", "y"]),
    "deepseek-coder": ("ab 12\n..", ["ab", " ", "1", "2", "\n", ".."]),
    "llama-bpe": ("abc 1234567,\n x", ["abc", " ", "123", "456", "7", ",\n", " x"]),
    "qwen2": ("abc 123", ["abc", " ", "1", "2", "3"]),
    "smollm": ("abc 123  d", ["abc", " ", "1", "2", "3", " ", " d"]),
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces_of_a_pre_tokenizer(tmp_path, write_tokenizer, name):
    text, expected = PIECES[name]
    file = write_tokenizer(**metadata_of(train("gpt-2")), pre=name)
    imported = tokenizers.Tokenizer.from_file(str(import_gguf(file, tmp_path / "m") / "tokenizer.json"))
    pieces = [text[begin:end] for _, (begin, end) in imported.pre_tokenizer.pre_tokenize_str(text)]
    assert pieces == expected


def test_bos_and_eos_are_added_where_the_file_says_so(tmp_path, write_tokenizer):
    def ids(number, **keys):
        folder = import_gguf(write_tokenizer(**metadata_of(train("gpt-2")), **keys), tmp_path / f"m{number}")
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        return tokenizer.encode("x").ids, tokenizer.encode("x", "y").ids

    x, y = (train("gpt-2").token_to_id(letter) for letter in "xy")
    assert ids(1, pre="gpt-2") == ([x], [x, y])
    assert ids(2, pre="gpt-2", add_bos_token=True) == ([0, x], [0, x, 0, y])
    assert ids(3, pre="gpt-2", add_bos_token=True, add_eos_token=True) == ([0, x, 1], [0, x, 1, 0, y, 1])
    assert ids(4, pre="llama-bpe") == ([0, x], [0, x, 0, y])  # llama.cpp adds it to these by itself
    assert ids(5, pre="llama-bpe", add_bos_token=False) == ([x], [x, y])


def test_the_config_keeps_special_tokens_and_chat_template(tmp_path, write_tokenizer):
    file = write_tokenizer(**metadata_of(train("gpt-2")), pre="gpt-2", chat_template="{{ messages }}")
    config = json.loads((import_gguf(file, tmp_path / "m") / "tokenizer_config.json").read_text())
    assert config["chat_template"] == "{{ messages }}"
    assert (config["bos_token"], config["eos_token"]) == ("<|begin|>", "<|end|>")
    assert "unk_token" not in config
    assert config["model_max_length"] == 128


def test_named_chat_templates_are_kept(tmp_path, small_model):
    keys = {"tokenizer.chat_template": "{{ a }}", "tokenizer.chat_template.tool_use": "{{ b }}"}
    small_model(metadata=keys).write(tmp_path / "m.gguf")
    config = json.loads(
        (import_gguf(tmp_path / "m.gguf", tmp_path / "m") / "tokenizer_config.json").read_text()
    )
    assert config["chat_template"] == [  # as transformers writes more than one
        {"name": "default", "template": "{{ a }}"},
        {"name": "tool_use", "template": "{{ b }}"},
    ]


def test_user_defined_tokens_are_added_but_not_special(tmp_path, write_tokenizer):
    tokens = ["<s>", "a", "b", "ab", "a b\n", "[PAD5]"]
    file = write_tokenizer(tokens, token_type=[3, 1, 1, 1, 4, 5], merges=["a b"], pre="gpt-2")
    folder = import_gguf(file, tmp_path / "m")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("aba b\nab<s>").ids == [3, 4, 3, 0]
    assert tokenizer.decode([3, 4, 0]) == "aba b\n"
    assert tokenizer.token_to_id("[PAD5]") is None


def stories_pieces():
    """The pieces and scores of stories260K's own tokenizer file, in SentencePiece's spelling."""
    data = (STORIES / "tok512.bin").read_bytes()
    position, pieces = 4, []
    while position < len(data):
        score, length = struct.unpack_from("<fi", data, position)
        pieces.append((data[position + 8 : position + 8 + length], score))
        position += 8 + length
    tokens, types = ["<unk>", "<s>", "</s>"], [2, 3, 3]
    for id_, (piece, _) in enumerate(pieces[3:], 3):
        tokens.append(f"<0x{id_ - 3:02X}>" if id_ < 259 else piece.decode().replace(" ", "▁"))
        types.append(6 if id_ < 259 else 1)
    return tokens, types, [score for _, score in pieces]


def import_stories(folder, write_tokenizer, **changes):
    tokens, types, scores = stories_pieces()
    keys = {"model": "llama", "pre": "default", "token_type": types, "scores": scores}
    keys |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, **changes}
    return import_gguf(write_tokenizer(tokens, **keys), folder)


def test_sentencepiece_gives_the_published_ids(tmp_path, write_tokenizer):
    folder = import_stories(tmp_path / "m", write_tokenizer)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    cases = json.loads((STORIES / "golden.json").read_text())["cases"]
    assert len(cases) > 3
    for case in cases:
        assert tokenizer.encode(case["prompt"]).ids == case["prompt_ids"]
        assert tokenizer.decode(case["prompt_ids"]) == case["prompt"]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"], config["unk_token"]) == ("<s>", "</s>", "<unk>")


def sentencepiece_ids(text, tokens, types, scores):
    """SentencePiece's own procedure: join the neighbours of the best score, the leftmost among equals."""
    normal = {token: id_ for id_, token in enumerate(tokens) if types[id_] == 1}
    symbols = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        joints = [
            (-scores[normal[left + right]], place)
            for place, (left, right) in enumerate(pairwise(symbols))
            if left + right in normal
        ]
        if not joints:
            break
        _, place = heapq.nsmallest(1, joints)[0]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    ids = []
    for symbol in symbols:
        if symbol in normal:
            ids.append(normal[symbol])
        else:
            ids += [3 + byte for byte in symbol.encode()]
    return ids


@pytest.fixture(scope="module")
def stories_tokenizer(tmp_path_factory):
    """The stories' tokenizer after import, once for all texts."""
    return {}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=st.sampled_from("abcdehilnorstuwy ,.TOI\n▁é日"), max_size=30))
@example(text="  two  spaces ")
@example(text="▁")
def test_sentencepiece_by_its_own_procedure(tmp_path, write_tokenizer, stories_tokenizer, text):
    if not stories_tokenizer:
        folder = import_stories(tmp_path / "m", write_tokenizer)
        stories_tokenizer["it"] = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = sentencepiece_ids(text, *stories_pieces())
    assert stories_tokenizer["it"].encode(text, add_special_tokens=False).ids == expected


def test_sentencepiece_without_a_space_before(tmp_path, write_tokenizer):
    folder = import_stories(tmp_path / "m", write_tokenizer, add_space_prefix=False, add_bos_token=False)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(" x y").ids) == " x y"
    assert tokenizer.encode("he").tokens == ["he"]


def test_sentencepiece_never_joins_control_tokens(tmp_path, write_tokenizer):
    tokens = ["<unk>", "<s>", "<", "s>", "<s", ">", "s", "▁"]
    file = write_tokenizer(tokens, model="llama", token_type=[2, 3, 1, 1, 1, 1, 1, 1], scores=[0.0] * 8)
    model = json.loads((import_gguf(file, tmp_path / "m") / "tokenizer.json").read_text())["model"]
    assert model["merges"] == ["s >", "< s"]  # equal scores: by their ids
    assert model["byte_fallback"] is False
    assert model["unk_token"] == "<unk>"


REFUSED = {
    "model": ({"model": "t5"}, r"tokenizer\.ggml\.model: 't5' is not supported; possible: 'gpt2'"),
    "pre": ({"pre": "tekken"}, r"tokenizer\.ggml\.pre: .*'tekken' is not known; possible: default, gpt-2"),
    "types": ({"token_type": [1]}, r"token_type: 1 entries for 3 tokens"),
    "types of text": ({"token_type": ["a", "b", "c"]}, r"token_type: is not an array of numbers"),
    "no merges": ({"merges": None}, r"merges: is missing"),
    "merges of numbers": ({"merges": [1, 2]}, r"merges: is missing or is not a list of strings"),
    "merge of a stranger": ({"merges": ["a c"]}, r"merges: 'a c' does not join two tokens"),
    "merge without result": ({"merges": ["b a"]}, r"merges: 'b a' does not join"),
    "merge of one": ({"merges": ["ab"]}, r"merges: 'ab' does not join"),
    "bos beyond": ({"bos_token_id": 3}, r"bos_token_id: 3 is not the id of one of the 3 tokens"),
    "eos is unused": (
        {"eos_token_id": 2, "token_type": [1, 1, 5], "merges": ["a b"]},
        r"merges|eos_token_id: 2",
    ),
    "no scores": ({"model": "llama"}, r"scores: 0 for 3 tokens"),
    "score is no number": ({"model": "llama", "scores": [0.0, float("nan"), 0.0]}, r"'b' is not a number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(tmp_path, write_tokenizer, case):
    changes, message = REFUSED[case]
    file = write_tokenizer(["a", "b", "ab"], **{"merges": ["a b"], "pre": "gpt-2", **changes})
    with pytest.raises(CheckpointError, match=message):
        import_gguf(file, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_token_twice_is_refused(tmp_path, write_tokenizer):
    with pytest.raises(CheckpointError, match=r"'a' is both token 0 and token 1"):
        import_gguf(write_tokenizer(["a", "a"], merges=["a b"]), tmp_path / "m")


def test_more_tokens_than_rows_is_refused(tmp_path, small_model):
    model = small_model(leave_out=("token_embd.weight",), tied=True)
    model.extra_tensors = {"token_embd.weight": np.ones((3, 64), np.float32)}
    model.write(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=r"5 tokens, but the embedding has 3 rows"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "m")


def test_a_very_long_piece_does_not_hang(tmp_path, write_tokenizer):
    file = write_tokenizer(["a" * 1_000_000, "a"], model="llama", scores=[0.0, 0.0])
    with pytest.raises(CheckpointError, match=r"token 0 has 1000000 characters, over 512"):
        import_gguf(file, tmp_path / "m")
