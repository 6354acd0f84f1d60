"""What stands beside tokenizer.json in a model's folder: names of special tokens, the chat template."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinylm.errors import TokenizerError

from .fields import show

LARGEST_FILE = 1 << 30
"""Bytes; no tokenizer comes near it."""


@dataclass(frozen=True)
class Beside:
    """The files beside a tokenizer.json."""

    config: dict[str, Any]
    special_tokens: dict[str, str]
    chat_template: str | dict[str, str] | None


def read_text(path: Path) -> str:
    """The text of a UTF-8 file."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise TokenizerError(f"{path} is {path.stat().st_size} bytes long; that is no tokenizer")
        return path.read_bytes().decode()
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8: {error}") from None


def tokenizer_file(folder: Path) -> Path:
    """The tokenizer.json of a folder."""
    path = folder / "tokenizer.json"
    if path.is_file():
        return path
    if not folder.is_dir():
        raise TokenizerError(f"there is no folder {folder}")
    others = sorted(
        {"tokenizer.model", "vocab.json", "merges.txt", "vocab.txt"} & {p.name for p in folder.iterdir()}
    )
    hint = f"; its {' and '.join(others)} must be converted to one first" if others else ""
    raise TokenizerError(f"{folder} has no tokenizer.json{hint}")


def read_beside(folder: Path) -> Beside:
    """The optional files of a folder; the newer place of a thing wins over the older."""
    config = read_object(folder / "tokenizer_config.json")
    older = read_object(folder / "special_tokens_map.json")
    special_tokens = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        for file, source in (("tokenizer_config.json", config), ("special_tokens_map.json", older)):
            token = special_token(source.get(name), f"{folder / file}: {name}")
            if token is not None:
                special_tokens[name] = token
                break
    named = read_templates(config.get("chat_template"), f"{folder / 'tokenizer_config.json'}: chat_template")
    return Beside(config, special_tokens, read_template_files(folder) or named)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise TokenizerError(f"{path} must hold an object, but holds {show(found)}")
    return found


def special_token(value: object, where: str) -> str | None:
    """A special token as files name it: a string, or an object with its content."""
    content = value.get("content") if isinstance(value, dict) else value
    if content is None or isinstance(content, str):
        return content
    raise TokenizerError(f"{where} is {show(value)}; it must be a string or an object with a content")


def read_template_files(folder: Path) -> str | dict[str, str] | None:
    """A chat template in a file of its own, and others by name in a folder beside it."""
    file = folder / "chat_template.jinja"
    others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    default = read_text(file) if file.is_file() else None
    if not others:
        return default
    named = {} if default is None else {"default": default}
    return named | {other.stem: read_text(other) for other in others}


def read_templates(value: object, where: str) -> str | dict[str, str] | None:
    """A chat template, or several by name as a list of objects."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        named = {entry.get("name"): entry.get("template") for entry in value}
        if all(isinstance(text, str) for pair in named.items() for text in pair):
            return named
    raise TokenizerError(f"{where} must be a string or a list of objects with name and template")
