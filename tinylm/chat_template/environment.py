"""A Jinja environment in which a chat template can neither reach out, nor run long, nor grow large.

A template comes with a model, from anybody. Jinja's own immutable sandbox keeps it away from
Python's insides; this one also bounds what it costs, in the process and on any thread, without a
timer, a signal or a second process. Two rules do it:

- every value is bounded when it is made;
- every operation pays for what it reads and makes, out of one budget for the rendering.

So no single operation can take long, and there cannot be many of them. What Jinja would compile to
a bare Python operator (`~`, `==`, `in`, slices, literals, arithmetic) is compiled to a call here;
every loop and macro pays on each round for the size of its body; methods, filters, tests and
functions are those of `methods` and `filters`, and any other is refused by its name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from markupsafe import Markup

from tinylm.chat_template import filters, functions, methods
from tinylm.chat_template.budget import SCALARS, SECONDS, VIEWS, Budget, LimitError, refuse
from tinylm.chat_template.compiler import GenerationTag, LimitedCodeGenerator, compile_template
from tinylm.chat_template.functions import Function, check_attribute

DEEPEST_CALL = 64  # macros in macros, loops in recursive loops
NUMBERS = (int, float, bool)
SEQUENCES = (str, list, tuple)
LOOP_NAMES = "index index0 revindex revindex0 first last length previtem nextitem depth depth0"
LOOP_VALUES = frozenset(LOOP_NAMES.split())
LOOP_METHODS = frozenset({"cycle", "changed"})
MISSING = object()
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": lambda left, right: left == right,
    "ne": lambda left, right: left != right,
    "gt": lambda left, right: left > right,
    "gteq": lambda left, right: left >= right,
    "lt": lambda left, right: left < right,
    "lteq": lambda left, right: left <= right,
    "in": lambda left, right: left in right,
    "notin": lambda left, right: left not in right,
}


class LimitedEnvironment(Budget, ImmutableSandboxedEnvironment):
    """The environment of one rendering, with its budget."""

    code_generator_class = LimitedCodeGenerator
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        Budget.__init__(self)
        ImmutableSandboxedEnvironment.__init__(
            self,
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, "jinja2.ext.loopcontrols"],
            optimized=False,
            finalize=self.text,
            cache_size=0,
        )
        self.filters = dict(filters.FILTERS)
        self.tests = dict(filters.TESTS)
        self.globals = functions.functions(self)
        self.generation_body = Function(lambda: None)
        self.depth = 0

    def text(self, value: Any) -> str:
        """What `{{ value }}` prints."""
        kind = type(value)
        if kind is str:
            self.charge(1 + (len(value) >> 5))
            return str(value)
        if kind in SCALARS or isinstance(value, Undefined):
            self.charge(1)
            return str(value)
        if isinstance(value, Markup) or kind in (list, tuple, dict, range) or kind in VIEWS:
            self.pay_for(value)
            printed = str(value)
            self.room_for(len(printed))
            return printed
        raise refuse(f"printing a {kind.__name__}")

    def concat(self, pieces: Iterable[str]) -> str:
        """Joins what was printed."""
        collected: list[str] = []
        characters = 0
        for piece in pieces:
            self.charge(1)
            characters += len(piece)
            collected.append(piece)
        self.room_for(characters)
        return "".join(collected)

    def concatenate(self, *values: Any) -> str:
        """`a ~ b`."""
        return self.concat([self.text(value) for value in values])

    def compare(self, left: Any, *operands: tuple[str, Callable[[], Any]]) -> Any:
        """`a == b`, `a in b`, and chains such as `a < b < c`."""
        result: Any = True
        for name, delayed in operands:
            right = delayed()
            result = self.compare_pair(name, left, right)
            if not result:
                return result
            left = right
        return result

    def compare_pair(self, name: str, left: Any, right: Any) -> Any:
        """One comparison: it costs at most a pass over both."""
        self.pay_for(left, right)
        return COMPARISONS[name](left, right)

    def key(self, value: Any) -> Any:
        """A key of a dict; hashing a tuple goes through all that it holds."""
        if type(value) is tuple:
            self.pay_for(value)
        return value

    def slice(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """`a[start:stop:step]`."""
        if not isinstance(value, (*SEQUENCES, range, Undefined)):
            raise TypeError(f"a {type(value).__name__} cannot be sliced")
        return self.made(value[start:stop:step])

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`a.name`: an allowed method or attribute, or else an entry."""
        self.charge(1)
        found = self.attribute(obj, attribute)
        if found is not MISSING:
            return found
        try:
            return obj[attribute]
        except (TypeError, LookupError, AttributeError):
            return self.missing_attribute(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`a[name]`: an entry, or else an allowed method or attribute."""
        self.charge(1)
        try:
            return obj[self.key(argument)]
        except (TypeError, LookupError, AttributeError):
            if isinstance(argument, str):
                found = self.attribute(obj, argument)
                return self.missing_attribute(obj, argument) if found is MISSING else found
        return self.undefined(obj=obj, name=argument)

    def attribute(self, obj: Any, name: str) -> Any:
        """An allowed method or attribute, or MISSING."""
        for kind in (str, dict, list, tuple):
            if isinstance(obj, kind):
                method = methods.METHODS[kind].get(name)
                return MISSING if method is None else Function(method(self, obj))
        if isinstance(obj, LoopContext):
            if name in LOOP_VALUES:
                return getattr(obj, name)
            if name in LOOP_METHODS:
                return Function(lambda *values: getattr(obj, name)(*self.made(values)))
        if isinstance(obj, Namespace):
            check_attribute(name)
            return getattr(obj, name, MISSING)
        if isinstance(obj, Undefined):
            return super().getattr(obj, name)
        return MISSING

    def missing_attribute(self, obj: Any, name: str) -> Undefined:
        """Undefined, as Jinja has it; what exists and is not allowed is refused when it is used."""
        check_attribute(name)
        if isinstance(obj, Namespace) or not hasattr(type(obj), name):
            return self.undefined(obj=obj, name=name)
        reason = f"{name!r} of a {type(obj).__name__} is not allowed in a chat template"
        return self.undefined(reason, obj, name, SecurityError)

    def call(self, context: Context, obj: Any, *arguments: Any, **keywords: Any) -> Any:
        """`a(...)`: one of our functions, a macro, or a recursive loop."""
        self.charge(2 + len(arguments) + len(keywords))
        if obj is self.generation_body:
            obj = keywords.pop("caller")
        if isinstance(obj, Macro) and (obj.catch_varargs or obj.catch_kwargs):
            for argument in (*arguments, *keywords.values()):
                self.made(argument)
        if isinstance(obj, (Macro, LoopContext)):
            if self.depth >= DEEPEST_CALL:
                raise LimitError(f"macros call each other more than {DEEPEST_CALL} deep")
            self.depth += 1
            try:
                return context.call(obj, *arguments, **keywords)
            finally:
                self.depth -= 1
        if isinstance(obj, Undefined):
            return obj(*arguments)
        if not isinstance(obj, Function):
            raise refuse(f"calling a {type(obj).__name__}")
        keywords.pop("_loop_vars", None)
        keywords.pop("_block_vars", None)
        return obj(*arguments, **keywords)

    def call_binop(self, context: Context | None, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic, and `+`, `*` and `%` of texts and lists."""
        self.charge(1)
        operate = self.binop_table[operator]
        if isinstance(left, NUMBERS) and isinstance(right, NUMBERS):
            if operator == "**" and (abs(right) > 1024 or abs(left) > 1 << 64):
                raise LimitError("a power is too large")
            return self.made_number(operate(left, right))
        if isinstance(left, Undefined) or isinstance(right, Undefined):
            return operate(left, right)
        if operator == "%" and isinstance(left, str):
            return methods.percent_text(self, left, right)
        if operator == "+" and isinstance(left, SEQUENCES) and isinstance(right, SEQUENCES):
            self.pay_for(left, right)
            return self.made(operate(left, right))
        if operator == "*" and (isinstance(left, SEQUENCES) or isinstance(right, SEQUENCES)):
            sequence, times = (left, right) if isinstance(left, SEQUENCES) else (right, left)
            if isinstance(times, int):
                self.room_for(len(sequence) * max(times, 0))
                return self.made(sequence * times)
        kinds = f"{type(left).__name__} and {type(right).__name__}"
        raise TypeError(f"unsupported operand types for {operator}: {kinds}")


def run_template(source: str, variables: dict[str, Any]) -> str:
    """The text that the template prints. Raises Jinja's exceptions, and Python's."""
    deadline = time.perf_counter() + SECONDS
    code = compile_template(source, LimitedEnvironment)
    environment = LimitedEnvironment()
    environment.deadline = deadline
    for value in variables.values():
        environment.weigh(value)
    template = jinja2.Template.from_code(environment, code, environment.globals)
    return environment.concat(template.root_render_func(template.new_context(variables)))
