"""What changes logits before a token is chosen, each an object that knows the tokens so far.

A processor is called with the logits (V,) float32 of the next token, which it changes in place, and is
told by `accept` which token was then chosen. Definitions and order are those of transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tinylm.errors import ParameterError
from tinylm.parameters import GenerationParameters

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]


class LogitsProcessor(Protocol):
    """One change to the logits."""

    def __call__(self, logits: Logits) -> None:
        """Change the logits (V,) of the next token in place."""

    def accept(self, token: int) -> None:
        """Take notice that this token was chosen."""


class _Tokens:
    """The distinct tokens so far, and how often each came."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._ids = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.float32)
        self._places: dict[int, int] = {}
        for token in tokens:
            self.add(token)

    @property
    def ids(self) -> Ids:
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.float32]:
        return self._counts[: len(self._places)]

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 1


class LogitBias:
    """Adds a number to the logits of some tokens."""

    def __init__(self, biases: Mapping[int, float], vocab_size: int) -> None:
        for token in biases:
            if token >= vocab_size:
                raise ParameterError(
                    f"logit_bias names token {token:,}, but the model's vocabulary ends at {vocab_size - 1:,}"
                )
        self._ids = np.array(list(biases), np.int64)
        self._biases = np.array(list(biases.values()), np.float32)

    def __call__(self, logits: Logits) -> None:
        """Change the logits (V,) in place."""
        logits[self._ids] += self._biases

    def accept(self, token: int) -> None:
        """Nothing depends on the tokens."""


class RepetitionPenalty:
    """Divides the positive logits and multiplies the negative ones of tokens of the prompt and the answer."""

    def __init__(self, penalty: float, prompt_ids: Iterable[int]) -> None:
        self._penalty = np.float32(penalty)
        self._seen = _Tokens(prompt_ids)

    def __call__(self, logits: Logits) -> None:
        """Change the logits (V,) in place."""
        ids = self._seen.ids
        scores = logits[ids]
        logits[ids] = np.where(scores < 0, scores * self._penalty, scores / self._penalty)

    def accept(self, token: int) -> None:
        """The token is penalised from now on."""
        self._seen.add(token)


class FrequencyPresencePenalty:
    """Subtracts from the logits of tokens of the answer: once for each time, and once for all times."""

    def __init__(self, frequency: float, presence: float) -> None:
        self._frequency = np.float32(frequency)
        self._presence = np.float32(presence)
        self._written = _Tokens()

    def __call__(self, logits: Logits) -> None:
        """Change the logits (V,) in place."""
        logits[self._written.ids] -= self._frequency * self._written.counts + self._presence

    def accept(self, token: int) -> None:
        """The token is penalised once more from now on."""
        self._written.add(token)


class NoRepeatNgram:
    """Bans the tokens that would complete an n-gram which the prompt or the answer already holds."""

    def __init__(self, size: int, prompt_ids: Iterable[int]) -> None:
        self._size = size
        self._recent: tuple[int, ...] = ()  # the last tokens, at most size - 1
        self._followers: dict[tuple[int, ...], list[int]] = {}
        for token in prompt_ids:
            self.accept(token)

    def __call__(self, logits: Logits) -> None:
        """Change the logits (V,) in place."""
        logits[self._followers.get(self._recent, [])] = -np.inf

    def accept(self, token: int) -> None:
        """Remember the n-gram that ends with this token."""
        if len(self._recent) == self._size - 1:
            self._followers.setdefault(self._recent, []).append(token)
        self._recent = (*self._recent, token)[-(self._size - 1) :] if self._size > 1 else ()


class MinimumLength:
    """Bans the end-of-text tokens until the answer has its least length."""

    def __init__(self, min_new_tokens: int, eos_token_ids: Iterable[int], vocab_size: int) -> None:
        self._missing = min_new_tokens
        self._ids = np.array([token for token in eos_token_ids if token < vocab_size], np.int64)

    def __call__(self, logits: Logits) -> None:
        """Change the logits (V,) in place."""
        if self._missing > 0:
            logits[self._ids] = -np.inf

    def accept(self, token: int) -> None:
        """One token less is missing."""
        self._missing -= 1


def logits_processors(
    parameters: GenerationParameters, vocab_size: int, prompt_ids: Sequence[int]
) -> list[LogitsProcessor]:
    """The processors that some parameters ask for, in the order in which transformers applies them.

    Frequency and presence penalties, which it has not, follow the repetition penalty as in vLLM.
    """
    processors: list[LogitsProcessor] = []
    if parameters.logit_bias:
        processors.append(LogitBias(parameters.logit_bias, vocab_size))
    if parameters.repetition_penalty != 1:
        processors.append(RepetitionPenalty(parameters.repetition_penalty, prompt_ids))
    if parameters.frequency_penalty or parameters.presence_penalty:
        processors.append(FrequencyPresencePenalty(parameters.frequency_penalty, parameters.presence_penalty))
    if parameters.no_repeat_ngram_size:
        processors.append(NoRepeatNgram(parameters.no_repeat_ngram_size, prompt_ids))
    if parameters.min_new_tokens and parameters.eos_token_ids:
        processors.append(MinimumLength(parameters.min_new_tokens, parameters.eos_token_ids, vocab_size))
    return processors
