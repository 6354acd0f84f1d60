"""One answer while it is written: from the logits after its prompt, token by token, to its text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinylm.completion import Completion, FinishReason, Timings, TokenLogprob
from tinylm.prompt_lookup import PromptLookup
from tinylm.sampler import LogProbabilities, RandomStream, Sampler
from tinylm.stopping import StopStrings

if TYPE_CHECKING:
    from tinylm.engine import Engine, Sequence
    from tinylm.logits_processors import Logits
    from tinylm.parameters import GenerationParameters
    from tinylm.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
"""Told how many tokens of a prompt are read, and how many there are."""

REMEMBERED = 8
"""So many tokens of the prompt's text decide how the answer's first token is spelled."""


@dataclass(frozen=True)
class Request:
    """What is to be written: a prompt's ids, the parameters, and what follows from the two."""

    prompt_ids: list[int]
    parameters: GenerationParameters
    limit: int  # new tokens, at most
    seed: int | None  # None where no token is drawn
    skip_special_tokens: bool = True


class Prompt:
    """A prompt that is read once, for all the answers to it."""

    def __init__(self, request: Request) -> None:
        self.seconds = 0.0
        self._ids = request.prompt_ids
        self._room = len(request.prompt_ids) + request.limit
        self._answers = request.parameters.num_return_sequences
        self._sequence: Sequence | None = None
        self._logits: Logits | None = None

    def begin(self, engine: Engine, progress: Progress | None) -> tuple[Sequence, Logits]:
        """A sequence of the engine that holds the prompt, the caller's own; the logits (V,) after it."""
        self._answers -= 1
        if self._sequence is None or self._logits is None:
            started = time.perf_counter()
            self._sequence = engine.new_sequence()
            engine.reserve(self._sequence, self._room)
            self._logits = engine.prefill(self._sequence, self._ids, progress)
            self.seconds = time.perf_counter() - started
        sequence, logits = self._sequence, self._logits
        if self._answers:
            return engine.fork(sequence, self._room), logits
        self._sequence = self._logits = None
        return sequence, logits


class AnswerText:
    """The text of an answer's tokens as it stands after the prompt: whole characters only.

    A decoder may strip the space before the first word of a text. The answer is not the first, so the
    decoder sees the end of the prompt before it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: list[int], skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._stream = tokenizer.stream(skip_special_tokens)
        known = [token for token in prompt_ids if tokenizer.id_to_token(token) is not None]
        spelled = [place for place, token in enumerate(known) if token not in tokenizer.special_ids]
        before = known[spelled[-REMEMBERED] if len(spelled) >= REMEMBERED else 0 :]
        shown = sum(len(self._stream.push(token)) for token in before)
        # A character that the prompt left unfinished belongs to the answer.
        whole = tokenizer.decode(before, skip_special_tokens).rstrip("\ufffd")
        self._unseen = max(0, len(whole) - shown)

    def push(self, token: int) -> str:
        """The text that a token makes certain. A model may know more tokens than the tokenizer: no text."""
        return self._new(self._stream.push(token)) if self._tokenizer.id_to_token(token) is not None else ""

    def finish(self) -> str:
        """The text that was held back."""
        return self._new(self._stream.finish())

    def _new(self, text: str) -> str:
        prompt_part = min(self._unseen, len(text))
        self._unseen -= prompt_part
        return text[prompt_part:]


class Continuation:
    """One of the answers to a request.

    `begin` once; then, until there is a `finish_reason`, `propose` what the next step of the sequence reads, and
    `take` the logits after it. A step may read guessed tokens too. Whatever is guessed, each token is chosen from
    logits that follow the tokens before it, with one draw, so the text is the same without guesses.
    """

    def __init__(
        self,
        request: Request,
        prompt: Prompt,
        tokenizer: Tokenizer,
        vocab_size: int,
        index: int = 0,
    ) -> None:
        parameters = request.parameters
        self.request = request
        self.index = index
        self.sequence: Sequence | None = None
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._prompt = prompt
        self._pieces: list[str] = []
        self._stream = RandomStream(request.seed, index) if request.seed is not None else None
        self._sampler = Sampler(parameters, vocab_size, request.prompt_ids, self._stream)
        self._text = AnswerText(tokenizer, request.prompt_ids, request.skip_special_tokens)
        self._stop = StopStrings(parameters.stop)
        self._ends = set(parameters.eos_token_ids)
        if request.skip_special_tokens:
            # Such a stop string never shows in the text.
            named = [tokenizer.token_to_id(string) for string in parameters.stop]
            self._ends |= {token for token in named if token is not None and token in tokenizer.special_ids}
        self._logprobs: list[float] = []
        self._top_logprobs: list[list[TokenLogprob]] = []
        self._lookup: PromptLookup | None = None
        self._guess: list[int] = []
        self._drafted = self._accepted = 0
        self._prefill_seconds = 0.0
        self._called = self._first = self._last = time.perf_counter()

    def begin(self, engine: Engine, progress: Progress | None = None) -> str:
        """Read the prompt, or share its reading, and take the first token."""
        before = self._prompt.seconds
        self.sequence, logits = self._prompt.begin(engine, progress)
        self._prefill_seconds = self._prompt.seconds - before
        if longest := self.request.parameters.prompt_lookup_num_tokens:
            self._lookup = PromptLookup(self.request.prompt_ids, longest)
        return self._take(logits)

    def propose(self, most: int) -> list[int]:
        """The ids of the next step: the last token, and at most `most` guesses of what follows it.

        The sequence forgets the guesses of the step before that were wrong.
        """
        if self._lookup is None or self.sequence is None:
            return self.ids[-1:]
        self.sequence.truncate(len(self.request.prompt_ids) + len(self.ids) - 1)
        # The last token that is wanted need not be guessed: it follows from the logits after the one before.
        self._guess = self._lookup.guess(min(most, self.request.limit - len(self.ids) - 1))
        return [*self.ids[-1:], *self._guess]

    def take(self, rows: Logits) -> Iterator[str]:
        """The logits (T, V) after the ids that were proposed -> for each token that follows, the text it makes certain.

        There are as many as guesses were right, and one more.
        """
        guess, self._guess = self._guess, []
        self._drafted += len(guess)
        for right, logits in enumerate(rows):
            self._accepted += right > 0
            yield self._take(logits)
            if self.finish_reason is not None:
                return
            if right == len(guess) or self.ids[-1] != guess[right]:
                break
        if guess and self._lookup is not None:
            self._lookup.judge(len(guess), right)

    def _take(self, logits: Logits) -> str:
        """The logits (V,) after the last token -> the text that the next one makes certain."""
        parameters = self.request.parameters
        token = self._sampler(logits)
        self.ids.append(token)
        if self._lookup is not None:
            self._lookup.accept(token)
        if parameters.logprobs:
            distribution = LogProbabilities(logits)
            self._logprobs.append(distribution.of(token))
            if parameters.top_logprobs:
                best = distribution.top(parameters.top_logprobs)
                self._top_logprobs.append([TokenLogprob(*entry) for entry in best])
        ended = token in self._ends
        piece = ""
        if not (ended and self.request.skip_special_tokens):
            piece = self._stop.push(self._text.push(token))
        if ended or self._stop.stopped:
            self.finish_reason = "stop"
        elif len(self.ids) == self.request.limit:
            self.finish_reason = "length"
        if self.finish_reason is not None:
            piece += self._stop.push(self._text.finish()) + self._stop.finish()
            if self._stop.stopped:
                self.finish_reason = "stop"
            self.sequence = self._lookup = None
        self._pieces.append(piece)
        self._last = time.perf_counter()
        if len(self.ids) == 1:
            self._first = self._last
        return piece

    def completion(self) -> Completion:
        """The answer so far; where it has not come to its end, it counts as interrupted."""
        parameters = self.request.parameters
        return Completion(
            text="".join(self._pieces),
            ids=list(self.ids),
            prompt_ids=list(self.request.prompt_ids),
            finish_reason=self.finish_reason or "interrupted",
            seed=self.request.seed,
            index=self.index,
            timings=Timings(
                prompt_tokens=len(self.request.prompt_ids),
                generated_tokens=len(self.ids),
                prefill_seconds=self._prefill_seconds,
                first_token_seconds=self._first - self._called,
                decode_seconds=self._last - self._first,
                drafted_tokens=self._drafted,
                accepted_tokens=self._accepted,
            ),
            logprobs=list(self._logprobs) if parameters.logprobs else None,
            top_logprobs=list(self._top_logprobs) if parameters.top_logprobs else None,
        )
