"""What stands beside tokenizer.json in a model's folder."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tinylm.tokenizer import Tokenizer

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "tokenizers"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a small tokenizer.json."""
    added = [
        {"id": id, "content": content, "special": True}
        for id, content in ((2, "<s>"), (3, "</s>"), (4, "<p>"))
    ]
    document = {"model": {"vocab": {"a": 0, "b": 1}, "merges": []}, "added_tokens": added}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    return tmp_path


def write(folder: Path, name: str, content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


def test_the_published_folder_of_kl3m(tmp_path: Path) -> None:
    published = FIXTURES / "kl3m-002-170m"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes(gzip.decompress((published / f"{name}.gz").read_bytes()))
    (tmp_path / "special_tokens_map.json").write_bytes((published / "special_tokens_map.json").read_bytes())
    ours = Tokenizer.from_folder(tmp_path)
    assert (ours.bos_token, ours.eos_token, ours.pad_token) == ("<|start|>", "<|end|>", "<|pad|>")
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (0, 1, 2)
    assert ours.config["model_max_length"] == 4096
    assert ours.chat_template is None
    assert ours.vocab_size == 32_768


def test_a_tokenizer_json_alone_is_enough(folder: Path) -> None:
    ours = Tokenizer.from_folder(folder)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id, ours.config) == (None, None, None, {})
    assert ours.encode("ab<s>") == [0, 1, 2]


def test_special_tokens_from_either_file_the_config_first(folder: Path) -> None:
    write(
        folder, "tokenizer_config.json", {"bos_token": {"content": "<s>", "lstrip": False}, "pad_token": None}
    )
    write(folder, "special_tokens_map.json", {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<p>"})
    ours = Tokenizer.from_folder(folder)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (2, 3, 4)


def test_a_special_token_that_is_no_token_has_no_id(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"bos_token": "<nowhere>"})
    ours = Tokenizer.from_folder(folder)
    assert (ours.bos_token, ours.bos_token_id) == ("<nowhere>", None)


def test_chat_templates_from_the_config_or_from_files(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"chat_template": "one"})
    assert Tokenizer.from_folder(folder).chat_template == "one"
    named = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    write(folder, "tokenizer_config.json", {"chat_template": named})
    assert Tokenizer.from_folder(folder).chat_template == {"default": "one", "tool_use": "two"}
    write(folder, "chat_template.jinja", "three")
    assert Tokenizer.from_folder(folder).chat_template == "three"
    write(folder, "additional_chat_templates/rag.jinja", "four")
    assert Tokenizer.from_folder(folder).chat_template == {"default": "three", "rag": "four"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", "[1]", "must hold an object, but holds \\[1\\]"),
        ("special_tokens_map.json", {"eos_token": 3}, "eos_token is 3; it must be a string or an object"),
        ("tokenizer_config.json", {"bos_token": {"content": 1}}, "bos_token is {'content': 1}; it must be"),
        ("tokenizer_config.json", {"chat_template": 5}, "chat_template must be a string or a list"),
        (
            "tokenizer_config.json",
            {"chat_template": [{"name": "x"}]},
            "chat_template must be a string or a list",
        ),
        ("tokenizer.json", "", "tokenizer.json is not JSON"),
        ("tokenizer.json", "[" * 100_000, "tokenizer.json is not JSON"),
    ],
)
def test_files_that_are_wrong(name: str, content: Any, message: str, folder: Path) -> None:
    write(folder, name, content)
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_folder(folder)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        Tokenizer.from_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no tokenizer\.json$"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\0")
    with pytest.raises(ValueError, match=r"has no tokenizer\.json; its tokenizer\.model must be converted"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere\.json cannot be read: No such file"):
        Tokenizer.from_file(tmp_path / "nowhere.json")


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(ValueError, match=r"tokenizer\.json is not UTF-8"):
        Tokenizer.from_folder(tmp_path)
