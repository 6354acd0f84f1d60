"""Chat templates against transformers itself: the committed forms, and thousands of generated ones."""

from __future__ import annotations

import datetime
import importlib.util
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tinylm
from tinylm.chat_template import render
from tinylm.errors import ChatTemplateError
from tinylm.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "tests" / "fixtures" / "chat_templates"


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location(
        "make_chat_goldens", ROOT / "scripts" / "make_chat_goldens.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()
CASES = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))}


@pytest.fixture(autouse=True)
def _pinned_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    moment: datetime.datetime = SCRIPT.MOMENT
    monkeypatch.setattr("tinylm.chat_template.functions.current_time", lambda: moment)


def ours(template: str, case: dict[str, Any]) -> str | None:
    options = {name: value for name, value in case.items() if name not in ("name", "messages", "variables")}
    options = {"bos_token": "<s>", "eos_token": "</s>", **options, **case.get("variables", {})}
    try:
        return render(template, case["messages"], **options)
    except ChatTemplateError:
        return None


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_committed_forms(name: str) -> None:
    for case in CASES:
        assert ours(TEMPLATES[name], case) == SCRIPT.transformers_render(TEMPLATES[name], case), case["name"]


# Parts of which expressions are put together at random.
VALUES = """
    messages messages[0] messages[0].content messages[-1]['content'] messages[1:] messages[0].content[::-1]
    missing none true 0 7 -2 2.5 'a' '' "it's é"
    ' spaced ' 'a,b' [1,2,3] ['b','A','a'] [] (1,'x') {'a':1,'b':[2]} {} [{'k':1},{'k':3}] (range(3)|list) ns.count
    loop.index loop.last x <safe> 'x\\ny'
""".split()  # noqa: SIM905
FILTERS = """
    trim upper lower title capitalize length string int float list first last join join('-') sort unique|list
    tojson tojson(indent=2) default('d') default('d',true) replace('a','bb') indent(2) e safe abs round sum min max
    items|list dictsort map('string')|list map('upper')|list select('string')|list reject('none')|list
    map(attribute='k')|list selectattr('k')|list rejectattr('k','eq',1)|list format(1) count d('z') list|join(',')
    map('trim')|list reverse|list
""".split()  # noqa: SIM905
TESTS = """
    defined none string number mapping iterable sequence odd even true boolean eq(1) in([1,'a']) divisibleby(2)
    integer float callable sameas(none) undefined
""".split()  # noqa: SIM905
OPERATORS = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", ">=", "in", "not in", "and", "or"]
METHODS = """
    .strip() .split() .split(',') .upper() .title() .startswith('a') .items()|list .get('a') .keys()|list ['a'] [0]
    .a .content .replace('a','x') .rstrip('a') .count('a') .find('a') .join(['q','r']) .index('a')
    .splitlines() .nothing .values()|list .lstrip() .partition(',') .isdigit() .format(1) .zfill(3)
""".split()  # noqa: SIM905


def expression(source: random.Random, depth: int = 0) -> str:
    """A random expression of Jinja."""
    choice = source.random()
    if depth > 3 or choice < 0.25:
        value = source.choice(VALUES)
        return "'<b>'|safe" if value == "<safe>" else value
    inner = expression(source, depth + 1)
    if choice < 0.5:
        return f"({inner})|{source.choice(FILTERS)}"
    if choice < 0.65:
        return f"({inner}){source.choice(METHODS)}"
    if choice < 0.75:
        return f"(({inner}) is {source.choice(['', 'not '])}{source.choice(TESTS)})"
    other = expression(source, depth + 1)
    if choice < 0.95:
        return f"(({inner}) {source.choice(OPERATORS)} ({other}))"
    return f"(({inner}) if ({other}) else {source.choice(VALUES[2:])})".replace("<safe>", "1")


def test_generated_expressions() -> None:
    source = random.Random(20250309)
    case = {"messages": [{"role": "user", "content": "A b, a."}, {"role": "assistant", "content": "ok"}]}
    shown = 0
    for _ in range(4000):
        body = expression(source)
        template = (
            "{% set ns = namespace(count=1) %}{% for x in ['a', 2] %}{% set ns.count = ns.count + 1 %}"
            "{{ " + body + " }};{% endfor %}"
        )
        expected = SCRIPT.transformers_render(template, case)
        assert ours(template, case) == expected, body
        shown += expected is not None
    assert shown > 500


def test_ids_as_transformers(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    bundled = Path(tinylm.__file__).parent / "stories260k"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled / name, tmp_path / name)
    tokenizer = Tokenizer.from_folder(tmp_path)
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    for name in ("llama2", "llama3_2", "gemma", "zephyr", "phi"):
        for case in CASES:
            if SCRIPT.transformers_render(TEMPLATES[name], case) is None:
                continue
            options = {
                key: value for key, value in case.items() if key not in ("name", "messages", "variables")
            }
            options |= {
                "chat_template": TEMPLATES[name],
                "strftime_now": "no clock",
                **case.get("variables", {}),
            }
            options |= {"date_string": "26 Jul 2024"}
            expected = theirs.apply_chat_template(case["messages"], return_dict=False, **options)
            assert tokenizer.apply_chat_template(case["messages"], **options) == expected, (
                name,
                case["name"],
            )
