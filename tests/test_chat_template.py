"""Chat templates render as in transformers, and a hostile one ends in an error soon."""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import tinylm
from tinylm.chat_template import render
from tinylm.errors import ChatTemplateError
from tinylm.tokenizer import Tokenizer

pytest.importorskip("jinja2")

FOLDER = Path(__file__).resolve().parent / "fixtures" / "chat_templates"
MOMENT = datetime.datetime(2025, 3, 9, 14, 5, 6)


def load(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


CASES = load("cases.json")
GOLDENS = load("goldens.json")
EXPRESSIONS = load("expressions.json")
USER = [{"role": "user", "content": "Hi"}]


@pytest.fixture(autouse=True)
def _pinned_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinylm.chat_template.functions.current_time", lambda: MOMENT)


def render_case(template: str, case: dict[str, Any]) -> str | None:
    """The text, or None for a refusal, as the goldens have it."""
    options = {name: value for name, value in case.items() if name not in ("name", "messages", "variables")}
    options = {"bos_token": "<s>", "eos_token": "</s>", **options, **case.get("variables", {})}
    try:
        return render(template, case["messages"], **options)
    except ChatTemplateError:
        return None


@pytest.mark.parametrize("name", sorted(GOLDENS["templates"]))
def test_renders_as_transformers(name: str) -> None:
    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    for case in CASES:
        assert render_case(template, case) == GOLDENS["templates"][name][case["name"]], case["name"]


@pytest.mark.parametrize("template", EXPRESSIONS["templates"])
def test_expressions_as_in_transformers(template: str) -> None:
    assert render_case(template, EXPRESSIONS["case"]) == GOLDENS["expressions"][template]


def test_every_template_was_rendered_and_some_refuse() -> None:
    assert len(GOLDENS["templates"]) >= 12
    for name, texts in GOLDENS["templates"].items():
        assert sum(text is not None for text in texts.values()) >= 12, name


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "no messages"),
        ("Hi", "a list of"),
        ({"role": "user", "content": "Hi"}, "a list of"),
        (["Hi"], r"messages\[0\] is a str"),
        ([{"content": "Hi"}], r"messages\[0\] has no 'role'"),
        ([{"role": 1, "content": "Hi"}], r"messages\[0\] has no 'role'"),
        ([{"role": "user"}], r"messages\[0\] has no 'content'"),
        ([{"role": "user", "content": None}], r"messages\[0\] has no 'content'"),
        ([*USER, {"role": "user", "content": 5}], r"messages\[1\]\['content'\] is a int"),
        ([{"role": "user", "content": [5]}], r"messages\[0\]\['content'\]\[0\] is a int"),
        ([{"role": "user", "content": "a", "image": object()}], r"messages\[0\] holds a object"),
        ([{"role": "user", "content": "a", "n": 1 << 2000}], "beyond 1,024 bits"),
    ],
)
def test_wrong_messages_are_named(messages: Any, said: str) -> None:
    with pytest.raises(ChatTemplateError, match=said):
        render("{{ messages }}", messages)


def test_wrong_tools_and_documents_are_named() -> None:
    def tool() -> None: ...

    with pytest.raises(ChatTemplateError, match=r"tools\[0\] is a function, not a JSON schema"):
        render("x", USER, tools=[tool])  # type: ignore[list-item]
    with pytest.raises(ChatTemplateError, match=r"documents\[0\] is a str"):
        render("x", USER, documents=["text"])  # type: ignore[list-item]
    with pytest.raises(ChatTemplateError, match="tools are a list, not a dict"):
        render("x", USER, tools={})  # type: ignore[arg-type]


def test_the_caller_keeps_his_messages() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    before = json.dumps(messages)
    render("{{ messages[0].content[0].text }}", messages, continue_final_message=True)
    assert json.dumps(messages) == before


def test_no_template_is_invented() -> None:
    for nothing in (None, {}, []):
        with pytest.raises(ChatTemplateError, match="no chat template"):
            render(nothing, USER)


def test_one_of_several_templates() -> None:
    named = {"default": "D", "tool_use": "T", "rag": "R"}
    listed = [{"name": name, "template": template} for name, template in named.items()]
    for several in (named, listed):
        assert render(several, USER) == "D"
        assert render(several, USER, tools=[]) == "T"
        assert render(several, USER, template_name="rag") == "R"
        with pytest.raises(ChatTemplateError, match="no chat template 'x'; this model has 'default', 'rag'"):
            render(several, USER, template_name="x")
    assert render({"default": "D"}, USER, tools=[]) == "D"
    with pytest.raises(ChatTemplateError, match="no chat template 'default'; this model has 'rag'"):
        render({"rag": "R"}, USER)
    with pytest.raises(ChatTemplateError, match="a single one"):
        render("D", USER, template_name="rag")
    with pytest.raises(ChatTemplateError, match="'name'"):
        render([{"rag": "R"}], USER)


def test_errors_say_what_and_where() -> None:
    with pytest.raises(ChatTemplateError, match="refuses these messages: No pirates"):
        render("{{ raise_exception('No pirates') }}", USER)
    with pytest.raises(ChatTemplateError, match="not valid, line 3: "):
        render("\n\n{% if %}", USER)
    with pytest.raises(ChatTemplateError, match="fails at line 2: 'nothing' is undefined"):
        render("first\n{{ nothing.at_all }}", USER)
    with pytest.raises(ChatTemplateError, match="No filter named 'wordwrap'"):
        render("{{ 'a' | wordwrap }}", USER)
    with pytest.raises(ChatTemplateError, match="exclude each other"):
        render("x", USER, add_generation_prompt=True, continue_final_message=True)
    with pytest.raises(ChatTemplateError, match="leaves out parts"):
        render("{# content #}{{ messages[0].role }}", USER, continue_final_message=True)
    with pytest.raises(ChatTemplateError, match="'content' cannot be continued"):
        render("{{ messages[0].role }}", USER, continue_final_message=True)


def test_a_missing_token_is_undefined_and_not_the_word_none() -> None:
    assert render("[{{ bos_token }}]", USER) == "[]"
    assert render("[{{ bos_token }}]", USER, bos_token="<s>") == "[<s>]"


def test_without_jinja_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['jinja2'] = None\n"
        "from tinylm.chat_template import render\n"
        "render('x', [{'role': 'user', 'content': 'Hi'}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtraError" in done.stderr
    assert "pip install 'tinylm[chat]'" in done.stderr


def test_many_threads_render_at_once() -> None:
    template = (FOLDER / "qwen3.jinja").read_text(encoding="utf-8")
    case = next(case for case in CASES if case["name"] == "tools called, prompt")
    expected = GOLDENS["templates"]["qwen3"][case["name"]]
    found: list[str | None] = []
    threads = [
        threading.Thread(target=lambda: found.extend(render_case(template, case) for _ in range(20)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 80


def test_a_long_honest_conversation_is_far_from_the_limits() -> None:
    template = (FOLDER / "mistral_tools.jinja").read_text(encoding="utf-8")
    turns = [{"role": ["user", "assistant"][i % 2], "content": f"{i} " + "word " * 200} for i in range(401)]
    text = render(template, turns, bos_token="<s>", eos_token="</s>")
    assert text.count("[INST]") == 201
    assert len(text) > 400_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The bundled model's tokenizer with a chat template."""
    bundled = Path(tinylm.__file__).parent / "stories260k"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled / name, tmp_path / name)
    (tmp_path / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
        encoding="utf-8",
    )
    return tmp_path


def test_the_tokenizer_applies_its_template(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    text = tokenizer.apply_chat_template(USER, tokenize=False)
    assert text == "<s>user: Hi</s>"
    ids = tokenizer.apply_chat_template(USER, add_generation_prompt=True)
    assert ids == tokenizer.encode("<s>user: Hi</s>assistant:", add_special_tokens=False)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.apply_chat_template(USER, tokenize=False, bos_token="[B]") == "[B]user: Hi</s>"
    assert tokenizer.apply_chat_template(USER, tokenize=False, chat_template="{{ unk_token }}") == "<unk>"
    answer = [*USER, {"role": "assistant", "content": "Yes"}]
    assert tokenizer.apply_chat_template(answer, tokenize=False, continue_final_message=True).endswith(
        ": Yes"
    )


def test_the_tokenizers_other_templates(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(
        "T{{ tools | length }}", encoding="utf-8"
    )
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.apply_chat_template(USER, tokenize=False).startswith("<s>")
    assert tokenizer.apply_chat_template(USER, tokenize=False, tools=[{}]) == "T1"
    assert tokenizer.apply_chat_template(USER, tokenize=False, chat_template="tool_use", tools=[]) == "T0"
    assert tokenizer.apply_chat_template(USER, tokenize=False, chat_template="{{ 1 }}") == "1"


def test_a_tokenizer_without_a_template_says_so(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ChatTemplateError, match="this model has no chat template"):
        Tokenizer.from_folder(folder).apply_chat_template(USER)
