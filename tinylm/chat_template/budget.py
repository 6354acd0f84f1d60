"""What one rendering of a chat template may cost: units of work, the size of each value, and time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined
from markupsafe import Markup

LARGEST_TEXT = 2_000_000  # characters of one text
LARGEST_VALUE = 500_000  # weight of one value with everything in it
LARGEST_NUMBER = 1 << 1024
DEEPEST_VALUE = 64  # lists in lists
UNITS = 2_000_000
SECONDS = 1.0

SCALARS = frozenset({int, float, bool, type(None)})
CONTAINERS = frozenset({list, tuple, dict})
VIEWS: frozenset[type] = frozenset({type({}.keys()), type({}.values()), type({}.items())})


class LimitError(SecurityError):
    """A template that costs more than any honest one. No ValueError: Jinja's parts swallow those."""


def refuse(what: str) -> SecurityError:
    """The error for something that templates may not do."""
    return SecurityError(f"{what} is not allowed in a chat template")


class Items:
    """What a filter such as `map` leaves: items to be gone through once, and counted by nobody.

    Jinja has generators here. A chain of those, each in the one before, has crashed Python where it was
    freed; so the items are made at once, and `height` says how deep they are.
    """

    __slots__ = ("_items", "height", "units")

    def __init__(self, items: list[Any], units: int, height: int) -> None:
        self._items = iter(items)
        self.units = units
        self.height = height

    def __iter__(self) -> Items:
        return self

    def __next__(self) -> Any:
        return next(self._items)


class Budget:
    """Counts the work of one rendering.

    A unit of work is a small step of Python's, 2 units of weight made, or 32 read. The clock is looked at
    every thousand: since no operation works on more than `LARGEST_VALUE`, that is often enough.
    """

    def __init__(self) -> None:
        self.units_left = UNITS
        self.next_look = UNITS
        self.deadline = time.perf_counter() + SECONDS
        # Weights of larger values, each with the value itself, so that its id stays its own.
        self.weights: dict[int, tuple[Any, int, int]] = {}

    def charge(self, units: int) -> bool:
        """Pays for an operation; true, so that it can stand in a condition."""
        self.units_left -= units
        if self.units_left < self.next_look:
            if self.units_left < 0:
                raise LimitError("the template does too much work")
            if time.perf_counter() > self.deadline:
                raise LimitError("the template takes too long")
            self.next_look = self.units_left - 1000
        return True

    def weigh(self, value: Any, level: int = 0) -> tuple[int, int]:
        """The weight of a value with everything in it, and how deep it is: 1 for each, and for 16 characters.

        Parts that are shared count each time, as they do for printing, comparing and hashing:
        a list of two lists of two lists ... is small in memory and endless in print.
        """
        kind = type(value)
        if kind is str or kind is Markup:
            if len(value) > LARGEST_TEXT:
                raise LimitError(f"a text grew beyond {LARGEST_TEXT:,} characters")
            return 1 + (len(value) >> 4), 0
        if kind in SCALARS:
            return 1, 0
        if kind is range:
            return 1 + (len(value) >> 3), 0
        if kind is Items:
            return value.units, value.height
        if isinstance(value, Undefined):
            # It holds the thing in which something was not found.
            held = value._undefined_obj
            return 1, self.weigh(held, level + 1)[1] + 1 if type(held) in CONTAINERS else 0
        if kind not in CONTAINERS and kind not in VIEWS:
            if level:
                raise refuse(f"a {kind.__name__} in a list")
            return 1, 0
        known = self.weights.get(id(value))
        if known is not None:
            return known[1], known[2]
        if level > DEEPEST_VALUE:
            raise LimitError(f"lists are nested more than {DEEPEST_VALUE} deep")
        units, height = 1, 0
        for part in chain(value.keys(), value.values()) if kind is dict else value:
            more, below = self.weigh(part, level + 1)
            units += more
            height = max(height, below + 1)
            if units > LARGEST_VALUE:
                raise LimitError(f"a list grew beyond {LARGEST_VALUE:,} units")
        if height > DEEPEST_VALUE:
            raise LimitError(f"lists are nested more than {DEEPEST_VALUE} deep")
        if units > 32 and kind not in VIEWS:
            self.charge(16)
            self.weights[id(value)] = (value, units, height)
        return units, height

    def pay_for(self, *values: Any) -> None:
        """Pays for a pass over values."""
        self.charge(1 + (sum(self.weigh(value)[0] for value in values) >> 5))

    def made(self, value: Any) -> Any:
        """The value, weighed and paid for."""
        self.charge(1 + (self.weigh(value)[0] >> 1))
        return value

    def made_number(self, value: Any) -> Any:
        """The number, if it is one that fits."""
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise LimitError("a number grew beyond 1,024 bits")
        return value

    def room_for(self, characters: int) -> None:
        """Refuses a text, or pays for it, before it is made."""
        if characters > LARGEST_TEXT:
            raise LimitError(f"a text grew beyond {LARGEST_TEXT:,} characters")
        self.charge(1 + (characters >> 5))

    def items(self, values: Iterable[Any]) -> Items:
        """The values, made, to be gone through once."""
        made = self.made(list(values))
        return Items(made, *self.weigh(made))

    def iterate(self, values: Iterable[Any]) -> Iterator[Any]:
        """The same values, each paid for."""
        for value in values:
            self.charge(2)
            yield value
