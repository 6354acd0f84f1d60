"""Text in, text out: on the bundled model, and on an engine that follows a script."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinylm
from tinylm.errors import ContextError, ParameterError, TinylmError
from tinylm.language_model import LanguageModel
from tinylm.tokenizer import Tokenizer

GOLDEN = json.loads(
    (Path(__file__).parent / "fixtures" / "stories260k" / "golden.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def stories() -> LanguageModel:
    return tinylm.load(threads=1)


def alphabet() -> dict[str, int]:
    """A byte-level vocabulary: the visible ASCII characters, the space, the line end, the bytes of a euro sign."""
    letters = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ", "â", "Ĥ", "¬"]
    return {letter: place for place, letter in enumerate(letters)}


def special(id: int, content: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": id, "content": content, **flags}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    vocab = alphabet()
    count = len(vocab)
    vocab["END"] = count
    document = {
        "version": "1.0",
        "added_tokens": [special(count + 1, "<bos>"), special(count + 2, "<eos>"), special(count + 3, "<turn>")],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }  # fmt: skip
    made = Tokenizer.from_json(json.dumps(document))
    made.bos_token, made.eos_token = "<bos>", "<eos>"
    return made


class ScriptedSequence:
    def __init__(self, ids: list[int] | None = None) -> None:
        self.ids = ids or []
        self.room = 0


class ScriptedEngine:
    """Gives the next token of a script the highest logit, by the prompt's last token; counts its work."""

    threads = 1

    def __init__(self, scripts: dict[int, list[int]], vocab_size: int, context_length: int = 64) -> None:
        self.scripts = scripts
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.prefilled: list[list[int]] = []
        self.batches: list[int] = []
        self.forks = 0
        self.failure: dict[int, Any] = {}

    def new_sequence(self) -> ScriptedSequence:
        return ScriptedSequence()

    def reserve(self, sequence: ScriptedSequence, length: int) -> None:
        assert length <= self.context_length
        sequence.room = length

    def fork(self, sequence: ScriptedSequence, room: int = 0) -> ScriptedSequence:
        self.forks += 1
        copy = ScriptedSequence(list(sequence.ids))
        copy.start, copy.room = sequence.start, room
        return copy

    def row(self, sequence: ScriptedSequence) -> np.ndarray:
        assert len(sequence.ids) <= sequence.room, "the room that was asked for is too small"
        script = self.scripts[sequence.ids[sequence.start - 1]]
        logits = np.zeros(self.vocab_size, np.float32)
        logits[script[len(sequence.ids) - sequence.start]] = 12
        return logits

    def prefill(self, sequence: ScriptedSequence, ids: list[int], progress: Any = None) -> np.ndarray:
        self.prefilled.append(list(ids))
        sequence.ids += ids
        sequence.start = len(sequence.ids)
        if progress is not None:
            progress(len(ids), len(ids))
        return self.row(sequence)

    def advance(self, sequences: list[ScriptedSequence], parts: list[list[int]]) -> list[np.ndarray]:
        self.batches.append(len(sequences))
        for sequence, part in zip(sequences, parts, strict=True):
            sequence.ids += part
        rows = [self.row(sequence)[None] for sequence in sequences]
        failure = self.failure.get(len(self.batches))
        if isinstance(failure, BaseException):
            raise failure
        if failure is not None:
            rows[failure][:] = np.nan
        return rows

    def logits(self, ids: list[int]) -> np.ndarray:
        return np.zeros((len(ids), self.vocab_size), np.float32)


EOS = "<eos>"


def scripted(tokenizer: Tokenizer, scripts: dict[str, list[str]], **config: Any) -> LanguageModel:
    """A model that answers a prompt, by its last character, with the pieces of a script."""
    ids = {
        tokenizer.encode(last)[-1]: [token for piece in pieces for token in tokenizer.encode(piece)]
        for last, pieces in scripts.items()
    }
    engine = ScriptedEngine(ids, tokenizer.vocab_size + 2, config.pop("context_length", 64))
    return LanguageModel(engine, tokenizer, config, config.pop("generation_config", None))  # type: ignore[arg-type]


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["prompt"][:20])
def test_greedy_ids_of_the_story_model(stories: LanguageModel, case: dict) -> None:
    completion = stories.generate(case["prompt"], max_new_tokens=len(case["greedy_ids"]), logprobs=True)
    assert completion.prompt_ids == case["prompt_ids"]
    assert completion.ids == case["greedy_ids"]
    logits = np.array(case["last_prompt_logits"], np.float64)
    exact = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert completion.logprobs is not None
    assert completion.logprobs[0] == pytest.approx(exact.max(), abs=1e-4)
    whole = stories.tokenizer.decode(completion.prompt_ids + completion.ids)
    assert whole == stories.tokenizer.decode(completion.prompt_ids) + completion.text


def test_a_stream_is_the_text_in_pieces(stories: LanguageModel) -> None:
    for given in ({}, {"temperature": 1.2, "seed": 11, "top_k": 0}):
        completion = stories.generate("Tom saw", max_new_tokens=50, **given)
        stream = stories.stream("Tom saw", max_new_tokens=50, **given)
        pieces = list(stream)
        assert "".join(pieces) == completion.text == str(completion) == stream.completion.text
        assert all(pieces)
        assert len(pieces) > 10
        assert stream.completion.ids == completion.ids
        assert stream.completion.finish_reason == completion.finish_reason


def test_a_seed_fixes_the_text(stories: LanguageModel) -> None:
    def ids(model: LanguageModel, **given: Any) -> list[int]:
        return model.generate("Once", max_new_tokens=40, temperature=1.0, top_k=0, **given).ids

    first = ids(stories, seed=5)
    assert ids(stories, seed=5) == first
    assert ids(stories, seed=6) != first
    three = tinylm.load(threads=3)
    assert ids(three, seed=5) == first, "the number of threads must not matter"
    drawn = stories.generate("Once", max_new_tokens=40, do_sample=True, top_k=0)
    assert drawn.seed is not None
    assert ids(stories, seed=drawn.seed) == drawn.ids, "the reported seed gives the text again"
    assert stories.generate("Once", max_new_tokens=2).seed is None


def test_a_batch_gives_what_each_prompt_gives_alone(stories: LanguageModel) -> None:
    prompts = ["Once upon a time", "The dog", "", [1, 403, 407], "Lily and Tom went to the"]
    given: dict[str, Any] = {"max_new_tokens": 30, "temperature": 0.9, "seed": 21, "num_return_sequences": 3}
    together = stories.generate_batch(prompts, batch_size=4, **given)
    assert [len(group) for group in together] == [3] * 5
    for prompt, group in zip(prompts, together, strict=True):
        alone = stories.generate_batch([prompt], batch_size=1, **given)[0]
        assert [completion.ids for completion in group] == [completion.ids for completion in alone]
        assert [completion.text for completion in group] == [completion.text for completion in alone]
        assert [completion.index for completion in group] == [0, 1, 2]
        assert {completion.seed for completion in group} == {21}
        single = stories.generate(prompt, max_new_tokens=30, temperature=0.9, seed=21)
        assert single.ids == group[0].ids
    assert len({tuple(completion.ids) for completion in together[0]}) > 1, "answers are drawn independently"
    drawn = stories.generate_batch(["Once", "Once"], max_new_tokens=3, do_sample=True)
    assert drawn[0][0].seed != drawn[1][0].seed


def test_answers_share_a_prefill_and_join_as_others_end(tokenizer: Tokenizer) -> None:
    lm = scripted(tokenizer, {"a": ["xy", EOS], "b": ["12345678"], "c": ["z", EOS]})
    groups = lm.generate_batch(["a", "b", "c"], batch_size=2, max_new_tokens=5)
    assert [(group[0].text, group[0].finish_reason) for group in groups] == [
        ("xy", "stop"),
        ("12345", "length"),
        ("z", "stop"),
    ]
    engine = lm.engine
    assert max(engine.batches) == 2
    assert sum(engine.batches) == 2 + 4 + 1, "an answer that has ended costs no more steps"
    lm = scripted(tokenizer, {"a": ["xyz", EOS]})
    group = lm.generate_batch(["aaa"], num_return_sequences=4, temperature=0.1)[0]
    assert [completion.text for completion in group] == ["xyz"] * 4
    assert (len(lm.engine.prefilled), lm.engine.forks) == (1, 3)
    assert group[0].timings.prefill_seconds > 0
    assert group[1].timings.prefill_seconds == 0


@pytest.mark.parametrize(
    ("pieces", "given", "text", "reason", "count"),
    [
        (["one two", EOS], {}, "one two", "stop", 8),
        (["one two"], {"max_new_tokens": 3}, "one", "length", 3),
        (["one\n\ntwo"], {"stop": "\n\n"}, "one", "stop", 5),
        (["one\n\ntwo"], {"stop_strings": ["zz", "e\n"]}, "on", "stop", 4),
        (["one stop", EOS], {"stop": ["stop!"]}, "one stop", "stop", 9),
        (["one stop"], {"stop": ["stop!"], "max_new_tokens": 8}, "one stop", "length", 8),
        (["xx<turn>yy"], {"stop": ["<turn>"]}, "xx", "stop", 3),
        (["xx<turn>yy"], {"stop": ["<turn>"], "skip_special_tokens": False}, "xx", "stop", 3),
        (["xx<turn>y", EOS], {}, "xxy", "stop", 5),
        (["xx<turn>y", EOS], {"skip_special_tokens": False}, "xx<turn>y<eos>", "stop", 5),
        (["5€", EOS], {}, "5€", "stop", 5),
        (["5€"], {"max_new_tokens": 2}, "5\ufffd", "length", 2),
        (["5€"], {"max_new_tokens": 3, "stop": "\ufffd"}, "5", "stop", 3),
        (["1", EOS, "2345"], {"eos_token_id": 3, "max_new_tokens": 4}, "123", "length", 4),
        (["1#345"], {"eos_token_id": [2, 9]}, "1", "stop", 2),
        (["1", EOS, "23"], {"eos_token_id": [], "max_new_tokens": 4}, "123", "length", 4),
    ],
)  # fmt: skip
def test_how_answers_end(
    tokenizer: Tokenizer, pieces: list[str], given: dict, text: str, reason: str, count: int
) -> None:
    lm = scripted(tokenizer, {"a": pieces})
    completion = lm.generate("a", **given)
    assert (completion.text, completion.finish_reason, len(completion.ids)) == (text, reason, count)
    stream = lm.stream("a", **given)
    assert "".join(stream) == text
    assert stream.completion.finish_reason == reason


def test_ends_of_text_are_the_union_of_all_files(tokenizer: Tokenizer) -> None:
    hash_id, dollar, percent = (tokenizer.encode(letter)[0] for letter in "#$%")
    for letter in ("#", "$", "%", EOS):
        lm = scripted(
            tokenizer,
            {"a": ["12", letter, "34"]},
            eos_token_id=hash_id,
            generation_config={"eos_token_id": [dollar, percent]},
        )
        completion = lm.generate("a", max_new_tokens=5)
        assert (completion.text, completion.finish_reason) == ("12", "stop")
    lm = scripted(tokenizer, {"a": ["1", EOS, "2345"]})
    assert lm.generate("a", min_new_tokens=4, max_new_tokens=4).ids[1] != tokenizer.encode(EOS)[0]
    banned = {tokenizer.encode(EOS)[0]: -100.0}
    assert lm.generate("a", logit_bias=banned, max_new_tokens=4).finish_reason == "length"


def test_prompts_of_ids_and_what_is_wrong_with_them(tokenizer: Tokenizer) -> None:
    lm = scripted(tokenizer, {"a": ["xyz", EOS], "<bos>": ["start", EOS]})
    ids = tokenizer.encode("aa")
    assert lm.generate(ids).text == lm.generate(np.array(ids)).text == lm.generate(tuple(ids)).text == "xyz"
    assert lm.generate("").prompt_ids == lm.generate([]).prompt_ids == tokenizer.encode("<bos>")
    V = lm.engine.vocab_size
    for prompt, message in (
        ([0, V], f"token {V:,}, but the model's vocabulary is 0 to {V - 1:,}"),
        ([-1], "token -1"),
        ([1.5], "hold 1.5: they must be whole numbers"),
        ([True], "hold True"),
        (["a"], "hold 'a'"),
        ([[1, 2]], "hold .1, 2."),
        (b"abc", "of type bytes"),
        (None, "of type NoneType"),
        (7, "of type int"),
    ):
        with pytest.raises(ParameterError, match=message):
            lm.generate(prompt)  # type: ignore[arg-type]
    small = ScriptedEngine({}, 5)
    with pytest.raises(ParameterError, match="the tokenizer belongs to another model"):
        LanguageModel(small, tokenizer, {}).generate("zz")  # type: ignore[arg-type]
    tokenizer.bos_token = None
    try:
        with pytest.raises(ParameterError, match="no begin-of-text token"):
            lm.generate("")
        assert scripted(tokenizer, {"#": ["x", EOS]}, bos_token_id=2).generate("").text == "x"
    finally:
        tokenizer.bos_token = "<bos>"
    with pytest.raises(ParameterError, match="a list of prompts"):
        lm.generate_batch("a")
    with pytest.raises(ParameterError, match="batch_size is 0"):
        lm.generate_batch(["a"], batch_size=0)
    with pytest.raises(ParameterError, match="call generate_batch"):
        lm.generate("a", num_return_sequences=2, temperature=1.0)
    assert lm.generate_batch([]) == []
    assert lm.logits(ids).shape == (2, V)
    with pytest.raises(ContextError, match="has 65 tokens and the model's context holds 64"):
        lm.logits([0] * 65)


def test_a_prompt_that_does_not_fit_is_never_cut(tokenizer: Tokenizer) -> None:
    lm = scripted(tokenizer, {"a": ["x" * 80]}, context_length=20)
    assert lm.generate("a" * 12).finish_reason == "length"
    assert len(lm.generate("a" * 12).ids) == 8
    for call in (lm.generate, lm.stream):
        with pytest.raises(ContextError, match="21 tokens and the model's context holds 20"):
            call("a" * 21)
        with pytest.raises(
            ContextError, match="8 tokens are left for the answer, and max_new_tokens asks for 9"
        ):
            call("a" * 12, max_new_tokens=9)
    assert not [ids for ids in lm.engine.prefilled if len(ids) != 12]


def test_a_token_that_the_tokenizer_has_not_has_no_text(tokenizer: Tokenizer) -> None:
    lm = scripted(tokenizer, {"a": ["xy", EOS]})
    script = next(iter(lm.engine.scripts.values()))
    script.insert(1, tokenizer.vocab_size + 1)
    completion = lm.generate("a", logprobs=True)
    assert (completion.text, len(completion.ids)) == ("xy", 4)


def test_an_answer_is_spelled_as_it_stands_after_the_prompt(
    tokenizer: Tokenizer, stories: LanguageModel
) -> None:
    # The decoder of the story model strips one space before the first word of a text.
    ids = stories.tokenizer.encode(" there", add_special_tokens=False)
    engine = ScriptedEngine({1: [*ids, 2], 378: [*ids, 2]}, 512)
    lm = LanguageModel(engine, stories.tokenizer, {"eos_token_id": 2})  # type: ignore[arg-type]
    after_text, after_nothing = lm.generate([1, 403, 407, 261, 378]), lm.generate([1])
    assert after_text.text == " " + after_nothing.text
    # The bytes that a prompt's ids leave open are completed by the answer.
    lm = scripted(tokenizer, {"a": ["x"]})
    euro = tokenizer.encode("€")
    lm.engine.scripts[euro[1]] = [euro[2], *tokenizer.encode(EOS)]
    assert lm.generate(tokenizer.encode("5") + euro[:2]).text == "€"


def test_log_probabilities_are_of_the_model_and_not_of_the_draw(tokenizer: Tokenizer) -> None:
    lm = scripted(tokenizer, {"a": ["xy", EOS]})
    V = lm.engine.vocab_size
    certain = 12 - np.log(np.exp(12) + V - 1)
    given: dict[str, Any] = {"temperature": 0.2, "top_k": 1, "repetition_penalty": 1.5}
    completion = lm.generate("a", logprobs=True, top_logprobs=3, **given)
    assert completion.logprobs == pytest.approx([certain] * 3, abs=1e-6)
    assert completion.top_logprobs is not None
    for token, place in zip(completion.ids, completion.top_logprobs, strict=True):
        assert place[0] == (token, pytest.approx(certain, abs=1e-6))
        assert [entry.logprob for entry in place[1:]] == pytest.approx([certain - 12] * 2, abs=1e-5)
    record = json.loads(json.dumps(completion.to_dict(), allow_nan=False))
    assert record["top_logprobs"][0][0]["id"] == completion.ids[0]
    assert (record["text"], record["finish_reason"], record["seed"]) == ("xy", "stop", completion.seed)
    plain = lm.generate("a")
    assert (plain.logprobs, plain.top_logprobs) == (None, None)
    assert "logprobs" not in plain.to_dict()


def test_logits_that_are_no_numbers_end_the_call_and_not_the_model(tokenizer: Tokenizer) -> None:
    lm = scripted(tokenizer, {"a": ["xyz", EOS]})
    lm.engine.failure[2] = 0
    with pytest.raises(TinylmError, match="logits hold NaN"):
        lm.generate("a")
    assert lm.generate("a").text == "xyz"


def test_an_interrupt_keeps_what_was_shown_and_the_model(tokenizer: Tokenizer) -> None:
    lm = scripted(tokenizer, {"a": ["xyz123", EOS]})
    lm.engine.failure = {3: KeyboardInterrupt(), 6: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        lm.generate("a")
    stream = lm.stream("a")
    shown: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        shown.extend(stream)
    assert "".join(shown) == stream.completion.text == "xyz"
    assert stream.completion.finish_reason == "interrupted"
    assert list(stream) == []
    assert lm.generate("a").text == "xyz123"


def test_an_interrupt_while_a_long_prompt_is_read(
    stories: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stories.engine, "chunk", 256)
    told: list[tuple[int, int]] = []

    def interrupt(done: int, total: int) -> None:
        told.append((done, total))
        raise KeyboardInterrupt

    ids = stories.tokenizer.encode("Once upon a time " * 80)
    expected = stories.generate(ids, max_new_tokens=8).ids
    with pytest.raises(KeyboardInterrupt):
        stories.generate(ids, max_new_tokens=8, progress=interrupt)
    assert len(told) == 1
    assert told[0][0] < told[0][1] == len(ids), "a long prompt is read in chunks"
    assert stories.generate(ids, max_new_tokens=8).ids == expected


def test_a_stream_is_lazy_and_may_be_left(tokenizer: Tokenizer) -> None:
    lm = scripted(tokenizer, {"a": ["xyz123", EOS]})
    with pytest.raises(ParameterError):
        lm.stream("a", temperature=-1)
    stream = lm.stream("a", stop="z1")
    assert lm.engine.prefilled == []
    assert stream.completion.text == ""
    assert next(stream) == "x"
    assert (len(lm.engine.prefilled), len(lm.engine.batches)) == (1, 0)
    assert next(iter(stream)) == "y"
    stream.close()
    assert list(stream) == []
    assert (stream.completion.text, stream.completion.finish_reason) == ("xy", "interrupted")
    assert len(lm.engine.batches) == 1
    two = [lm.stream("a"), lm.stream("a")]
    assert [next(two[place]) for place in (0, 1, 1, 0, 0)] == list("xxyyz"), (
        "streams do not disturb each other"
    )


def test_progress_is_told_of_the_prompt(tokenizer: Tokenizer) -> None:
    told: list[tuple[int, int]] = []
    lm = scripted(tokenizer, {"a": ["x", EOS]})
    lm.generate("aaa", progress=lambda done, total: told.append((done, total)))
    assert told == [(3, 3)]


def test_threads_that_generate_at_once_get_their_own_answers(stories: LanguageModel) -> None:
    prompts = ["Once upon a time", "The dog", "Lily"]
    expected = [stories.generate(prompt, max_new_tokens=40).text for prompt in prompts]
    found: dict[int, str] = {}

    def work(place: int) -> None:
        found[place] = "".join(stories.stream(prompts[place], max_new_tokens=40))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[place] for place in range(3)] == expected


def test_generation_config_is_honoured_and_what_is_not_done_is_said(tokenizer: Tokenizer) -> None:
    lm = scripted(tokenizer, {"a": ["x" * 30]}, generation_config={"do_sample": True, "max_new_tokens": 3})
    completion = lm.generate("a")
    assert len(completion.ids) == 3
    assert completion.seed is not None
    assert lm.generate("a", do_sample=False).seed is None
    with pytest.warns(UserWarning, match="ignored: num_beams=3"):
        scripted(tokenizer, {}, generation_config={"num_beams": 3})
    with pytest.raises(ParameterError, match=r"generation_config.json: top_p is 7"):
        scripted(tokenizer, {}, generation_config={"top_p": 7})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scripted(tokenizer, {}, generation_config={"num_beams": 1, "_from_model_config": True})


def test_the_package_is_imported_without_what_it_need_not() -> None:
    code = (
        "import sys, tinylm; assert not {'numpy', 'numba', 'regex'} & set(sys.modules);"
        "tinylm.Tokenizer; assert not {'numpy', 'numba'} & set(sys.modules);"
        "tinylm.Completion, tinylm.GenerationParameters, tinylm.LanguageModel; assert 'numba' not in sys.modules;"
        "assert set(tinylm.__all__) <= set(dir(tinylm))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = tinylm.nonsense
