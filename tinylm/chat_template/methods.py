"""The methods of texts, dicts and lists that a chat template may call, and `%`.

Each is Python's own. Where the result can be larger than what it is made of (`replace`, `join`,
`format`), its size is worked out first; where the time can be more than a pass over the text
(`rfind`, `strip` with characters), the budget pays for it first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from jinja2.sandbox import SandboxedFormatter

from tinylm.chat_template.budget import SCALARS, LimitError

if TYPE_CHECKING:
    from tinylm.chat_template.environment import LimitedEnvironment

WIDEST = 999  # of a padded field, an indent
# One field of a % format: name, flags, width, precision, kind. A width by `*` is none of ours.
PERCENT_FIELD = re.compile(r"%(?:\([^()%]*\))?[-+ #0]*\d{0,3}(?:\.\d{0,3})?[hlL]?[diouxXeEfFgGcrsa%]")
WIDE = re.compile(r"\d{4,}")

Method = Callable[["LimitedEnvironment", Any], Callable[..., Any]]


def percent_text(environment: LimitedEnvironment, form: str, given: Any) -> str:
    """`form % given`: its widths are bounded, and the largest value would fit into every field."""
    fields, rest = len(PERCENT_FIELD.findall(form)), PERCENT_FIELD.sub("", form)
    if "%" in rest:
        raise LimitError(f"the format {form[:40]!r} is not allowed")
    values: Iterable[Any] = [given]
    if isinstance(given, (tuple, dict)):
        values = given.values() if isinstance(given, dict) else given
    largest = max((environment.weigh(value)[0] for value in values), default=0)
    environment.room_for(len(form) + fields * (largest * 16 + WIDEST))
    made: str = environment.made(form % given)
    return made


def replace_text(environment: LimitedEnvironment, text: str, old: str, new: str, count: int = -1) -> str:
    """`text.replace(old, new, count)`."""
    environment.pay_for(text, old, new)
    found = text.count(old)
    found = found if count < 0 else min(found, count)
    environment.room_for(len(text) + found * max(len(new) - len(old), 0))
    made: str = environment.made(text.replace(old, new, count))
    return made


def join_text(environment: LimitedEnvironment, separator: str, values: Iterable[Any]) -> str:
    """`separator.join(values)`."""
    pieces = list(environment.iterate(values))
    characters = sum(len(piece) for piece in pieces if isinstance(piece, str))
    environment.room_for(characters + len(separator) * len(pieces))
    made: str = environment.made(separator.join(pieces))
    return made


def strip_text(environment: LimitedEnvironment, text: str, name: str, characters: str | None = None) -> str:
    """`text.strip(characters)` or its one-sided forms: each character may be looked for in all of them."""
    environment.charge((len(text) * len(characters or " ")) >> 10)
    made: str = environment.made(getattr(text, name)(characters))
    return made


class LimitedFormatter(SandboxedFormatter):
    """`"{a} {b.c}".format(...)` through the sandbox, with bounded widths."""

    def __init__(self, environment: LimitedEnvironment) -> None:
        super().__init__(environment)
        self.environment = environment

    def format_field(self, value: Any, format_spec: str) -> str:
        """One field as text."""
        if WIDE.search(format_spec):
            raise LimitError(f"the format {format_spec[:40]!r} is not allowed")
        if format_spec and (isinstance(value, str) or type(value) in SCALARS):
            return str(self.environment.made(format(value, format_spec)))
        return self.environment.text(value)

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """`!r` and `!s`."""
        if conversion in ("r", "a"):
            self.environment.text(value)  # refuses and pays; then its other spelling is as bounded
        return super().convert_field(value if conversion != "s" else self.environment.text(value), conversion)


def format_text(environment: LimitedEnvironment, text: str) -> Callable[..., str]:
    """`text.format`."""

    def call(*arguments: Any, **keywords: Any) -> str:
        return LimitedFormatter(environment).vformat(str(text), arguments, keywords)

    return call


def linear(name: str) -> Method:
    """A method that makes one pass and nothing much larger than it reads."""

    def bind(environment: LimitedEnvironment, value: Any) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            environment.pay_for(value, *arguments)
            return environment.made(getattr(value, name)(*arguments, **keywords))

        return call

    return bind


def backward(name: str) -> Method:
    """A search from the end, which Python does in the time of the product of both lengths."""

    def bind(environment: LimitedEnvironment, text: Any) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            sought = keywords.get("sep", arguments[0] if arguments else None)
            environment.charge((len(text) * len(sought or " ")) >> 8)
            return linear(name)(environment, text)(*arguments, **keywords)

        return call

    return bind


def padded(name: str) -> Method:
    """A method that pads to a width."""

    def bind(environment: LimitedEnvironment, text: Any) -> Callable[..., Any]:
        def call(width: int, *arguments: Any) -> Any:
            if width > WIDEST:
                raise LimitError(f"padding to {width:,} characters is not allowed")
            return environment.made(getattr(text, name)(width, *arguments))

        return call

    return bind


def of_text(function: Callable[..., Any], *fixed: Any) -> Method:
    """One of the functions above, as a method."""

    def bind(environment: LimitedEnvironment, text: Any) -> Callable[..., Any]:
        return lambda *arguments, **keywords: function(environment, text, *fixed, *arguments, **keywords)

    return bind


def keyed(name: str) -> Method:
    """A method of a dict that takes a key."""

    def bind(environment: LimitedEnvironment, mapping: Any) -> Callable[..., Any]:
        return lambda key, *default: getattr(mapping, name)(environment.key(key), *default)

    return bind


def named(make: Callable[[str], Method], names: str) -> dict[str, Method]:
    """A table of methods of one sort."""
    return {name: make(name) for name in names.split()}


METHODS: dict[type, dict[str, Method]] = {
    str: {
        **named(
            linear,
            "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower "
            "isnumeric isspace istitle isupper lower partition removeprefix removesuffix split splitlines "
            "startswith swapcase title upper",
        ),
        **named(backward, "rfind rindex rpartition rsplit"),
        **named(padded, "center ljust rjust zfill"),
        **{name: of_text(strip_text, name) for name in ("strip", "lstrip", "rstrip")},
        "replace": of_text(replace_text),
        "join": of_text(join_text),
        "format": format_text,
    },
    dict: {**named(linear, "items keys values copy"), **named(keyed, "get")},
    list: named(linear, "index count copy"),
    tuple: named(linear, "index count"),
}
