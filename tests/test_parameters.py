"""Parameters: what is refused, what wins over what, and how many tokens there is room for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tinylm.errors import ContextError, ParameterError
from tinylm.generation_config import ignored_settings, resolve_parameters
from tinylm.parameters import GenerationParameters, Parameters


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -1}, "temperature is -1: it must be 0 .greedy. or more"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": "0.8"}, "temperature is '0.8': it must be a number"),
        ({"temperature": True}, "temperature is True: it must be a number"),
        ({"top_p": 0}, "top_p is 0: it must be more than 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": -1}, "top_k is -1: it must be 0 or more"),
        ({"top_k": 2.5}, "top_k is 2.5: it must be a whole number"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"typical_p": 0.0}, "typical_p is 0.0"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0: it must be more than 0"),
        ({"frequency_penalty": math.nan}, "frequency_penalty is nan: it must be a finite number"),
        ({"presence_penalty": "a"}, "presence_penalty is 'a'"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size is -2"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0: it must be 1 or more"),
        ({"max_length": 0}, "max_length is 0"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1"),
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens is 5, more than max_new_tokens, 4"),
        ({"num_return_sequences": 0}, "num_return_sequences is 0: it must be 1 or more"),
        ({"num_return_sequences": 2}, "without sampling all of them would be the same text"),
        ({"num_return_sequences": 2, "temperature": 0}, "without sampling"),
        ({"seed": -1}, "seed is -1: it must be between 0 and 18446744073709551615"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"do_sample": "yes"}, "do_sample is 'yes': it must be True or False"),
        ({"do_sample": 1}, "do_sample is 1"),
        ({"logprobs": 5}, "logprobs is 5"),
        ({"top_logprobs": -1}, "top_logprobs is -1"),
        ({"stop": ["a", ""]}, "stop has an empty string"),
        ({"stop": 7}, "stop is 7: it must be a string or a list of strings"),
        ({"stop": [7]}, "stop is"),
        ({"logit_bias": [1, 2]}, "logit_bias is .1, 2.: it must map token ids to numbers"),
        ({"logit_bias": {-1: 1.0}}, "a token id of logit_bias is -1"),
        ({"logit_bias": {"x": 1.0}}, "a token id of logit_bias is 'x'"),
        ({"logit_bias": {1: math.inf}}, "logit_bias of token 1 is inf"),
        ({"logit_bias": {1: "a"}}, "logit_bias of token 1 is 'a'"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>': it must be a token id or a list"),
        ({"temprature": 1.0}, "unknown parameter 'temprature': did you mean temperature?"),
        ({"zzz": 1.0}, "unknown parameter 'zzz': there are do_sample, "),
        ({"num_beams": 4}, "num_beams=4 is not supported"),
        ({"bad_words_ids": [[5]]}, "bad_words_ids=..5.. is not supported"),
    ],
    ids=str,
)
def test_nonsense_is_refused_by_name(given: dict, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        resolve_parameters(given)


def test_defaults_are_those_of_transformers() -> None:
    parameters = resolve_parameters({})
    # transformers 5.23, GenerationConfig._get_default_generation_params
    expected = {
        "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0,
        "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_return_sequences": 1,
    }  # fmt: skip
    assert {name: getattr(parameters, name) for name in expected} == expected


def test_numpy_numbers_json_floats_and_none_are_fine() -> None:
    parameters = resolve_parameters(
        {
            "temperature": np.float32(0.5),
            "top_k": np.int64(7),
            "max_new_tokens": 12.0,
            "do_sample": np.bool_(True),
            "top_p": None,
            "logit_bias": {"13": -math.inf, 14: 2},
            "stop": "x",
            "stop_strings": None,
            "use_cache": True,
            "num_beams": 1,
            "pad_token_id": 0,
        }
    )
    assert (parameters.temperature, parameters.top_k, parameters.max_new_tokens) == (0.5, 7, 12)
    assert (parameters.do_sample, parameters.top_p, parameters.stop) == (True, 1.0, ("x",))
    assert parameters.logit_bias == {13: -math.inf, 14: 2.0}
    assert resolve_parameters({"stop_strings": ["a", "b", "a"]}).stop == ("a", "b")


@pytest.mark.parametrize(
    ("given", "file", "samples"),
    [
        ({}, {}, False),
        ({}, {"do_sample": True}, True),
        ({}, {"temperature": 0.6}, False),
        ({"temperature": 0.8}, {}, True),
        ({"temperature": 1.0}, {}, True),
        ({"temperature": 0}, {}, False),
        ({"temperature": 0}, {"do_sample": True}, False),
        ({"temperature": 0, "do_sample": True}, {}, False),
        ({"temperature": 0.8, "do_sample": False}, {"do_sample": True}, False),
        ({"temperature": 0.8}, {"do_sample": False}, True),
        ({"top_k": 5}, {}, True),
        ({"top_p": 0.9}, {}, True),
        ({"min_p": 0.1}, {}, True),
        ({"typical_p": 0.9}, {}, True),
        ({"seed": 0}, {}, True),
        ({"seed": 0, "temperature": 0}, {}, False),
        ({"repetition_penalty": 1.2}, {}, False),
        ({"do_sample": None, "temperature": None}, {}, False),
        ({"do_sample": True}, {"temperature": 0.0}, False),
    ],
    ids=str,
)
def test_when_tokens_are_drawn(given: dict, file: dict, samples: bool) -> None:
    assert resolve_parameters(given, file).do_sample is samples


def test_the_call_wins_over_the_file_and_the_file_over_the_default() -> None:
    file = {
        "_from_model_config": True, "bos_token_id": 0, "eos_token_id": [1, 2], "transformers_version": "4.45",
        "do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": None, "max_new_tokens": 7,
    }  # fmt: skip
    parameters = resolve_parameters({"top_p": 0.5}, file, eos_token_ids=(1, 2))
    assert (parameters.temperature, parameters.top_p, parameters.top_k) == (0.6, 0.5, 50)
    assert (parameters.max_new_tokens, parameters.default_max_new_tokens) == (None, 7)
    assert parameters.eos_token_ids == (1, 2)
    assert resolve_parameters({"eos_token_id": 5}, file, (1, 2)).eos_token_ids == (5,)
    assert resolve_parameters({"eos_token_id": []}, file, (1, 2)).eos_token_ids == ()
    short = resolve_parameters({"max_new_tokens": 3}, {"min_new_tokens": 5})
    assert (short.max_new_tokens, short.min_new_tokens) == (3, 0)


def test_a_file_is_checked_and_its_unsupported_settings_are_named() -> None:
    with pytest.raises(ParameterError, match=r"^generation_config.json: temperature is -1"):
        resolve_parameters({}, {"temperature": -1})
    file = {"num_beams": 4, "suppress_tokens": [1], "guidance_scale": 1.0, "top_k": 3, "min_length": 0}
    assert ignored_settings(file) == ["num_beams=4", "suppress_tokens=[1]"]
    assert resolve_parameters({}, file).top_k == 3


def test_room_for_the_answer() -> None:
    def limit(prompt: int, context: int, file: dict | None = None, **given: int) -> int:
        return resolve_parameters(given, file).new_token_limit(prompt, context)

    assert limit(10, 4096) == 128
    assert limit(4000, 4096) == 96, "a default is cut to the room"
    assert limit(10, 4096, max_new_tokens=500) == 500
    assert limit(10, 20, max_new_tokens=10) == 10
    assert limit(10, 4096, max_length=30) == 20
    assert limit(10, 4096, {"max_new_tokens": 50}) == 50
    assert limit(4090, 4096, {"max_new_tokens": 50}) == 6
    assert limit(10, 4096, {"max_length": 100}) == 90
    assert limit(30, 4096, {"max_length": 20}) == 128, "a file's limit that the prompt exceeds says nothing"
    assert limit(10, 4096, {"max_length": 100}, max_new_tokens=200) == 200
    assert limit(10, 4096, min_new_tokens=200) == 200
    with pytest.raises(ContextError, match=r"has 15 tokens and .* holds 20: 5 tokens are left .* asks for 6"):
        limit(15, 20, max_new_tokens=6)
    with pytest.raises(ContextError, match="10 tokens are left for the answer, and max_length asks for 11"):
        limit(10, 20, max_length=21)
    with pytest.raises(ContextError, match="has 30 tokens and max_length, which counts them too, is 30"):
        limit(30, 4096, max_length=30)
    for prompt in (4096, 5000):
        with pytest.raises(
            ContextError, match=f"{prompt:,} tokens and the model's context holds 4,096: .* no room"
        ):
            limit(prompt, 4096)


def test_the_names_in_the_types_are_those_that_are_taken() -> None:
    taken = {name for name in GenerationParameters.__dataclass_fields__ if not name.startswith("default_")}
    assert set(Parameters.__annotations__) == taken | {"stop_strings", "eos_token_id"}
