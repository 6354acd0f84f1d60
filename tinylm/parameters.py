"""The parameters of generation: their meanings and limits.

Names and meanings are those of `transformers`, so that a model card's example carries over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TypedDict

from tinylm.errors import ContextError, ParameterError

DEFAULT_MAX_NEW_TOKENS = 128


class Parameters(TypedDict, total=False):
    """What `generate`, `stream` and `generate_batch` take by name; None means not given."""

    max_new_tokens: int | None
    max_length: int | None
    min_new_tokens: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    no_repeat_ngram_size: int | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_strings: str | Sequence[str] | None
    eos_token_id: int | Sequence[int] | None
    eos_token_ids: int | Sequence[int] | None
    num_return_sequences: int | None
    logprobs: bool | None
    top_logprobs: int | None
    prompt_lookup_num_tokens: int | None


@dataclass(frozen=True)
class GenerationParameters:
    """How an answer is to be written. Every value is checked on construction: `ParameterError`.

    - `max_new_tokens`: at most so many new tokens; with `max_length`, prompt and answer together.
      Where neither is asked for, `default_max_new_tokens` (128, or what the model's
      generation_config.json says), cut to the room that the context has left.
    - `min_new_tokens`: the end-of-text tokens are banned until so many tokens are written.
    - `do_sample`: draw tokens; otherwise the likeliest is taken (greedy).
    - `temperature`: the logits are divided by it before the draw; 0 is greedy.
    - `top_k`: only the k likeliest tokens (and those that tie with the last); 0 for all. 50 is
      transformers' default when sampling.
    - `top_p`: only the fewest likeliest tokens that together reach this probability
      (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751).
    - `min_p`: only tokens at least this fraction as likely as the likeliest
      (Nguyen et al. 2024, https://arxiv.org/abs/2407.01082).
    - `typical_p`: only the tokens whose surprise is nearest to the expected one, up to this
      probability (Meister et al. 2022, https://arxiv.org/abs/2202.00666).
    - `repetition_penalty`: divides the positive logits and multiplies the negative ones of tokens
      that stand in the prompt or the answer (Keskar et al. 2019, https://arxiv.org/abs/1909.05858).
    - `frequency_penalty`, `presence_penalty`: subtracted from the logits of tokens of the answer
      (not of the prompt), the first once for each time they were written, the second once; the
      meaning of OpenAI's interface and of vLLM.
    - `no_repeat_ngram_size`: no n-gram of this many tokens occurs twice, the prompt included.
    - `logit_bias`: token id -> number added to its logit; -inf bans it.
    - `seed`: 0 to 2**64 - 1; where it is None and tokens are drawn, one is drawn and reported.
    - `stop`: strings that end the answer; the text is cut before them.
    - `eos_token_ids`: token ids that end the answer.
    - `num_return_sequences`: so many answers for each prompt.
    - `logprobs`, `top_logprobs`: also return the log-probability of each chosen token, and the n
      likeliest tokens with theirs, by the model's own distribution: the log-softmax of its logits
      before any penalty, temperature or cut.
    - `prompt_lookup_num_tokens`: guess up to so many tokens at a time, copied from where the last three stood
      before in the prompt or the answer, and judge them in one step; 0 does not guess. The text is the same;
      one that quotes its prompt is written faster. How many are guessed follows from how many were right.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    num_return_sequences: int = 1
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_lookup_num_tokens: int = 0
    default_max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    default_max_length: int | None = None

    def __post_init__(self) -> None:
        for name, least, most in INTEGERS:
            if getattr(self, name) is not None:
                self._set(name, _integer(name, getattr(self, name), least, most))
        for name, lowest, highest, limits in NUMBERS:
            self._set(name, _number(name, getattr(self, name), lowest, highest, limits))
        for name in ("do_sample", "logprobs"):
            self._set(name, _truth(name, getattr(self, name)))
        self._set("logit_bias", _biases(self.logit_bias))
        self._set("stop", _stop_strings(self.stop))
        self._set("eos_token_ids", _token_ids("eos_token_id", self.eos_token_ids))
        self._set("logprobs", self.logprobs or self.top_logprobs > 0)
        self._set("do_sample", self.do_sample and self.temperature > 0)
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ParameterError(
                f"min_new_tokens is {self.min_new_tokens}, more than max_new_tokens, {self.max_new_tokens}"
            )
        if self.num_return_sequences > 1 and not self.do_sample:
            raise ParameterError(
                f"num_return_sequences is {self.num_return_sequences}, but without sampling all of them "
                "would be the same text: give do_sample=True or a temperature above 0"
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def new_token_limit(self, prompt_length: int, context_length: int) -> int:
        """The most tokens that may follow a prompt of `prompt_length` tokens.

        Raises `ContextError`, with the counts, where the prompt leaves no room or where more was
        asked for by name than the context holds; a mere default is cut to the room that is left.
        """
        room = context_length - prompt_length
        counts = f"the prompt has {prompt_length:,} tokens and the model's context holds {context_length:,}"
        if room < 1:
            raise ContextError(f"{counts}: there is no room for an answer; shorten the prompt")
        if self.max_new_tokens is not None:
            wanted, name = self.max_new_tokens, "max_new_tokens"
        elif self.max_length is not None:
            wanted, name = self.max_length - prompt_length, "max_length"
            if wanted < 1:
                raise ContextError(
                    f"the prompt has {prompt_length:,} tokens and max_length, which counts them too, is "
                    f"{self.max_length:,}: raise it, or give max_new_tokens instead"
                )
        else:
            wanted = self.default_max_new_tokens
            if self.default_max_length is not None and self.default_max_length > prompt_length:
                wanted = self.default_max_length - prompt_length
            return min(max(wanted, self.min_new_tokens), room)
        if wanted > room:
            raise ContextError(
                f"{counts}: {room:,} tokens are left for the answer, and {name} asks for {wanted:,}; "
                f"ask for {room:,} or fewer, or shorten the prompt"
            )
        return wanted


# name, lowest, highest
INTEGERS: tuple[tuple[str, int, int | None], ...] = (
    ("max_new_tokens", 1, None),
    ("max_length", 1, None),
    ("min_new_tokens", 0, None),
    ("top_k", 0, None),
    ("no_repeat_ngram_size", 0, None),
    ("seed", 0, 2**64 - 1),
    ("num_return_sequences", 1, None),
    ("top_logprobs", 0, None),
    ("prompt_lookup_num_tokens", 0, None),
    ("default_max_new_tokens", 1, None),
    ("default_max_length", 1, None),
)

# name, lowest, highest, how the limits read; a lowest of None is anything, an excluded 0 is the
# smallest positive number
NUMBERS: tuple[tuple[str, float | None, float | None, str], ...] = (
    ("temperature", 0.0, None, "0 (greedy) or more"),
    ("top_p", math.ulp(0.0), 1.0, "more than 0 and at most 1 (1 keeps every token)"),
    ("min_p", 0.0, 1.0, "between 0 (keeps every token) and 1"),
    ("typical_p", math.ulp(0.0), 1.0, "more than 0 and at most 1 (1 keeps every token)"),
    ("repetition_penalty", math.ulp(0.0), None, "more than 0 (1 changes nothing)"),
    ("frequency_penalty", None, None, "a finite number (0 changes nothing)"),
    ("presence_penalty", None, None, "a finite number (0 changes nothing)"),
)


def _integer(name: str, value: object, lowest: int, highest: int | None) -> int:
    limits = f"{lowest} or more" if highest is None else f"between {lowest} and {highest}"
    number: int | None = None
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
    elif isinstance(value, Real) and not isinstance(value, bool) and float(value).is_integer():
        number = int(float(value))  # JSON written elsewhere may say 50.0
    if number is None:
        raise ParameterError(f"{name} is {value!r}: it must be a whole number, {limits}")
    if number < lowest or (highest is not None and number > highest):
        raise ParameterError(f"{name} is {number}: it must be {limits}")
    return number


def _number(name: str, value: object, lowest: float | None, highest: float | None, limits: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ParameterError(f"{name} is {value!r}: it must be a number, {limits}")
    number = float(value)
    too_low = lowest is not None and number < lowest
    if not math.isfinite(number) or too_low or (highest is not None and number > highest):
        raise ParameterError(f"{name} is {value}: it must be {limits}")
    return number


def _truth(name: str, value: object) -> bool:
    # NumPy's truth values are of another type, which this floor does not import.
    if not isinstance(value, bool) and type(value).__name__ not in {"bool", "bool_"}:
        raise ParameterError(f"{name} is {value!r}: it must be True or False")
    return bool(value)


def _biases(value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise ParameterError(
            f"logit_bias is {value!r}: it must map token ids to numbers, such as {{13: -100.0}}"
        )
    biases = {}
    for key, bias in value.items():
        # JSON has only strings for keys.
        token = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() else key
        token = _integer("a token id of logit_bias", token, 0, None)
        if isinstance(bias, bool) or not isinstance(bias, Real) or math.isnan(bias) or bias == math.inf:
            raise ParameterError(
                f"logit_bias of token {token} is {bias!r}: it must be a finite number or -inf"
            )
        biases[token] = float(bias)
    return biases


def _stop_strings(value: object) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, Sequence) or not all(isinstance(string, str) for string in strings):
        raise ParameterError(f"stop is {value!r}: it must be a string or a list of strings")
    if "" in strings:
        raise ParameterError("stop has an empty string, which would end every answer at once")
    return tuple(dict.fromkeys(strings))


def _token_ids(name: str, value: object) -> tuple[int, ...]:
    ids = (value,) if isinstance(value, Integral) else value
    if isinstance(ids, str) or not isinstance(ids, Sequence):
        raise ParameterError(f"{name} is {value!r}: it must be a token id or a list of them")
    return tuple(dict.fromkeys(_integer(name, entry, 0, None) for entry in ids))
