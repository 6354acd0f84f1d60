"""A conversation of several turns, with what was read before reused, against transformers reading all of it."""

from __future__ import annotations

import pytest

import tinylm
from tinylm.sources import catalog

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MODEL = "smollm2-135m-instruct"
QUESTIONS = (
    "What is the capital of France?",
    "And of Italy? Tell me two facts about it.",
    "Thanks! Write a haiku about it.",
    "Now say it in Italian.",
)


def test_turns_as_transformers() -> None:
    folder = catalog.folder_of(MODEL)
    if folder is None:
        pytest.skip(f"{MODEL} is not here: tinylm pull {MODEL}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    talk = tinylm.Conversation(tinylm.load(folder), system="You are brief.")
    for question in QUESTIONS:
        told = talk.stream(question, max_new_tokens=40)
        text = "".join(told)
        ids = tokenizer.apply_chat_template(talk.messages[:-1], add_generation_prompt=True, return_dict=False)
        written = theirs.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[
            0, len(ids) :
        ].tolist()
        assert told.completion.prompt_ids == ids
        assert told.completion.ids == written
        assert text == tokenizer.decode(written, skip_special_tokens=True)
    assert told.reused_tokens > len(told.completion.prompt_ids) / 2
