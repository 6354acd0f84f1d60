"""Published tokenizers give the ids, tokens, offsets and texts that the `tokenizers` library gives."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import tokenizers

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
NAMES = ("gpt2", "pythia-20b", "kl3m-002-170m", "kl3m-001-32k", "kl3m-004-char-4k-cased", "stories260k")
CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]

Published = Callable[[str], Any]


@pytest.mark.parametrize("name", NAMES)
def test_real_texts(name: str, published: Published, texts: dict[str, str]) -> None:
    ours, library = published(name)
    assert len(texts) == 3
    for text in texts.values():
        expected = library.encode(text)
        assert ours.encode(text) == expected.ids
        assert ours.encode(text) == expected.ids, "from memory"
        encoding = ours.encode_with_offsets(text)
        assert (encoding.ids, encoding.tokens, encoding.offsets) == (
            expected.ids,
            expected.tokens,
            expected.offsets,
        )
        assert ours.decode(expected.ids) == library.decode(expected.ids)


def test_every_code_point(published: Published) -> None:
    ours, library = published("gpt2")
    compare(ours, library, CHARACTERS, "{0}a")


@pytest.mark.parametrize("name", NAMES)
def test_code_points_beside_others(name: str, published: Published) -> None:
    # Of ideographs, Hangul syllables, private and unassigned planes, which are alike, one in a hundred.
    alike = re.compile(
        "[\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\ue000-\uf8ff\U00017000-\U00018cff\U00020000-\U0010ffff]"
    )
    chosen = [c for c in CHARACTERS if ord(c) % 100 == 0 or not alike.match(c)]
    compare(*published(name), chosen, " {0}a{0}{0}1")


def compare(ours: Any, library: Any, characters: list[str], form: str) -> None:
    remaining = iter(characters)
    while chunk := list(islice(remaining, 4096)):
        text = "".join(map(form.format, chunk))
        expected = library.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False) == expected, f"from U+{ord(chunk[0]):04X} on"
        assert ours.decode(expected) == library.decode(expected)


MARKS = "".join(map(chr, [*range(0x300, 0x370), 0x93C, 0x9BC, 0x1161, 0x11A8, 0x5C4, 0x7FD, 0x1E08F]))
RARE = "\xa0\u3000\x85\u2028\x1c\u200d\u0378\ue000\uac00\u1100\u212b\ufb01\u1f71\U0001d15e\U0002f800İΣſßéｱ"
SPACES = (" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n", "\u3000", "\xa0", " " * 40)
WORDS = (
    "Under",
    "this",
    "Agreement",
    "don't",
    "'LL",
    "2024",
    "10,000",
    "▁",
    "<0x0A>",
    "</s>",
    "null",
    "{",
    "é",
)


def strings(seed: int, added: list[str]) -> Any:
    """Endless strings rich in white space, added tokens, combining marks and rare characters."""
    choose = random.Random(seed)
    pieces: list[Callable[[], str]] = [
        lambda: choose.choice(SPACES),
        lambda: choose.choice(WORDS),
        lambda: choose.choice(added),
        lambda: "".join(choose.choices(f"{MARKS}aeouE", k=choose.randrange(1, 5))),
        lambda: choose.choice(RARE),
        lambda: choose.choice(CHARACTERS),
        lambda: str(choose.randrange(10 ** choose.randrange(1, 9))),
    ]
    while True:
        yield "".join(choose.choice(pieces)() for _ in range(choose.randrange(1, 12)))


@pytest.mark.parametrize("name", NAMES)
def test_ten_thousand_strings(name: str, published: Published) -> None:
    ours, library = published(name)
    added = [token.content for token in library.get_added_tokens_decoder().values()]
    cases = list(islice(strings(7, added), 10_000))
    expected = library.encode_batch(cases)
    written = library.decode_batch([encoding.ids for encoding in expected], skip_special_tokens=False)
    for text, wanted, decoded in zip(cases, expected, written, strict=True):
        assert ours.encode(text) == wanted.ids, text
        assert ours.decode(wanted.ids, skip_special_tokens=False) == decoded, text
    for text, wanted in zip(cases[:1000], expected, strict=False):
        encoding = ours.encode_with_offsets(text)
        assert (encoding.ids, encoding.tokens, encoding.offsets) == (
            wanted.ids,
            wanted.tokens,
            wanted.offsets,
        ), text


@pytest.mark.parametrize("name", NAMES)
def test_any_ids_decode_and_stream(name: str, published: Published) -> None:
    ours, library = published(name)
    choose = random.Random(11)
    known = [id for id in range(ours.vocab_size) if ours.id_to_token(id) is not None]
    for _ in range(500):
        ids = choose.choices(known, k=choose.randrange(30))
        for skip in (True, False):
            expected = library.decode(ids, skip_special_tokens=skip)
            stream = ours.stream(skip)
            pieces = [stream.push(id) for id in ids]
            assert ours.decode(ids, skip) == expected
            assert "".join([*pieces, stream.finish()]) == expected


@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_ids_are_the_library_s(name: str, published: Published) -> None:
    ours, library = published(name)
    assert ours.vocab_size == library.get_vocab_size()
    assert ours.special_ids == {
        id for id, token in library.get_added_tokens_decoder().items() if token.special
    }
    for token, id in library.get_vocab().items():
        assert ours.token_to_id(token) == id
    assert ours.token_to_id("no such token") is None
    assert ours.id_to_token(ours.vocab_size) is None


def test_half_a_surrogate_pair_is_refused_by_both(published: Published) -> None:
    ours, library = published("gpt2")
    for text in ("\ud800", "a\udfff b", "\ude00\ud83d", "\ud83d\ude00"):
        with pytest.raises(
            ValueError, match=r"character \d of the text is U\+D[8-F].., half of a surrogate pair"
        ):
            ours.encode(text)
        with pytest.raises(ValueError, match="half of a surrogate pair"):
            ours.encode_with_offsets(text)
        with pytest.raises((TypeError, UnicodeEncodeError)):
            library.encode(text)
        replaced = text.encode("utf-8", "replace").decode()
        assert ours.encode(replaced) == library.encode(replaced).ids


def test_the_published_ids_of_kl3m(published: Published) -> None:
    vectors = json.loads(
        (FIXTURES / "tokenizers" / "kl3m-001-32k" / "vectors.json").read_text(encoding="utf-8")
    )
    assert len(vectors["ids"]) == 147
    for name in ("kl3m-001-32k", "kl3m-002-170m"):
        assert published(name).ours.encode(vectors["text"]) == vectors["ids"]
        assert published(name).ours.decode(vectors["ids"]) == vectors["text"]
    ours = published("kl3m-002-170m").ours
    assert ours.encode("Under this") == [5549, 31673, 3341]
    assert ours.encode("Governing Law.\n") == [45, 781, 773, 31673, 8540, 20, 31674]


def test_truncation_and_padding_of_a_file_are_not_acted_on(published: Published) -> None:
    document = json.loads(published("gpt2").library.to_str())
    document["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    document["padding"] = {
        "strategy": {"Fixed": 32},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    text = json.dumps(document)
    ours = type(published("gpt2").ours).from_json(text)
    sentence = "one two three four five six"
    assert len(tokenizers.Tokenizer.from_str(text).encode(sentence).ids) == 32
    assert len(ours.encode(sentence)) == 6
