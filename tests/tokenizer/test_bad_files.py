"""tokenizer.json files that are wrong, hostile, or use what is not supported: one clear error each."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import tokenizers

from tinylm.errors import TokenizerError
from tinylm.tokenizer import Tokenizer, patterns

GOOD: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [
        {
            "id": 4,
            "content": "<s>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ],
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": [["a", "b"]]},
}


def changed(**parts: Any) -> str:
    """The good file with parts replaced; `model__vocab` is the vocabulary of the model."""
    document = copy.deepcopy(GOOD)
    for name, value in parts.items():
        *path, last = name.split("__")
        target = document
        for step in path:
            target = target[step]
        target[last] = value
    return json.dumps(document)


def without(*path: str) -> str:
    document = copy.deepcopy(GOOD)
    target = document
    for step in path[:-1]:
        target = target[step]
    del target[path[-1]]
    return json.dumps(document)


def added(**fields: Any) -> str:
    return changed(added_tokens=[GOOD["added_tokens"][0] | fields])


def special_token(ids: list[Any], tokens: list[Any]) -> dict[str, Any]:
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"x": {"id": "x", "ids": ids, "tokens": tokens}},
    }


WRONG: dict[str, tuple[str, str]] = {
    "no JSON": ("{", r"tokenizer\.json is not JSON: Expecting property name"),
    "no object": ("[1]", r"tokenizer\.json must be an object, but is \[1\]"),
    "nested without end": ("[" * 100_000, r"tokenizer\.json is not JSON"),
    "half a surrogate pair": (r'{"a": "\ud800"}', r"tokenizer\.json holds U\+D800, half of a surrogate pair"),
    "another version": (changed(version="2.0"), r"version is '2\.0'; only '1\.0' is known"),
    "no model": (without("model"), r"tokenizer\.json\.model must be an object, but is None"),
    "another model": (
        changed(model__type="Unigram"),
        r"the model 'Unigram' is not supported; supported are BPE",
    ),
    "no vocabulary": (without("model", "vocab"), r"model\.vocab must be an object"),
    "no merges": (without("model", "merges"), r"model\.merges is missing; it must be a list"),
    "an id that is no integer": (
        changed(model__vocab={"a": 1.5}),
        r"model\.vocab\['a'\] is 1\.5; it must be an integer",
    ),
    "an id that is true": (changed(model__vocab={"a": True}), r"model\.vocab\['a'\] is True"),
    "a negative id": (
        changed(model__vocab={"a": -1}),
        r"model\.vocab\['a'\] is -1; it must be an integer from 0",
    ),
    "an enormous id": (changed(model__vocab={"a": 2**31}), r"model\.vocab\['a'\] is 2147483648"),
    "an id twice": (changed(model__vocab={"a": 0, "b": 0}), r"the id 0 to both 'a' and 'b'"),
    "an unknown token in a merge": (
        changed(model__merges=["a x"]),
        r"merges\[0\] is 'a x', but 'x' is not in the vocab",
    ),
    "an unknown result of a merge": (
        changed(model__merges=[["a", "b"], ["b", "a"]]),
        r"merges\[1\] .* but 'ba' is not",
    ),
    "a merge of one": (changed(model__merges=["ab"]), r"merges\[0\] is 'ab'; it must be two tokens"),
    "a merge of three": (
        changed(model__merges=["a b", "a b c"]),
        r"merges\[1\] is 'a b c'; it must be two tokens",
    ),
    "a merge of three beside one of one": (
        changed(model__merges=["a b c", "a"]),
        r"merges\[0\] is 'a b c'; it must be two tokens",
    ),
    "a line end in place of a merge": (
        changed(model__merges=["a b \n a b"]),
        r"merges\[0\] is 'a b \\n a b'; it must be two tokens",
    ),
    "a pair of three": (changed(model__merges=[["a", "b", "c"]]), r"merges\[0\] .* must be two tokens"),
    "a pair of numbers": (changed(model__merges=[[1, 2]]), r"merges\[0\] is \[1, 2\]; it must be two tokens"),
    "a pair of lists": (changed(model__merges=[[["a"], ["b"]]]), r"merges\[0\] .* must be two tokens"),
    "both spellings": (changed(model__merges=["a b", ["a", "b"]]), r"must hold only strings, or only pairs"),
    "merges of numbers": (changed(model__merges=[1]), r"must hold only strings, or only pairs"),
    "dropout": (changed(model__dropout=0.1), r"model\.dropout is 0\.1; random merges are not supported"),
    "a prefix": (
        changed(model__continuing_subword_prefix="##"),
        r"continuing_subword_prefix is '##'; only empty",
    ),
    "a suffix": (changed(model__end_of_word_suffix="</w>"), r"end_of_word_suffix is '</w>'; only empty"),
    "a flag that is none": (
        changed(model__byte_fallback="yes"),
        r"byte_fallback is 'yes'; it must be true or false",
    ),
    "added tokens that are no list": (changed(added_tokens={}), r"added_tokens is \{\}; it must be a list"),
    "an added token that is no object": (
        changed(added_tokens=["x"]),
        r"added_tokens\[0\] must be an object, but is 'x'",
    ),
    "an added token without an id": (
        changed(added_tokens=[{"content": "x"}]),
        r"added_tokens\[0\]\.id is missing",
    ),
    "an added token beyond the vocabulary": (
        added(id=50),
        r"'<s>', has the id 50; by the vocabulary it must be 4",
    ),
    "an added token with another's id": (
        added(id=1),
        r"has the id 1, which 'b' has; by the vocabulary it must be 4",
    ),
    "a token added under another id": (
        added(id=4, content="b"),
        r"'b', has the id 4; by the vocabulary it must be 1",
    ),
    "a token added twice": (
        changed(added_tokens=[GOOD["added_tokens"][0], GOOD["added_tokens"][0] | {"rstrip": True}]),
        r"added_tokens\[1\], '<s>', has been there before",
    ),
    "an added token that is normalized to nothing": (
        changed(
            normalizer={"type": "Strip", "strip_left": True, "strip_right": True},
            added_tokens=[{"id": 4, "content": " ", "normalized": True}],
        ),
        r"the added token ' ' is nothing once it is normalized",
    ),
    "an unknown normalizer": (
        changed(normalizer={"type": "BertNormalizer"}),
        r"normalizer: the normalizer 'BertNorm",
    ),
    "a normalizer without a type": (changed(normalizer={}), r"normalizer\.type is missing"),
    "an unknown one in a sequence": (
        changed(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Nmt"}]}),
        r"normalizer\.normalizers\[1\]: the normalizer 'Nmt' is not supported; supported are Lowercase, NFC",
    ),
    "an unknown pre-tokenizer": (
        changed(pre_tokenizer={"type": "BertPreTokenizer"}),
        r"pre-tokenizer 'BertPreTok",
    ),
    "an unknown post-processor": (
        changed(post_processor={"type": "BertProcessing"}),
        r"post-processor 'BertProc",
    ),
    "an unknown decoder": (
        changed(decoder={"type": "WordPiece"}),
        r"the decoder 'WordPiece' is not supported",
    ),
    "a missing field": (
        changed(pre_tokenizer={"type": "ByteLevel"}),
        r"pre_tokenizer\.add_prefix_space is missing",
    ),
    "an unknown behavior": (
        changed(
            pre_tokenizer={"type": "Split", "pattern": {"String": "a"}, "behavior": "Cut", "invert": False}
        ),
        r"pre_tokenizer\.behavior is 'Cut'; it must be one of Removed, Isolated",
    ),
    "a pattern of nothing": (
        changed(normalizer={"type": "Replace", "pattern": {"Glob": "*"}, "content": ""}),
        r"normalizer\.pattern holds Glob; it must hold String or Regex",
    ),
    "a contradiction": (
        changed(
            pre_tokenizer={
                "type": "Metaspace",
                "replacement": "_",
                "add_prefix_space": False,
                "prepend_scheme": "first",
            }
        ),
        r"prepend_scheme is 'first', but add_prefix_space is false",
    ),
    "a replacement of two": (
        changed(pre_tokenizer={"type": "Metaspace", "replacement": "__"}),
        r"replacement is '__'; it must be one character",
    ),
    "a template with an id of nothing": (
        changed(post_processor=special_token([77], ["x"])),
        r"special_tokens\.x\.ids holds 77, which is the id of no token",
    ),
    "a template with fewer tokens than ids": (
        changed(post_processor=special_token([1, 1], ["x"])),
        r"must hold as many tokens, all strings, as ids",
    ),
    "a template without its token": (
        changed(post_processor=special_token([1], ["x"]) | {"special_tokens": {}}),
        r"single\[0\] names 'x', which tokenizer\.json\.post_processor\.special_tokens does not hold",
    ),
    "a template for two texts": (
        changed(post_processor=special_token([], []) | {"single": [{"Sequence": {"id": "B", "type_id": 0}}]}),
        r"single\[0\] asks for a second text",
    ),
    "two templates": (
        changed(post_processor={"type": "Sequence", "processors": [special_token([1], ["x"])] * 2}),
        r"processors\[1\]: there is a template already",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(what: str) -> None:
    text, message = WRONG[what]
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_json(text)


def test_the_file_that_the_wrong_ones_are_made_of_is_good() -> None:
    ours = Tokenizer.from_json(json.dumps(GOOD))
    assert (
        ours.encode("abc<s>")
        == tokenizers.Tokenizer.from_str(json.dumps(GOOD)).encode("abc<s>").ids
        == [2, 3, 4]
    )


@pytest.mark.parametrize("key", ["version", "added_tokens"])
def test_keys_that_may_be_missing(key: str) -> None:
    assert Tokenizer.from_json(without(key)).encode("abc") == [2, 3]
    assert Tokenizer.from_json(without("model", "type")).encode("abc") == [2, 3]


@pytest.mark.parametrize("depth", [900, 100_000])
def test_parts_within_parts_without_end(depth: int) -> None:
    sequences = '{"type": "Sequence", "normalizers": [' * depth + "]}" * depth
    text = changed(normalizer="here").replace('"here"', sequences)
    with pytest.raises(TokenizerError, match=r"too many parts within parts|is not JSON"):
        Tokenizer.from_json(text)


def split(expression: str) -> str:
    behavior = {"behavior": "Isolated", "invert": False}
    return changed(pre_tokenizer={"type": "Split", "pattern": {"Regex": expression}, **behavior})


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("[a", "unterminated character set"),
        ("(", "missing \\)"),
        ("(?<a", "is not supported"),
        ("a{99999999}", "repetitions amount to more than"),
        ("(?:(a{1000}){1000}){1000}", "repetitions amount to more than"),
        ("a" * 200_000, "longer than"),
        ("(" * 5_000, "recursion"),
        ("\\", "bad escape"),
        ("\\p{Nonsense}", "unknown property"),
        ("\\Ka", "the escape \\\\K is not supported"),
        ("(?~a)", "the group \\(\\?~a.* is not supported"),
        ("(?P<a>b)", "the group \\(\\?P<.* is not supported"),
    ],
)
def test_expressions_that_are_not_understood(expression: str, message: str) -> None:
    with pytest.raises(
        TokenizerError, match=f"pre_tokenizer.pattern.Regex: the regular expression .*{message}"
    ):
        Tokenizer.from_json(split(expression))


def test_an_expression_that_runs_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "LONGEST_SEARCH", 0.2)
    ours = Tokenizer.from_json(split("(a|aa)+b"))
    with pytest.raises(TokenizerError, match="did not come to an end in 0 seconds on 60 characters"):
        ours.encode("a" * 60)


def test_the_unknown_token_may_be_missing_until_it_is_needed() -> None:
    text = changed(model__unk_token="<unk>")
    assert Tokenizer.from_json(text).encode("abc") == [2, 3]
    with pytest.raises(TokenizerError, match="the unknown token '<unk>' is not in the vocabulary"):
        Tokenizer.from_json(text).encode("x")


@pytest.mark.parametrize("text", [None, 5, b"bytes", ["a"]])
def test_what_is_no_text_is_refused(text: Any) -> None:
    with pytest.raises(TokenizerError, match=r"the text to encode is .*; it must be a string"):
        Tokenizer.from_json(json.dumps(GOOD)).encode(text)
