"""Decoding all at once and piece by piece: whole characters, and the same text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer

Published = Callable[[str], Any]

STREAMED = ("gpt2", "kl3m-002-170m", "stories260k")


def streamed(tokenizer: Tokenizer, ids: list[int], skip_special_tokens: bool = True) -> list[str]:
    stream = tokenizer.stream(skip_special_tokens)
    return [*map(stream.push, ids), stream.finish()]


@pytest.mark.parametrize("name", STREAMED)
@given(text=st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_a_stream_writes_whole_characters_as_soon_as_they_are_whole(
    name: str, text: str, published: Published
) -> None:
    ours = published(name).ours
    ids = ours.encode(text)
    pieces = streamed(ours, ids, skip_special_tokens=False)
    written = "".join(pieces)
    assert written == ours.decode(ids, skip_special_tokens=False)
    if "\ufffd" not in text:
        assert "\ufffd" not in written
    if name != "stories260k":
        # ByteLevel: what the first n ids make complete is written with the n-th.
        for count in range(len(ids) + 1):
            whole = ours.decode(ids[:count], skip_special_tokens=False).rstrip("\ufffd")
            assert "".join(pieces[:count]).rstrip("\ufffd") == whole


@pytest.mark.parametrize("name", STREAMED)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_ids_stream_as_the_library_decodes_them(
    name: str, data: st.DataObject, published: Published
) -> None:
    ours, library = published(name)
    ids = data.draw(st.lists(st.integers(0, 600 if name != "stories260k" else 511), max_size=30))
    assert "".join(streamed(ours, ids)) == library.decode(ids) == ours.decode(ids)


@given(text=st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_byte_level_text_survives(text: str, published: Published) -> None:
    for name in ("gpt2", "kl3m-002-170m"):
        ours = published(name).ours
        assert ours.decode(ours.encode(text), skip_special_tokens=False) == text


def test_a_character_of_four_tokens_comes_with_the_last(published: Published) -> None:
    ours = published("stories260k").ours
    ids = [3 + byte for byte in "🦊".encode()]
    dog = ours.encode("dog", add_special_tokens=False)
    pieces = streamed(ours, [*ids, *dog])
    assert pieces[:4] == [""] * 4
    assert "".join(pieces) == "🦊 dog"
    # A run of bytes is text only if all of it is: as the library has it, one wrong byte spoils the run.
    assert streamed(ours, [*ids, 3 + 0xFF]) == ["", "", "", "", "", "\ufffd" * 5]


def test_the_space_before_the_first_word_is_stripped_once(published: Published) -> None:
    ours = published("stories260k").ours
    ids = ours.encode("Once upon a time")
    assert ours.decode(ids) == "Once upon a time"
    assert streamed(ours, ids) == ["", "Once", " upon", " a", " time", ""]
    assert ours.decode(ids, skip_special_tokens=False) == "<s> Once upon a time"


def strip_both_ends(stop: int) -> Tokenizer:
    decoders = [{"type": "Fuse"}, {"type": "Strip", "content": "-", "start": 2, "stop": stop}]
    return Tokenizer.from_json(
        json.dumps(
            {
                "model": {"vocab": {"-": 0, "--": 1, "a": 2, "a-": 3}, "merges": []},
                "decoder": {"type": "Sequence", "decoders": decoders},
            }
        )
    )


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 0, 2, 1, 0], "-a-"),
        ([0, 3, 3], "a-a"),
        ([0, 0], ""),
        ([1, 1, 1], "--"),
        ([], ""),
        ([3, 1, 2], "a---a"),
    ],
)
def test_strip_at_both_ends_holds_back_what_may_have_to_go(ids: list[int], expected: str) -> None:
    ours = strip_both_ends(stop=2)
    assert ours.decode(ids) == expected
    assert "".join(streamed(ours, ids)) == expected
    stream = ours.stream()
    assert [stream.push(3), stream.push(0), stream.push(2)] == ["a", "", "--a"]


@pytest.mark.parametrize("id", [50_257, -1, 2**40])
def test_an_id_that_is_no_token_is_an_error(id: int, published: Published) -> None:
    ours = published("gpt2").ours
    with pytest.raises(ValueError, match=f"no token with the id {id}; the highest is 50256"):
        ours.decode([1, id])
    with pytest.raises(ValueError, match=f"no token with the id {id}"):
        ours.stream().push(id)


@pytest.mark.parametrize("ids", [5, [[1]], None])
def test_ids_that_are_no_integers_are_an_error(ids: Any, published: Published) -> None:
    with pytest.raises(ValueError, match="ids must be integers"):
        published("gpt2").ours.decode(ids)


def test_special_tokens_are_skipped_or_written(published: Published) -> None:
    ours, library = published("gpt2")
    ids = ours.encode("a<|endoftext|>b")
    assert 50256 in ids
    assert ours.decode(ids) == library.decode(ids) == "ab"
    assert ours.decode(ids, skip_special_tokens=False) == "a<|endoftext|>b"


def test_an_added_token_is_written_as_it_was_found() -> None:
    # With `normalized` it is looked for in its normalized form, and stands for that in a text.
    document = {
        "model": {"vocab": {"a": 0}, "merges": []},
        "normalizer": {"type": "Lowercase"},
        "added_tokens": [
            {"id": 1, "content": "QQ", "normalized": True},
            {"id": 2, "content": "RR", "normalized": False},
        ],
        "decoder": {"type": "Fuse"},
    }
    ours = Tokenizer.from_json(json.dumps(document))
    assert ours.encode("aQqqqRRrr") == [0, 1, 1, 2]
    assert ours.decode([0, 1, 2]) == "aqqRR"
    assert (ours.id_to_token(1), ours.token_to_id("QQ")) == ("QQ", 1)
