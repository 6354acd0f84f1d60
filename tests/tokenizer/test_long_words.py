"""Long words and much text: the kernel takes over, and nothing changes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers

from tinylm.tokenizer import Tokenizer, bpe

Published = Callable[[str], Any]


def fresh(published: Published, name: str) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """A tokenizer that remembers nothing."""
    library = published(name).library
    return Tokenizer.from_json(library.to_str()), library


@pytest.mark.parametrize("enough", [(1, 1), (2**60, 2**60)], ids=["kernel", "Python"])
@pytest.mark.parametrize("name", ["gpt2", "kl3m-002-170m", "kl3m-004-char-4k-cased", "stories260k"])
def test_kernel_and_python_give_the_same(
    name: str,
    enough: tuple[int, int],
    published: Published,
    texts: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bpe, "ENOUGH", dict.fromkeys(bpe.ENOUGH, enough))
    ours, library = fresh(published, name)
    text = texts["scotus_opinion"][:3_000] + "é日本😀\x00" * 3
    expected = library.encode(text)
    encoding = ours.encode_with_offsets(text)
    assert ours.encode(text) == expected.ids
    assert (encoding.ids, encoding.tokens, encoding.offsets) == (
        expected.ids,
        expected.tokens,
        expected.offsets,
    )


def multi_word(gpt2: tokenizers.Tokenizer) -> str:
    """The later kl3m form, made of GPT-2's merges: no words, a whole text is one."""
    document = json.loads(gpt2.to_str())
    vocab = document["model"]["vocab"]
    missing = [f"<0x{byte:02X}>" for byte in range(256)]
    document["model"] |= {
        "byte_fallback": True,
        "vocab": vocab | {t: 60_000 + n for n, t in enumerate(missing)},
    }
    document["added_tokens"] = []
    document["pre_tokenizer"] = None
    document["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    return json.dumps(document)


def test_a_whole_text_as_one_word(published: Published, texts: dict[str, str]) -> None:
    text = multi_word(published("gpt2").library)
    ours, library = Tokenizer.from_json(text), tokenizers.Tokenizer.from_str(text)
    for sample in (texts["us_constitution"], "a" * 30_000, "Under this Agreement é日本\n" * 40, "abc"):
        expected = library.encode(sample)
        assert ours.encode(sample) == expected.ids
        assert ours.decode(expected.ids) == library.decode(expected.ids) == sample
    offsets = ours.encode_with_offsets(texts["us_constitution"]).offsets
    assert offsets == library.encode(texts["us_constitution"]).offsets


@pytest.mark.parametrize("name", ["gpt2", "stories260k"])
def test_a_megabyte_of_one_character_does_not_hang(name: str, published: Published) -> None:
    ours, _ = fresh(published, name)
    for unit in ("a", " ", "ab"):
        text = unit * (1_000_000 // len(unit))
        ids = ours.encode(text)
        assert ours.decode(ids) == text
    choose = random.Random(4)
    noise = "".join(choose.choices("abcdefghij", k=200_000))
    assert ours.decode(ours.encode(noise)) == noise


def test_the_memory_of_words_is_bounded(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinylm.tokenizer import tokenizer as module

    monkeypatch.setattr(module, "MOST_KEPT", 100)
    for name in ("gpt2", "kl3m-002-170m"):
        ours, library = fresh(published, name)
        choose = random.Random(6)
        for _ in range(60):
            text = " ".join(
                "".join(choose.choices("abcdefg", k=choose.choice((3, 4, 200)))) for _ in range(20)
            )
            assert ours.encode(text) == library.encode(text).ids
        kept = {**ours._words, **ours._parts}
        assert len(ours._words) <= 200
        assert max(map(len, ours._words)) <= module.LONGEST_KEPT
        assert all(isinstance(ids, tuple) for ids in kept.values())
