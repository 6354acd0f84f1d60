"""Reading tokenizer.json with checks: every mistake is a `TokenizerError` that names the place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar, cast

from tinylm.errors import TokenizerError

Value = TypeVar("Value")

_REQUIRED: Any = object()


class Fields:
    """One JSON object; `where` is its path in the file, such as `pre_tokenizer.pretokenizers[1]`."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise TokenizerError(f"{where} must be an object, but is {show(value)}")
        self.values = cast("dict[str, object]", value)
        self.where = where

    def value(self, key: str, kind: type[Value], expected: str, default: Value = _REQUIRED) -> Value:
        """The value of a key, of exactly this type; a missing or null one is the default where there is one."""
        found = self.values.get(key)
        if type(found) is kind:
            return found
        if found is None and default is not _REQUIRED:
            return default
        state = "is missing" if key not in self.values else f"is {show(found)}"
        raise TokenizerError(f"{self.where}.{key} {state}; it must be {expected}")

    def text(self, key: str, default: str = _REQUIRED) -> str:
        """A string."""
        return self.value(key, str, "a string", default)

    def flag(self, key: str, default: bool = _REQUIRED) -> bool:
        """True or false."""
        return self.value(key, bool, "true or false", default)

    def count(self, key: str, default: int = _REQUIRED) -> int:
        """An integer of at least 0."""
        found = self.value(key, int, "an integer of at least 0", default)
        if found < 0:
            raise TokenizerError(f"{self.where}.{key} is {found}; it must be an integer of at least 0")
        return found

    def entries(self, key: str, default: list[object] = _REQUIRED) -> list[object]:
        """A list of anything."""
        return self.value(key, list, "a list", default)

    def character(self, key: str) -> str:
        """A string of one character."""
        found = self.text(key)
        if len(found) != 1:
            raise TokenizerError(f"{self.where}.{key} is {show(found)}; it must be one character")
        return found

    def choice(self, key: str, choices: Iterable[str], default: str = _REQUIRED) -> str:
        """One of some strings."""
        found = self.text(key, default)
        if found not in choices:
            raise TokenizerError(
                f"{self.where}.{key} is {show(found)}; it must be one of {', '.join(choices)}"
            )
        return found

    def inner(self, key: str) -> Fields:
        """The object of a key."""
        return Fields(self.values.get(key), f"{self.where}.{key}")

    def parts(self, key: str) -> list[Fields]:
        """The objects of a list."""
        return [
            Fields(value, f"{self.where}.{key}[{place}]") for place, value in enumerate(self.entries(key))
        ]

    def unsupported(self, what: str, choices: Iterable[str]) -> TokenizerError:
        """The error of a part whose type nobody here knows."""
        return TokenizerError(
            f"{self.where}: the {what} {show(self.values.get('type'))} is not supported; "
            f"supported are {', '.join(choices)}"
        )


def show(value: object) -> str:
    """A value as a message shows it: short, whatever it is."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
