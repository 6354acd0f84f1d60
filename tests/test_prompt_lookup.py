"""Guessed tokens: which are guessed, and that no guess changes a text."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinylm
from tinylm.errors import ParameterError
from tinylm.generate import STEP_TOKENS
from tinylm.language_model import LanguageModel
from tinylm.prompt_lookup import FIRST_GUESS, LONGEST_PAUSE, MATCHED, PromptLookup

STORIES = Path(__file__).parent / "fixtures" / "stories260k" / "golden.json"
GOLDEN = json.loads(STORIES.read_text(encoding="utf-8"))["cases"]


# Which tokens are guessed


def followers(ids: list[int], count: int) -> list[int]:
    """What `count` tokens follow where the last MATCHED stood before, by a search from the end."""
    for place in range(len(ids) - 1, MATCHED - 1, -1):
        if ids[place - MATCHED : place] == ids[-MATCHED:]:
            copied = list(ids)
            for step in range(count):
                copied.append(copied[place + step])
            return copied[len(ids) :]
    return []


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(0, 40), st.integers(1, 20), st.integers(0, 20))
def test_a_guess_is_what_followed_the_last_time(ids: list[int], cut: int, longest: int, most: int) -> None:
    lookup = PromptLookup(ids[:cut], longest)
    for token in ids[cut:]:
        lookup.accept(token)
    assert lookup.guess(most) == followers(ids, min(most, longest, FIRST_GUESS))


def test_guesses_are_as_long_as_they_are_right() -> None:
    lookup = PromptLookup([1] * 10, longest=10)

    def next_length(right: int) -> int:
        lookup.judge(len(lookup.guess(most=100)), right)
        return len(lookup.guess(most=100))

    assert len(lookup.guess(most=100)) == FIRST_GUESS == 3
    assert [next_length(right) for right in (3, 7, 10, 4, 9, 2, 1)] == [7, 10, 10, 9, 10, 5, 3]
    assert next_length(0) == 0, "after a wrong guess a step goes without"
    assert len(lookup.guess(most=2)) == 2
    assert PromptLookup([1] * 10, longest=1).guess(most=5) == [1]


def test_a_short_guess_that_was_right_shortens_none() -> None:
    lookup = PromptLookup([1] * 10, longest=20)
    for _ in range(3):
        lookup.judge(len(lookup.guess(most=100)), right=len(lookup.guess(most=100)))
    longest = len(lookup.guess(most=100))
    assert longest == 20
    lookup.judge(len(lookup.guess(most=1)), right=1)  # near the end of an answer, or in a full step
    assert len(lookup.guess(most=100)) == longest


def test_who_is_always_wrong_guesses_rarely() -> None:
    lookup = PromptLookup([1] * 10, longest=10)
    steps = 500
    guessed = []
    for _ in range(steps):
        guess = lookup.guess(most=10)
        guessed.append(len(guess))
        if guess:
            lookup.judge(len(guess), right=0)
    assert sum(count > 0 for count in guessed) <= 6 + steps / (LONGEST_PAUSE + 1)
    assert sum(guessed[100:]) <= FIRST_GUESS * (1 + 400 / LONGEST_PAUSE)
    while not lookup.guess(most=10):
        pass
    lookup.judge(3, right=3)
    assert len(lookup.guess(most=10)) == 7, "one right guess ends the pauses"


# No guess changes a text


class HistoryEngine:
    """Logits that follow from every token before: a token that was not forgotten would change them all.

    Mostly the token that followed the last three before, as a text that copies itself, so that guesses are
    right at times; bits are the same in every kind of step.
    """

    threads, context_length = 1, 200

    def __init__(self, vocab_size: int = 512, copies: float = 4.0) -> None:
        self.vocab_size = vocab_size
        self.copies = copies
        self.steps: list[list[int]] = []
        self.failures: dict[int, BaseException] = {}

    class Sequence:
        def __init__(self, ids: list[int], room: int) -> None:
            self.ids, self.room = ids, room

        def __len__(self) -> int:
            return len(self.ids)

        def truncate(self, length: int) -> None:
            del self.ids[length:]

    def new_sequence(self) -> Sequence:
        return self.Sequence([], 0)

    def reserve(self, sequence: Sequence, length: int) -> None:
        assert length <= self.context_length
        sequence.room = max(length, sequence.room)

    def fork(self, sequence: Sequence, room: int = 0) -> Sequence:
        return self.Sequence(list(sequence.ids), room)

    def row(self, ids: list[int]) -> np.ndarray:
        random = np.random.default_rng(zlib.crc32(bytes(str(ids), "ascii")))
        logits = random.standard_normal(self.vocab_size, np.float32)
        logits[20:] -= 30  # few tokens, so that they meet again
        if copied := followers(ids, 1):
            logits[copied[0]] += self.copies
        return logits

    def prefill(self, sequence: Sequence, ids: list[int], progress: Any = None) -> np.ndarray:
        sequence.ids += ids
        return self.row(sequence.ids)

    def advance(self, sequences: list[Sequence], parts: list[list[int]]) -> list[np.ndarray]:
        assert sum(len(part) for part in parts) <= max(STEP_TOKENS, len(parts))
        self.steps.append([len(part) for part in parts])
        if failure := self.failures.get(len(self.steps)):
            raise failure
        found = []
        for sequence, part in zip(sequences, parts, strict=True):
            rows = []
            for token in part:
                sequence.ids.append(token)
                rows.append(self.row(sequence.ids))
            assert len(sequence.ids) <= sequence.room, "the room that was asked for is too small"
            found.append(np.stack(rows))
        return found


@pytest.fixture(scope="module")
def stories() -> LanguageModel:
    return tinylm.load(threads=2)


def model(stories: LanguageModel, **asked: Any) -> LanguageModel:
    engine = HistoryEngine(**asked)
    return LanguageModel(engine, stories.tokenizer, {})  # type: ignore[arg-type]


PROMPT = [1, 5, 6, 7, 8, 9, 10, 5, 6, 7, 3, 4, 5, 6, 7]

MIXTURES: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 1},
    {"max_new_tokens": 2},
    {"max_new_tokens": 185},
    {"eos_token_id": [5]},
    {"eos_token_id": [6, 9], "min_new_tokens": 12, "skip_special_tokens": False},
    {"temperature": 0.8, "seed": 3},
    {"temperature": 2.5, "seed": 4, "top_k": 0},
    {"temperature": 1.0, "seed": 5, "top_k": 7, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 1.2, "temperature": 1.0, "seed": 6, "eos_token_id": [2, 3]},
    {"frequency_penalty": 0.3, "presence_penalty": 0.4},
    {"no_repeat_ngram_size": 4},
    {"no_repeat_ngram_size": 5, "temperature": 1.0, "seed": 8},
    {"logit_bias": {7: 2.0, 6: float("-inf")}},
    {"logprobs": True, "top_logprobs": 3, "temperature": 0.7, "seed": 9},
]


@pytest.mark.parametrize("longest", [1, 3, 10, 1000])
@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
def test_every_text_is_the_same_with_guesses(
    stories: LanguageModel, mixture: dict[str, Any], longest: int
) -> None:
    lm = model(stories)
    parameters = (
        {"max_new_tokens": 90} | ({} if "eos_token_id" in mixture else {"eos_token_ids": []}) | mixture
    )
    plain = lm.generate(PROMPT, **parameters)
    plain_steps = len(lm.engine.steps)
    lm.engine.steps.clear()
    guessed = lm.generate(PROMPT, prompt_lookup_num_tokens=longest, **parameters)
    for name in ("ids", "text", "finish_reason", "seed", "logprobs", "top_logprobs"):
        assert getattr(guessed, name) == getattr(plain, name), name
    times = guessed.timings
    assert times.drafted_tokens == sum(count - 1 for (count,) in lm.engine.steps)
    assert times.accepted_tokens == plain_steps - len(lm.engine.steps)
    assert max((count for (count,) in lm.engine.steps), default=1) <= min(longest + 1, STEP_TOKENS)
    assert (plain.timings.drafted_tokens, plain.timings.accepted_tokens) == (0, 0)


def test_a_text_that_copies_is_written_in_fewer_steps(stories: LanguageModel) -> None:
    lm = model(stories, copies=100.0)
    plain = lm.generate(PROMPT, max_new_tokens=101)
    assert len(plain.ids) == 101
    assert len(lm.engine.steps) == 100
    lm.engine.steps.clear()
    guessed = lm.generate(PROMPT, max_new_tokens=101, prompt_lookup_num_tokens=10)
    assert guessed.ids == plain.ids
    assert len(lm.engine.steps) <= 12
    assert guessed.timings.drafted_tokens == guessed.timings.accepted_tokens, "here each guess is right"


def test_a_text_that_copies_nothing_takes_no_more_steps(stories: LanguageModel) -> None:
    lm = model(stories, copies=-100.0)
    guessed = lm.generate(PROMPT, max_new_tokens=180, eos_token_ids=[], prompt_lookup_num_tokens=10)
    assert guessed.timings.accepted_tokens == 0
    assert len(lm.engine.steps) == 179
    assert sum(count > 1 for (count,) in lm.engine.steps) <= 12


@pytest.mark.parametrize("batch_size", [1, 2, 5, 40])
def test_answers_that_are_written_together_guess_too(stories: LanguageModel, batch_size: int) -> None:
    lm = model(stories)
    prompts = [PROMPT, PROMPT[3:], [1, 2, 3], [4] * 9]
    asked: dict[str, Any] = {"max_new_tokens": 60, "temperature": 0.9, "seed": 2, "eos_token_ids": [11]}
    asked |= {"num_return_sequences": 9, "repetition_penalty": 1.1}
    plain = lm.generate_batch(prompts, batch_size=batch_size, **asked)
    guessed = lm.generate_batch(prompts, batch_size=batch_size, prompt_lookup_num_tokens=10, **asked)
    for mine, theirs in zip(guessed, plain, strict=True):
        assert [answer.ids for answer in mine] == [answer.ids for answer in theirs]
        assert [answer.finish_reason for answer in mine] == [answer.finish_reason for answer in theirs]
    accepted = sum(answer.timings.accepted_tokens for group in guessed for answer in group)
    assert accepted > 20 or batch_size == 40, "so many leave no room for guesses"


@pytest.mark.parametrize("stop", ["at", "a", "n\n", "the", " t"])
def test_stop_strings_within_guesses(stories: LanguageModel, stop: str) -> None:
    prompt = "Tom had a cat. Tom had a cat. Tom had a cat. Tom"
    for asked in ({}, {"temperature": 1.0, "seed": 1}):
        plain = stories.generate(prompt, max_new_tokens=80, stop=stop, **asked)
        guessed = stories.generate(prompt, max_new_tokens=80, stop=stop, prompt_lookup_num_tokens=10, **asked)
        assert (guessed.text, guessed.ids, guessed.finish_reason) == (
            plain.text,
            plain.ids,
            plain.finish_reason,
        )
        assert stop not in guessed.text


def test_the_end_of_the_context_may_be_reached(stories: LanguageModel) -> None:
    lm = model(stories, copies=100.0)
    prompt = (PROMPT * 20)[:190]
    guessed = lm.generate(prompt, prompt_lookup_num_tokens=10)
    assert len(guessed.ids) == 10
    assert guessed.finish_reason == "length"
    assert guessed.ids == lm.generate(prompt).ids


# With a real model


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["prompt"][:20])
def test_greedy_ids_of_the_story_model(stories: LanguageModel, case: dict[str, Any]) -> None:
    count = len(case["greedy_ids"])
    completion = stories.generate(case["prompt"], max_new_tokens=count, prompt_lookup_num_tokens=10)
    assert completion.ids == case["greedy_ids"]


TALE = "Once there was a girl named Sue. She had a red ball. Sue had a red ball. One day, Sue "


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_drawn_texts_of_the_story_model(dtype: str) -> None:
    lm = tinylm.load(dtype=dtype, threads=2)
    accepted = 0
    for seed in range(4):
        asked: dict[str, Any] = {"max_new_tokens": 150, "temperature": 0.7, "seed": seed}
        plain, guessed = lm.generate(TALE, **asked), lm.generate(TALE, prompt_lookup_num_tokens=8, **asked)
        accepted += guessed.timings.accepted_tokens
        assert guessed.text == plain.text
    assert accepted > 10


@settings(max_examples=25, deadline=None)
@given(
    st.text("abcd .", min_size=1, max_size=60), st.integers(1, 12), st.sampled_from([0.0, 0.6, 1.0]), st.integers(0, 9)
)  # fmt: skip
def test_any_prompt(stories: LanguageModel, prompt: str, longest: int, temperature: float, seed: int) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 40, "temperature": temperature, "seed": seed}
    plain = stories.generate(prompt, **asked)
    assert stories.generate(prompt, prompt_lookup_num_tokens=longest, **asked).ids == plain.ids


# Interrupts


def test_a_stream_may_be_left_within_a_guess(stories: LanguageModel) -> None:
    lm = model(stories, copies=100.0)
    prompt = [*range(300, 320), 300, 301, 302]
    whole = lm.generate(prompt, max_new_tokens=40)
    for left_after in range(1, 12):
        stream = lm.stream(prompt, max_new_tokens=40, prompt_lookup_num_tokens=10)
        shown = "".join(next(stream) for _ in range(left_after))
        stream.close()
        assert stream.completion.text == shown == whole.text[: len(shown)]
        assert stream.completion.finish_reason == "interrupted"
        assert stream.completion.ids == whole.ids[: len(stream.completion.ids)]


def test_an_interrupt_of_a_step_with_guesses(stories: LanguageModel) -> None:
    lm = model(stories, copies=100.0)
    expected = lm.generate(PROMPT, max_new_tokens=40)
    lm.engine.steps.clear()
    lm.engine.failures = {3: KeyboardInterrupt()}
    stream = lm.stream(PROMPT, max_new_tokens=40, prompt_lookup_num_tokens=10)
    shown: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        shown.extend(stream)
    assert lm.engine.steps[2][0] > 1
    assert "".join(shown) == stream.completion.text
    assert stream.completion.ids == expected.ids[: len(stream.completion.ids)]
    assert lm.generate(PROMPT, max_new_tokens=40, prompt_lookup_num_tokens=10).ids == expected.ids


def test_a_sequence_that_is_kept_holds_only_what_was_read(stories: LanguageModel) -> None:
    from tinylm.chat import answer

    def goes_on(prompt: list[int], left_after: int | None) -> list[int]:
        sequence = stories.engine.new_sequence()
        for longest in (8, 8):
            parameters = {"max_new_tokens": 40, "prompt_lookup_num_tokens": longest}
            stream = answer(stories, prompt, sequence, parameters)  # type: ignore[arg-type]
            for count, _ in enumerate(stream, 1):
                if count == left_after:
                    stream.close()
            prompt = [*prompt, *stream.completion.ids, 403]
        return prompt

    prompt = stories.tokenizer.encode(TALE)
    for left_after in (None, 3, 7):
        found = goes_on(prompt, left_after)
        read = list(prompt)
        while len(read) < len(found):
            rest = found[len(read) :]
            count = rest.index(403) if 403 in rest else len(rest)
            plain = stories.generate(read, max_new_tokens=40).ids
            assert rest[:count] == plain[:count]
            read += [*rest[:count], 403]


def test_what_is_no_number_of_tokens(stories: LanguageModel) -> None:
    for wrong in (-1, 2.5, "ten", True):
        with pytest.raises(ParameterError, match="prompt_lookup_num_tokens is"):
            stories.generate("a", prompt_lookup_num_tokens=wrong)  # type: ignore[arg-type]
    stored = LanguageModel(stories.engine, stories.tokenizer, {}, {"prompt_lookup_num_tokens": 4})
    assert stored.generate(TALE, max_new_tokens=60).timings.drafted_tokens > 0
    assert stored.generate(TALE, max_new_tokens=60, prompt_lookup_num_tokens=0).timings.drafted_tokens == 0
    lm = LanguageModel(stories.engine, stories.tokenizer, {})
    assert lm.generate(TALE, max_new_tokens=60).timings.drafted_tokens == 0, "off unless asked for"
