"""The functions of a chat template: range, dict, namespace, joiner, raise_exception, strftime_now."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError
from jinja2.runtime import Undefined
from jinja2.sandbox import safe_range
from jinja2.utils import Joiner, Namespace

from tinylm.chat_template.budget import VIEWS, Items, LimitError, refuse

if TYPE_CHECKING:
    from tinylm.chat_template.environment import LimitedEnvironment

LONGEST_DATE_FORMAT = 200
DATE_FIELD = re.compile(r"%[-_0^#]?[A-Za-z%]")  # no widths, which some C libraries obey


KEPT: tuple[type, ...] = (
    str,
    int,
    float,
    bool,
    type(None),
    list,
    tuple,
    dict,
    range,
    Undefined,
    Items,
    *VIEWS,
)


class MessagesRefused(TemplateError):
    """What the template says by `raise_exception`: the messages do not suit it."""


class Function:
    """Something that a template may call, and about which it can find out nothing else."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """What the template's `f(...)` comes to."""
        return self.call(*arguments, **keywords)


class TemplateNamespace(Namespace):
    """Jinja's `namespace()`, which holds no names that begin with an underscore and is never printed."""

    def __init__(*arguments: Any, **keywords: Any) -> None:
        # Jinja's own signature, so that `namespace(self=...)` is possible.
        given = dict(*arguments[1:], **keywords)
        for name, value in given.items():
            check_entry(name, value)
        Namespace.__init__(arguments[0], given)

    def __setitem__(self, name: str, value: Any) -> None:
        check_entry(name, value)
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        raise refuse("printing a namespace")


def check_attribute(name: Any) -> None:
    """Refuses the attributes that lead into Python's insides."""
    if isinstance(name, str) and name.startswith("_"):
        raise refuse(f"the attribute {name!r}")


def check_entry(name: Any, value: Any) -> None:
    """Refuses names that lead inside, and things that could be hung one on the other without end.

    A namespace is all that keeps a value from one round of a loop to the next. Lists are weighed when they
    are made, so that they cannot be deep; a namespace in a namespace, or a method of a list that holds a
    method, is not.
    """
    check_attribute(name)
    if not isinstance(value, KEPT):
        raise refuse(f"a {type(value).__name__} in a namespace")


def current_time() -> datetime:
    """The local time, for templates that tell the model the date."""
    return datetime.now()


def functions(environment: LimitedEnvironment) -> dict[str, Any]:
    """The functions by name, for one rendering."""

    def raise_exception(message: Any = "") -> None:
        raise MessagesRefused(environment.text(message))

    def strftime_now(form: str) -> str:
        if len(form) > LONGEST_DATE_FORMAT or "%" in DATE_FIELD.sub("", form):
            raise LimitError(f"the date format {form[:40]!r} is not allowed")
        return current_time().strftime(form)

    def make_dict(*arguments: Any, **keywords: Any) -> Any:
        environment.pay_for(*arguments, *keywords.values())
        made: dict[Any, Any] = {}
        for argument in arguments:
            pairs = argument.items() if isinstance(argument, dict) else argument
            made.update((environment.key(name), value) for name, value in pairs)
        return environment.made({**made, **keywords})

    def joiner(separator: str = ", ") -> Function:
        return Function(Joiner(separator).__call__)

    return {
        "range": Function(safe_range),
        "dict": Function(make_dict),
        "namespace": Function(TemplateNamespace),
        "joiner": Function(joiner),
        "raise_exception": Function(raise_exception),
        "strftime_now": Function(strftime_now),
    }
