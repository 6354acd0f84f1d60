"""What a call of `generate` gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

FinishReason = Literal["stop", "length", "interrupted"]


class TokenLogprob(NamedTuple):
    """A token and the natural logarithm of its probability."""

    id: int
    logprob: float


@dataclass(frozen=True)
class Timings:
    """How long the parts of an answer took, in seconds of a steady clock.

    Answers that are written together share their steps: each counts the whole time of a step.
    """

    prompt_tokens: int
    generated_tokens: int
    prefill_seconds: float  # to the logits after the prompt; nothing for further answers to it
    first_token_seconds: float  # from the call to the first token, waiting for others included
    decode_seconds: float  # from the first token to the last
    drafted_tokens: int = 0  # guesses of prompt lookup
    accepted_tokens: int = 0  # those of them that were right: each saved a step

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prompt tokens over the time of the prefill; 0.0 where the prefill was another answer's."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first over the time they took; 0.0 where there is none."""
        return (self.generated_tokens - 1) / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True)
class Completion:
    """One answer; `str()` of it is its text, without the prompt.

    - `text`: decoded without the prompt, cut before a stop string.
    - `ids`: every token that was generated, those of a stop string and the end-of-text token too.
    - `prompt_ids`: what the model read, a begin-of-text token included.
    - `finish_reason`: "stop" (an end-of-text token or a stop string), "length", or "interrupted" (a
      stream that was left before its end).
    - `seed`: the seed of the draws; None where the answer is greedy.
    - `index`: which of the `num_return_sequences` answers this is. Seed and index name its draws.
    - `logprobs`: one for each of `ids`, and `top_logprobs`, the likeliest tokens in its place, best
      first; None where they were not asked for.
    """

    text: str
    ids: list[int]
    prompt_ids: list[int]
    finish_reason: FinishReason
    seed: int | None
    index: int
    timings: Timings
    logprobs: list[float] | None = None
    top_logprobs: list[list[TokenLogprob]] | None = None

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them; log-probabilities of -inf, which it has not, become null."""

        def number(logprob: float) -> float | None:
            return logprob if logprob > float("-inf") else None

        record: dict[str, Any] = {
            "text": self.text,
            "ids": self.ids,
            "prompt_ids": self.prompt_ids,
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "index": self.index,
            "timings": {
                "prompt_tokens": self.timings.prompt_tokens,
                "generated_tokens": self.timings.generated_tokens,
                "prefill_seconds": self.timings.prefill_seconds,
                "first_token_seconds": self.timings.first_token_seconds,
                "decode_seconds": self.timings.decode_seconds,
                "drafted_tokens": self.timings.drafted_tokens,
                "accepted_tokens": self.timings.accepted_tokens,
                "prompt_tokens_per_second": self.timings.prompt_tokens_per_second,
                "tokens_per_second": self.timings.tokens_per_second,
            },
        }
        if self.logprobs is not None:
            record["logprobs"] = [number(logprob) for logprob in self.logprobs]
        if self.top_logprobs is not None:
            record["top_logprobs"] = [
                [{"id": token, "logprob": number(logprob)} for token, logprob in place]
                for place in self.top_logprobs
            ]
        return record
