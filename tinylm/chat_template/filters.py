"""The filters and tests that a chat template may use: those of published templates, and a few more.

Each is Jinja's own, or does what Jinja's does, behind a check that its cost is bounded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

from jinja2 import pass_context, pass_environment
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.runtime import Context, Undefined
from jinja2.tests import TESTS as JINJA_TESTS
from markupsafe import Markup, escape

from tinylm.chat_template.budget import Items, LimitError
from tinylm.chat_template.methods import WIDEST, join_text, percent_text, replace_text, strip_text

if TYPE_CHECKING:
    from tinylm.chat_template.environment import LimitedEnvironment

Filter = Callable[..., Any]


def check_path(*paths: Any) -> None:
    """Refuses an attribute path (`map(attribute="a.b")`) of thousands of parts."""
    if any(isinstance(path, str) and len(path) > WIDEST for path in paths):
        raise LimitError("so long an attribute is not allowed")


def over_items(name: str) -> Filter:
    """One of the filters that go through items (map, select, ...), which pays for each."""

    @pass_context
    def lazy(context: Context, value: Iterable[Any], *arguments: Any, **keywords: Any) -> Any:
        environment: Any = context.environment
        check_path(*arguments[:1], keywords.get("attribute"))
        # Of nothing (none, 0, undefined) Jinja makes nothing, without looking whether it has items.
        values = environment.iterate(value) if value else value
        return environment.items(JINJA_FILTERS[name](context, values, *arguments, **keywords))

    return lazy


def over_list(name: str) -> Filter:
    """One of Jinja's filters that compare items (sort, min, ...), which pays for all the comparisons."""

    @pass_environment
    def ordered(environment: LimitedEnvironment, value: Any, *arguments: Any, **keywords: Any) -> Any:
        check_path(*arguments, *keywords.values())
        values = list(environment.iterate(value))
        environment.charge(environment.weigh(values)[0] * len(values).bit_length())
        found = JINJA_FILTERS[name](environment, values, *arguments, **keywords)
        return environment.items(found) if name == "unique" else found

    return ordered


@pass_environment
def dictsort(environment: LimitedEnvironment, value: Any, *arguments: Any, **keywords: Any) -> Any:
    """The sorted pairs of a dict."""
    environment.charge(environment.weigh(value)[0] * len(value).bit_length())
    return environment.made(JINJA_FILTERS["dictsort"](value, *arguments, **keywords))


@pass_environment
def reverse(environment: LimitedEnvironment, value: Any) -> Any:
    """The text or the items backwards."""
    environment.pay_for(value)
    found = JINJA_FILTERS["reverse"](value)
    return environment.made(found) if isinstance(found, (str, list)) else environment.items(found)


@pass_environment
def to_list(environment: LimitedEnvironment, value: Iterable[Any]) -> Any:
    """A list of the items."""
    return environment.made(list(environment.iterate(value)))


@pass_environment
def items(environment: LimitedEnvironment, value: Any) -> Items:
    """The pairs of a dict; none if it is undefined."""
    if isinstance(value, Undefined):
        return environment.items([])
    if not isinstance(value, dict):
        raise TypeError("Can only get item pairs from a mapping.")
    return environment.items(value.items())


@pass_environment
def first(environment: LimitedEnvironment, value: Iterable[Any]) -> Any:
    """The first item."""
    for item in value:
        return item
    return environment.undefined("no first item, the sequence is empty")


def attribute_of(environment: LimitedEnvironment, value: Iterable[Any], attribute: Any) -> Iterator[Any]:
    """An attribute of each item, by a path with dots, as Jinja's filters take it."""
    check_path(attribute)
    parts = [int(part) if part.isdigit() else part for part in str(attribute).split(".")]
    for item in value:
        for part in parts:
            item = environment.getitem(item, part)
        yield item


@pass_environment
def join(environment: LimitedEnvironment, value: Iterable[Any], d: Any = "", attribute: Any = None) -> str:
    """The items as text, with a separator."""
    if attribute is not None:
        value = attribute_of(environment, value, attribute)
    return join_text(environment, environment.text(d), map(environment.text, value))


@pass_environment
def add_up(
    environment: LimitedEnvironment, value: Iterable[Any], attribute: Any = None, start: Any = 0
) -> Any:
    """The sum of the items."""
    if attribute is not None:
        value = attribute_of(environment, value, attribute)
    for item in environment.iterate(value):
        start = environment.call_binop(None, "+", start, item)
    return start


@pass_environment
def to_string(environment: LimitedEnvironment, value: Any) -> str:
    """A text as it is, anything else as it is printed."""
    return value if isinstance(value, str) else environment.text(value)


@pass_environment
def replace(environment: LimitedEnvironment, value: Any, old: Any, new: Any, count: int | None = None) -> str:
    """The text with all of `old`, or the first `count`, replaced."""
    whole, old, new = (environment.text(part) for part in (value, old, new))
    return replace_text(environment, whole, old, new, -1 if count is None else count)


@pass_environment
def trim(environment: LimitedEnvironment, value: Any, chars: str | None = None) -> str:
    """The text without the space, or the given characters, around it."""
    return strip_text(environment, to_string(environment, value), "strip", chars)


@pass_environment
def indent(
    environment: LimitedEnvironment,
    value: str,
    width: int | str = 4,
    first: bool = False,
    blank: bool = False,
) -> Any:
    """The text with each line moved in."""
    step = len(width) if isinstance(width, str) else width
    if step > WIDEST:
        raise LimitError(f"an indent of {step:,} is not allowed")
    environment.room_for(len(value) + (len(value.splitlines()) + 1) * (max(step, 0) + 1))
    return environment.made(JINJA_FILTERS["indent"](value, width, first, blank))


@pass_environment
def percent(environment: LimitedEnvironment, value: Any, *arguments: Any, **keywords: Any) -> str:
    """`"%s and %s" | format(a, b)`."""
    return percent_text(environment, to_string(environment, value), keywords or arguments)


@pass_environment
def tojson(
    environment: LimitedEnvironment,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it in templates: not escaped for HTML, all scripts as they are."""
    units, height = environment.weigh(value)
    step = len(indent) if isinstance(indent, str) else indent or 0
    if step > WIDEST or max(map(len, separators or ("", ""))) > WIDEST:
        raise LimitError("so wide a JSON is not allowed")
    environment.charge(units * (2 + height * step // 16))
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    environment.room_for(len(text))
    return text


@pass_environment
def to_int(environment: LimitedEnvironment, value: Any, default: Any = 0, base: int = 10) -> Any:
    """A whole number, or the default."""
    if isinstance(value, str) and len(value) > WIDEST:
        return default
    return environment.made_number(JINJA_FILTERS["int"](value, default, base))


def to_float(value: Any, default: Any = 0.0) -> Any:
    """A number, or the default."""
    too_long = isinstance(value, str) and len(value) > WIDEST
    return default if too_long else JINJA_FILTERS["float"](value, default)


def to_round(value: float, precision: int = 0, method: str = "common") -> Any:
    """The rounded number."""
    if not isinstance(value, (int, float)):
        raise TypeError("only numbers are rounded")
    if abs(precision) > 300:
        raise LimitError(f"rounding to {precision} digits is not allowed")
    return JINJA_FILTERS["round"](value, precision, method)


@pass_environment
def safe(environment: LimitedEnvironment, value: Any) -> Markup:
    """The text, marked as needing no escapes: nothing is escaped here but by `+` to such a text."""
    return Markup(to_string(environment, value))


@pass_environment
def to_escaped(environment: LimitedEnvironment, value: Any) -> Any:
    """The text with HTML's characters escaped."""
    return environment.made(escape(to_string(environment, value)))


def text_filter(name: str) -> Filter:
    """One of Jinja's filters that make of one text another of about its length."""

    @pass_environment
    def change(environment: LimitedEnvironment, value: Any) -> Any:
        environment.pay_for(value)
        return environment.made(JINJA_FILTERS[name](to_string(environment, value)))

    return change


FILTERS: dict[str, Filter] = {
    **{name: over_items(name) for name in ("map", "select", "reject", "selectattr", "rejectattr")},
    **{name: over_list(name) for name in ("sort", "unique", "min", "max")},
    **{name: text_filter(name) for name in ("upper", "lower", "title", "capitalize")},
    **{name: JINJA_FILTERS[name] for name in ("default", "d", "length", "count", "abs", "last")},
    "dictsort": dictsort,
    "e": to_escaped,
    "escape": to_escaped,
    "first": first,
    "float": to_float,
    "format": percent,
    "indent": indent,
    "int": to_int,
    "items": items,
    "join": join,
    "list": to_list,
    "replace": replace,
    "reverse": reverse,
    "round": to_round,
    "safe": safe,
    "string": to_string,
    "sum": add_up,
    "tojson": tojson,
    "trim": trim,
}


def comparison(name: str) -> Filter:
    """A test that compares two values."""

    @pass_environment
    def compare(environment: LimitedEnvironment, left: Any, right: Any) -> Any:
        return environment.compare_pair(name, left, right)

    return compare


@pass_environment
def divisible(environment: LimitedEnvironment, value: Any, number: Any) -> bool:
    """Whether the number divides the value."""
    return bool(environment.call_binop(None, "%", value, number) == 0)


@pass_environment
def odd(environment: LimitedEnvironment, value: Any) -> bool:
    """Whether the number is odd."""
    return bool(environment.call_binop(None, "%", value, 2) == 1)


@pass_environment
def even(environment: LimitedEnvironment, value: Any) -> bool:
    """Whether the number is even."""
    return divisible(environment, value, 2)


KIND_TESTS = """
    defined undefined none boolean false true integer float number string mapping sequence iterable
    callable sameas
"""
TESTS: dict[str, Filter] = {
    **{name: cast(Filter, JINJA_TESTS[name]) for name in KIND_TESTS.split()},
    **{name: comparison("eq") for name in ("eq", "equalto", "==")},
    **{name: comparison("ne") for name in ("ne", "!=")},
    **{name: comparison("gt") for name in ("gt", "greaterthan", ">")},
    **{name: comparison("gteq") for name in ("ge", ">=")},
    **{name: comparison("lt") for name in ("lt", "lessthan", "<")},
    **{name: comparison("lteq") for name in ("le", "<=")},
    "in": comparison("in"),
    "divisibleby": divisible,
    "odd": odd,
    "even": even,
}
