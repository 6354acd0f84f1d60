"""Chats: answers of the story model under a small template, and how little of a prompt is read twice."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tinylm
from tinylm import Conversation
from tinylm.chat import end_of_turn_ids, shared_length
from tinylm.errors import ChatTemplateError, ContextError, ParameterError
from tinylm.language_model import LanguageModel

pytest.importorskip("jinja2")

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('Who is ' ~ m.role ~ '?') }}{% endif %}"
    "{{ m.role }}:\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
STORY = [{"role": "user", "content": "Tell me a story about a cat."}]


def make_folder(folder: Path, template: str | None = TEMPLATE) -> Path:
    """The bundled story model, as a chat model."""
    shutil.copytree(Path(tinylm.__file__).parent / "stories260k", folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tinylm.load(make_folder(tmp_path_factory.mktemp("models") / "chat"))


@pytest.fixture
def read(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many tokens each prompt made the engine read."""
    counts: list[int] = []
    prefill = model.engine.prefill

    def counted(sequence: Any, ids: Any, progress: Any = None) -> Any:
        counts.append(len(ids))
        return prefill(sequence, ids, progress)

    monkeypatch.setattr(model.engine, "prefill", counted)
    monkeypatch.setattr(model, "_read", type(model._read)())
    return counts


def afresh(model: LanguageModel, messages: list[dict[str, Any]], **parameters: Any) -> str:
    """The answer without anything kept from before."""
    text = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ends = end_of_turn_ids(model)
    return str(model.generate(text, add_special_tokens=False, eos_token_ids=ends, **parameters))


def test_an_answer_is_that_of_the_rendered_text(model: LanguageModel) -> None:
    told = model.chat(STORY, max_new_tokens=20)
    assert told.prompt_ids == model.tokenizer.encode(
        "<s>user:\nTell me a story about a cat.</s>\nassistant:\n", add_special_tokens=False
    )
    assert str(told) == afresh(model, STORY, max_new_tokens=20)
    assert "".join(model.stream_chat(STORY, max_new_tokens=20)) == str(told)
    drawn = [model.chat(STORY, max_new_tokens=20, temperature=1.0, seed=seed).text for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_only_what_is_new_is_read(model: LanguageModel, read: list[int]) -> None:
    messages = list(STORY)
    for text in ("And then?", "Who was that?", "The end?"):
        told = model.chat(messages, max_new_tokens=25)
        assert str(told) == afresh(model, messages, max_new_tokens=25)
        whole, alone = read[-1], read[-2]
        assert whole == len(told.prompt_ids)
        if len(messages) > 1:
            assert alone < whole / 2
        messages += [{"role": "assistant", "content": told.text}, {"role": "user", "content": text}]
    # Another conversation shares the beginning alone.
    other = [{"role": "user", "content": "Tell me a story about a dog."}]
    told = model.chat(other, max_new_tokens=5)
    assert 1 < read[-1] < len(told.prompt_ids)
    # And the same again reads its last token, for the logits.
    assert model.chat(other, max_new_tokens=5).ids == told.ids
    assert read[-1] == 1


def test_what_is_reused_is_told(model: LanguageModel) -> None:
    talk = Conversation(model)
    first = talk.stream("Tell me a story.", max_new_tokens=10)
    list(first)
    assert first.reused_tokens == 0
    second = talk.stream("More.", max_new_tokens=10)
    list(second)
    # All of the first prompt; the answer too, but for a last token that was never read.
    assert second.reused_tokens >= len(first.completion.prompt_ids)


def test_the_last_message_can_be_continued(model: LanguageModel) -> None:
    messages = [*STORY, {"role": "assistant", "content": "Once upon a time, there was a cat named"}]
    told = model.chat(messages, continue_final_message=True, max_new_tokens=8)
    assert told.prompt_ids[-1] != model.tokenizer.eos_token_id
    assert "assistant:\nOnce upon a time, there was a cat named" in model.tokenizer.decode(told.prompt_ids)
    assert told.text


def test_templates_variables_and_tools_reach_the_template(tmp_path: Path) -> None:
    model = tinylm.load(make_folder(tmp_path / "m", "{{ tools | tojson }}{{ style }}{{ documents[0].text }}"))
    told = model.chat(
        STORY, tools=[{"name": "f"}], documents=[{"text": "D"}], variables={"style": "S"}, max_new_tokens=1
    )
    assert told.prompt_ids == model.tokenizer.encode('[{"name": "f"}]SD', add_special_tokens=False)
    told = model.chat(STORY, chat_template="another", max_new_tokens=1)
    assert told.prompt_ids == model.tokenizer.encode("another", add_special_tokens=False)


def test_mistakes(model: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ChatTemplateError, match=r"refuses these messages: Who is parrot\?"):
        model.chat([{"role": "parrot", "content": "Hi"}])
    with pytest.raises(ParameterError, match="a chat has one answer"):
        model.chat(STORY, num_return_sequences=2, do_sample=True)
    with pytest.raises(ParameterError, match="did you mean temperature"):
        model.chat(STORY, temperatur=1.0)  # type: ignore[call-arg]
    with pytest.raises(ContextError, match="asks for 100,000"):
        model.chat(STORY, max_new_tokens=100_000)
    plain = tinylm.load(make_folder(tmp_path / "plain", None))
    for ask in (lambda: plain.chat(STORY), lambda: Conversation(plain)):
        with pytest.raises(ChatTemplateError, match="this model has no chat template"):
            ask()


def test_answers_end_where_the_template_ends_a_turn(tmp_path: Path, model: LanguageModel) -> None:
    assert end_of_turn_ids(model) == [model.tokenizer.eos_token_id]
    for template, expected in [
        ("{% for m in messages %}{{ m.content }} <unk>\n{% endfor %}", [0]),
        ("{% for m in messages %}{{ m.content }} and {% endfor %}", []),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", []),
        ("{{ raise_exception('no') }}", []),
    ]:
        folder = make_folder(tmp_path / str(len(list(tmp_path.iterdir()))), template)
        assert end_of_turn_ids(tinylm.load(folder)) == expected


def test_answers_may_be_long_unless_told_otherwise(model: LanguageModel) -> None:
    told = model.chat(STORY)
    assert len(told.ids) == model.engine.context_length - len(told.prompt_ids) or told.finish_reason == "stop"
    assert len(told.ids) > 128


def test_two_threads_chat_at_once(model: LanguageModel) -> None:
    asked = [
        [{"role": "user", "content": f"Tell me about {thing}."}] for thing in ("a cat", "the sun", "Tom")
    ]
    expected = [afresh(model, messages, max_new_tokens=15) for messages in asked]
    found: dict[int, list[str]] = {0: [], 1: [], 2: []}

    def run(number: int) -> None:
        for _ in range(4):
            found[number].append(str(model.chat(asked[number], max_new_tokens=15)))

    threads = [threading.Thread(target=run, args=(number,)) for number in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [expected[number]] * 4 for number in found}


# Conversations


def test_a_conversation_keeps_its_messages(model: LanguageModel) -> None:
    talk = Conversation(model, system="Be kind.")
    first = talk.say("Hello.", max_new_tokens=12)
    assert [m["role"] for m in talk.messages] == ["system", "user", "assistant"]
    assert talk.messages[2]["content"] == first.text
    second = talk.say("More.", max_new_tokens=12)
    assert second.text == afresh(model, talk.messages[:-1], max_new_tokens=12)
    assert talk.used_tokens == len(talk.ids()) > len(second.prompt_ids)
    assert talk.render().startswith("<s>system:\nBe kind.</s>\nuser:\nHello.</s>\nassistant:\n")


def test_retry_reset_and_system(model: LanguageModel) -> None:
    talk = Conversation(model)
    with pytest.raises(ChatTemplateError, match="nothing was said yet"):
        talk.retry()
    talk.say("Hello.", max_new_tokens=12, temperature=1.0, seed=1)
    before = talk.messages[-1]["content"]
    again = "".join(talk.retry(max_new_tokens=12, temperature=1.0, seed=2))
    assert len(talk.messages) == 2
    assert talk.messages[-1]["content"] == again != before
    talk.system = "Be brief."
    talk.system = "Be kind."
    assert [m["role"] for m in talk.messages] == ["system", "user", "assistant"]
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "Be kind."}]
    assert talk.system == "Be kind."
    talk.system = None
    assert talk.messages == []
    assert talk.used_tokens == 0


def test_an_answer_that_is_left_early_counts_as_far_as_it_came(model: LanguageModel) -> None:
    talk = Conversation(model)
    told = talk.stream("Hello.", max_new_tokens=50)
    pieces = [next(told), next(told)]
    told.close()
    assert told.completion.finish_reason == "interrupted"
    assert talk.messages[-1] == {"role": "assistant", "content": "".join(pieces)}
    assert talk.say("More.", max_new_tokens=5).text == afresh(model, talk.messages[:-1], max_new_tokens=5)


def test_an_interrupt_before_the_first_word_takes_the_message_back(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Conversation(model)
    talk.say("Hello.", max_new_tokens=5)
    said = list(talk.messages)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model.engine, "prefill", interrupted)
        with pytest.raises(KeyboardInterrupt):
            talk.say("More.")
        assert talk.messages == said
        with pytest.raises(KeyboardInterrupt):
            list(talk.retry())
        assert talk.messages == said
    assert talk.say("More.", max_new_tokens=5).text == afresh(model, talk.messages[:-1], max_new_tokens=5)


def test_a_full_context_tells_the_counts_and_what_to_drop(model: LanguageModel) -> None:
    talk = Conversation(model, system="Be kind.")
    with pytest.raises(ContextError, match="this message is too long for this model"):
        talk.say("word " * 600)
    for number in range(3):
        talk.say(f"Message {number}: " + "the cat sat " * 10, max_new_tokens=20)
    said = list(talk.messages)
    turns = talk.turns()
    assert [turn.text[:9] for turn in turns] == ["Message 0", "Message 1", "Message 2"]
    long = "the dog ran " * 90
    with pytest.raises(ContextError) as caught:
        talk.say(long)
    assert talk.messages == said
    assert "context holds 512" in str(caught.value)
    assert f"the oldest of the 3 turns before takes {turns[0].tokens:,}" in str(caught.value)
    before = talk.used_tokens
    assert talk.drop() == 1
    assert before - talk.used_tokens == turns[0].tokens
    assert [m["role"] for m in talk.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert talk.drop(9) == 2
    assert talk.messages == [{"role": "system", "content": "Be kind."}]
    assert talk.say(long, max_new_tokens=5).text == afresh(model, talk.messages[:-1], max_new_tokens=5)


def test_an_answer_ends_where_the_context_does(model: LanguageModel) -> None:
    talk = Conversation(model)
    told = talk.say("the dog ran " * 92)
    room = model.engine.context_length - len(told.prompt_ids)
    assert told.finish_reason in ("length", "stop")
    assert len(told.ids) <= room


def test_save_and_load(model: LanguageModel, tmp_path: Path) -> None:
    talk = Conversation(model, system="Grüße 日本", variables={"style": "S"}, tools=[{"name": "f"}])
    talk.say("Hello.", max_new_tokens=5)
    file = tmp_path / "talk.json"
    talk.save(file)
    again = Conversation.load(model, file)
    assert again.messages == talk.messages
    assert again.variables == talk.variables
    assert again.options == talk.options
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]
    assert "Grüße 日本" in file.read_text(encoding="utf-8")

    file.write_text(json.dumps(STORY), encoding="utf-8")  # a bare list of messages, as others keep them
    assert Conversation.load(model, file).messages == STORY


@pytest.mark.parametrize(
    "content",
    [
        "no JSON", "{}", "5", '{"format": "another", "messages": []}', "[5]", '[{"role": "user"}]',
        '{"format": "tinylm conversation", "version": 2, "messages": []}', "[" * 100_000,
        '{"format": "tinylm conversation", "messages": "text"}',
    ],
)  # fmt: skip
def test_a_file_that_holds_no_conversation(model: LanguageModel, tmp_path: Path, content: str) -> None:
    file = tmp_path / "talk.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ChatTemplateError):
        Conversation.load(model, file)


def test_shared_length() -> None:
    assert shared_length([1, 2, 3], [1, 2, 3, 4]) == 3
    assert shared_length([1, 2, 3], [1, 5, 3]) == 1
    assert shared_length([], [1]) == 0
    assert shared_length([2], [1]) == 0
