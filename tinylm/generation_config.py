"""Where the parameters of a call come from: the call, over generation_config.json, over the defaults."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Integral
from typing import Any, NoReturn

from tinylm.errors import ParameterError
from tinylm.parameters import GenerationParameters

# Giving one of these asks for sampling: a temperature without a draw would mean nothing.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")

# Other spellings of the same parameters.
SPELLINGS = {"stop_strings": "stop", "eos_token_id": "eos_token_ids"}

# Parameters of transformers that change the text and are not done here, with the values at which
# they change nothing. A call that gives another value is refused by name.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "assistant_early_exit": (),
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "constraints": ([],),
    "diversity_penalty": (0.0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1.0,),
    "max_time": (),
    "min_length": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "penalty_alpha": (0.0,),
    "sequence_bias": ({}, []),
    "suppress_tokens": ([],),
    "token_healing": (False,),
    "top_h": (),
    "watermarking_config": (),
}

# Parameters of transformers that change no text here.
HARMLESS = frozenset(
    {
        "bos_token_id", "cache_implementation", "early_stopping", "length_penalty", "low_memory",
        "max_matching_ngram_size", "pad_token_id", "remove_invalid_values", "renormalize_logits", "use_cache",
    }
)  # fmt: skip


def resolve_parameters(
    given: Mapping[str, Any],
    generation_config: Mapping[str, Any] | None = None,
    eos_token_ids: Sequence[int] = (),
) -> GenerationParameters:
    """What a call gave, over generation_config.json, over the defaults -> the parameters in force.

    A value of None is as good as none given. `eos_token_ids` are the model's, for calls that give
    none. Where the call gives one of `SAMPLING` and no `do_sample`, tokens are drawn (greedily at
    temperature 0); where it gives none of them, the file's `do_sample` decides, by default False.

    Raises `ParameterError` for an unknown name, for one of transformers' that is not done here, and
    for a value outside its limits; the message says when the value stands in the file.
    """
    known = {entry.name for entry in fields(GenerationParameters)} - {
        "default_max_new_tokens",
        "default_max_length",
    }
    chosen: dict[str, Any] = {"eos_token_ids": tuple(eos_token_ids)}
    for name, value in given.items():
        if value is None or name in HARMLESS:
            continue
        if name in UNSUPPORTED:
            if value not in UNSUPPORTED[name]:
                raise ParameterError(f"{name}={value!r} is not supported")
            continue
        if SPELLINGS.get(name, name) not in known:
            _unknown(name, known)
        chosen[SPELLINGS.get(name, name)] = value
    if "do_sample" not in chosen and any(name in chosen for name in SAMPLING):
        chosen["do_sample"] = True
    stored = stored_parameters(generation_config or {})
    limit = chosen.get("max_new_tokens")
    if isinstance(limit, Integral) and stored.get("min_new_tokens", 0) > limit:
        del stored["min_new_tokens"]
    return GenerationParameters(**{**stored, **chosen})


def stored_parameters(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a model's generation_config.json sets, checked: `ParameterError`.

    Its limits of length become defaults: they are cut to the room that the context has left.
    """
    names = {entry.name for entry in fields(GenerationParameters)}
    names -= {"seed", "num_return_sequences", "logprobs", "top_logprobs", "eos_token_ids"}
    stored = {
        SPELLINGS.get(name, name): value
        for name, value in generation_config.items()
        if value is not None and SPELLINGS.get(name, name) in names
    }
    for name in ("max_new_tokens", "max_length"):
        if name in stored:
            stored[f"default_{name}"] = stored.pop(name)
    try:
        GenerationParameters(**stored)
    except ParameterError as error:
        raise ParameterError(f"generation_config.json: {error}") from None
    return stored


def ignored_settings(generation_config: Mapping[str, Any]) -> list[str]:
    """The settings of a generation_config.json that change the text in transformers and are not done here."""
    return [
        f"{name}={value!r}"
        for name, value in generation_config.items()
        if name in UNSUPPORTED and value is not None and value not in UNSUPPORTED[name]
    ]


def _unknown(name: str, known: set[str]) -> NoReturn:
    close = difflib.get_close_matches(name, sorted(known | set(SPELLINGS)), n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
    raise ParameterError(f"unknown parameter {name!r}: {hint}")
