"""A hostile chat template ends in an error: soon, without much memory, on any thread."""

from __future__ import annotations

import threading
import time

import pytest

from tinylm.chat_template import render
from tinylm.errors import ChatTemplateError

pytest.importorskip("jinja2")

MESSAGES = [{"role": "user", "content": "Hi"}]
END = "{% endfor %}"
LOOP = "{% for i in range(100000) %}"
TWICE = "{% for i in range(200) %}"
NESTED = "{% for i in range(60) %}"
LONG = "{% set a = 'a' * 1900000 %}"
BACKWARD = "{% set a = 'a' * 1000000 %}{% set b = 'ab' + 'a' * 500000 %}"

HOSTILE = {
    # endless work
    "loops in loops": LOOP * 4 + END * 4,
    "loops that skip everything": LOOP + "{% for j in range(100000) if false %}" + END * 2,
    "loops that count all": LOOP
    + "{% for x in range(100000) | map('string') %}{{ loop.length }}{% break %}"
    + END * 2,
    "macros that call themselves": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "macros that call themselves twice": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(50) }}"
    ),
    "recursive loops": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}" + END,
    "call blocks in call blocks": (
        "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
        + "{% call m() %}" * 15
        + "x" * 1000
        + "{% endcall %}" * 15
    ),
    "lazy filters": "{% for x in range(100000) | map('string') | map('upper') %}" + LOOP + END * 2,
    "search for ever": "{% set b = 'a' * 500000 + 'b' %}{% set a = 'a' * 1000000 %}"
    + LOOP
    + "{{ a.find(b) }}"
    + END,
    "in a text": "{% set b = 'a' * 500000 + 'b' %}{% set a = 'a' * 1000000 %}" + LOOP + "{{ b in a }}" + END,
    "in a range": LOOP + "{{ 0.5 in range(100000) }}" + END,
    "in a list": "{% set a = ['a' * 1000] * 7000 %}" + LOOP + "{{ 'b' in a }}" + END,
    "compare texts": LONG + "{% set b = 'a' * 1900000 %}" + LOOP + "{% if a == b %}{% endif %}" + END,
    "compare lists": "{% set a = ['a' * 1000] * 7000 %}{% set b = ['a' * 1000] * 7000 %}"
    + LOOP
    + "{{ a == b }}"
    + END,
    "sort": "{% set a = range(100000) | list %}" + LOOP + "{% set b = a | sort %}" + END,
    "sort by a long path": "{{ [1, 2] | sort(attribute='a,' * 100000) }}",
    "slices": LONG + LOOP + "{% set b = a[1:] %}" + END,
    "slices of a list": "{% set a = [1] * 400000 %}" + LOOP + "{% set b = a[1:] %}" + END,
    "capitals": LONG + LOOP + "{% set b = a.upper() %}" + END,
    "find from the end": BACKWARD + "{{ a.rfind(b) }}",
    "split from the end": BACKWARD + "{{ a.rsplit(sep=b) }}",
    "partition from the end": BACKWARD + "{{ a.rpartition(b) }}",
    "strip": LONG + "{{ a.strip('b' * 1900000 + 'a') }}",
    "trim": LONG + "{{ a | trim('b' * 1900000 + 'a') }}",
    "arguments": LOOP + "{% set x = loop.cycle(*range(100000)) %}" + END,
    "arguments of a macro": "{% macro m() %}{{ varargs }}{% endmacro %}"
    + LOOP
    + "{% set x = m(*range(100000)) %}"
    + END,
    "loop.changed": LOOP + "{% set x = loop.changed(range(100000) | list) %}" + END,
    "generation blocks": LOOP * 2 + "{% generation %}{% endgeneration %}" + END * 2,
    # endless text
    "times": "{{ 'a' * 10**10 }}",
    "times by a constant": "{{ 10000000000 * 'a' }}",
    "a list times": "{{ [1] * 1000000000 }}",
    "a range": "{% for i in range(10**9) %}" + END,
    "doubled": "{% set ns = namespace(s='aaaaaaaa') %}" + TWICE + "{% set ns.s = ns.s + ns.s %}" + END,
    "doubled by ~": "{% set ns = namespace(s='aaaaaaaa') %}" + TWICE + "{% set ns.s = ns.s ~ ns.s %}" + END,
    "doubled by a block": (
        "{% set ns = namespace(s='aaaaaaaa') %}"
        + TWICE
        + "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"
        + END
    ),
    "a doubled list": "{% set ns = namespace(s=[1]) %}" + TWICE + "{% set ns.s = ns.s + ns.s %}" + END,
    "a list of itself twice": "{% set ns = namespace(s=[1]) %}"
    + NESTED
    + "{% set ns.s = [ns.s, ns.s] %}"
    + END
    + "{{ ns.s }}",
    "a dict of itself twice": (
        "{% set ns = namespace(s={}) %}"
        + NESTED
        + "{% set ns.s = {'a': ns.s, 'b': ns.s} %}"
        + END
        + "{{ ns.s | tojson }}"
    ),
    "equal nests": (
        "{% set x = namespace(s=(1,)) %}{% set y = namespace(s=(1,)) %}"
        + NESTED
        + "{% set x.s = (x.s, x.s) %}{% set y.s = (y.s, y.s) %}"
        + END
        + "{{ x.s == y.s }}"
    ),
    "a nest as a key": (
        "{% set x = namespace(s=(1,)) %}{% for i in range(15) %}{% set x.s = (x.s, x.s) %}"
        + END
        + LOOP
        + "{% set d = {x.s: 1} %}"
        + END
    ),
    "a macro's arguments twice": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1, varargs, varargs) }}{% else %}{{ varargs }}{% endif %}{% endmacro %}"
        "{{ m(50, 1) }}"
    ),
    "a namespace in itself": "{% set ns = namespace() %}{% set ns.a = ns %}{{ [ns] }}",
    "views": "{% set d = {'a': 'x' * 1900000} %}{{ [d.values()] * 100000 }}",
    "output": LOOP + "a" * 60000 + END,
    "output in a macro": "{% macro m() %}" + LOOP + "a" * 60000 + END + "{% endmacro %}{{ m() }}",
    "small outputs": LOOP * 2 + "x{% if 1 %}y{% endif %}" * 1000 + END * 2,
    "filter blocks": LOOP + "{% filter upper %}" + "a" * 50000 + "{% endfilter %}" + END,
    "replace": "{% set s = 'a' * 1000000 %}{{ s.replace('a', s) }}",
    "replace nothing": "{% set s = 'a' * 1000000 %}{{ s | replace('', s) }}",
    "join": "{% set s = 'a' * 1000000 %}{{ s | join(s) }}",
    "indent": "{{ ('a\n' * 100000) | indent(900) }}",
    "wide indent": "{{ 'a' | indent(10**10) }}",
    "wide JSON": "{{ [1] | tojson(indent=1000000000) }}",
    "deep JSON": "{% set ns = namespace(x=[1] * 400000) %}"
    + NESTED
    + "{% set ns.x = [ns.x] %}"
    + END
    + "{{ ns.x | tojson(indent=900) }}",
    "escapes": "{% set ns = namespace(s='<') %}"
    + NESTED
    + "{% set ns.s = (ns.s | e | string).replace('&', '&&') %}"
    + END,
    "pad": "{{ 'a'.ljust(10000000000) }}",
    "zeros": "{{ 'a'.zfill(10000000000) }}",
    "wide format": "{{ '{:1000000000}'.format(1) }}",
    "wide nested format": "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "wide %": "{{ '%1000000000d' % 1 }}",
    "wide % by name": "{{ '%(a(b)c)999999999d' % {'a(b)c': 1} }}",
    "wide % by argument": "{{ '%*d' % (1000000000, 1) }}",
    "precise %": "{{ '%.1000000000f' % 1.0 }}",
    "wide format filter": "{{ '%1000000000d' | format(1) }}",
    "% in a test": "{{ '%1000000000d' is odd }}{{ '%1000000000d' is divisibleby(3) }}",
    "wide date": "{{ strftime_now('%1000000000d') }}",
    "long date": "{{ strftime_now('%c' * 100000) }}",
    "power": "{{ 2 ** 10000000000 }}",
    "power of a power": "{{ 10 ** 10 ** 10 ** 10 }}",
    "squares": "{% set ns = namespace(x=12345678901234567890) %}"
    + NESTED
    + "{% set ns.x = ns.x * ns.x %}"
    + END,
    "round": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "sum": "{{ ([[1] * 1000] * 100) | sum(start=[]) }}",
    "kept lists": "{% set ns = namespace(x=[]) %}"
    + LOOP
    + "{% set ns.x = ns.x + [range(1000) | list] %}"
    + END,
    "kept texts": "{% set ns = namespace(x=[]) %}"
    + LOOP
    + "{% set ns.x = ns.x + ['a' * 100000 ~ loop.index] %}"
    + END,
    # endless chains, which end where they are freed
    "filters on filters": "{% set ns = namespace(x=[1]) %}"
    + LOOP
    + LOOP
    + "{% set ns.x = ns.x | map('string') %}"
    + END
    + END,
    "filters in filters": "{% set ns = namespace(x=1) %}"
    + LOOP
    + LOOP
    + "{% set ns.x = [y] | map('default', ns.x) %}"
    + END
    + END,
    "reversed in reversed": "{% set ns = namespace(x=1) %}"
    + LOOP
    + "{% set ns.x = [ns.x] | reverse %}"
    + END,
    "undefined of undefined": "{% set ns = namespace(x=1) %}" + LOOP + "{% set ns.x = [ns.x].foo %}" + END,
    "namespaces in namespaces": "{% set ns = namespace(x=1) %}"
    + LOOP
    + "{% set ns.x = namespace(x=ns.x) %}"
    + END,
    "methods of methods": "{% set ns = namespace(x=1) %}" + LOOP + "{% set ns.x = [ns.x].index %}" + END,
    "loops of loops": "{% set ns = namespace(x=[1]) %}"
    + LOOP
    + "{% for y in ns.x %}{% set ns.x = loop %}"
    + END * 2,
    "arguments of arguments": (
        "{% macro m() %}{% set ns.x = varargs %}{% endmacro %}{% set ns = namespace(x=1) %}"
        + LOOP
        + "{{ m(ns.x) }}"
        + END
    ),
    # ways out
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class as an item": "{{ ''['__class__'] }}",
    "class by map": "{{ [''] | map(attribute='__class__') | list }}",
    "class by select": "{{ [''] | selectattr('__class__.__mro__') | list }}",
    "class by sort": "{{ ['', 'a'] | sort(attribute='__class__.__name__') }}",
    "class by format": "{{ '{0.__class__}'.format(1) }}",
    "class by format's item": "{{ '{0[__class__]}'.format('a') }}",
    "class by the attr filter": "{{ '' | attr('__class__') }}",
    "class by a format out of a list": "{{ (['{0.__class__}'.format] | first)(1) }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "globals of lipsum": "{{ lipsum.__globals__ }}",
    "globals of a cycler": "{{ cycler.__init__.__globals__ }}",
    "globals of an undefined": "{{ x._fail_with_undefined_error.__globals__ }}",
    "iterator of a loop": "{% for i in [1] %}{{ loop._iterator.__class__ }}" + END,
    "frame of a generator": "{{ ([1] | map('string')).gi_frame.f_globals }}",
    "self": "{{ self._TemplateReference__context }}",
    "a namespace's class": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "a namespace's class by name": "{{ namespace(**{'__class__': 1}) }}",
    "a method's owner": "{{ 'a'.upper.__self__ }}",
    "change a list": "{{ messages.append(1) }}",
    "change a dict": "{{ messages[0].update({'role': 1}) }}",
    "bytes": "{{ 'a'.encode() }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "from": "{% from 'os' import system %}",
    "extends": "{% extends 'x' %}",
    "autoescape": "{% autoescape true %}{% endautoescape %}",
    "refused filters": "{{ 'a' | urlize }}",
    # the parser and the compiler
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "deep not": "{{ " + "not " * 5000 + "1 }}",
    "deep attributes": "{{ a" + ".b" * 5000 + " }}",
    "deep filters": "{{ 1" + "|string" * 5000 + " }}",
    "deep sums": "{{ 1" + "+1" * 10000 + " }}",
    "deep ifs": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "deep elifs": "{% if 0 %}" + "{% elif 0 %}" * 6000 + "{% endif %}",
    "deep loops": "{% for i in [1] %}" * 300 + END * 300,
    "many names and branches": "".join(f"{{{{ a{i} if b }}}}" for i in range(5000)),
    "a long number": "{{ " + "9" * 90000 + " }}",
    "an open comment": "{#" * 30000,
    "an open raw": "{% raw %}" + "{% endraw" * 9000,
    "a long template": "a" * 200_000,
}


def cost(template: str) -> tuple[str, float]:
    """How a hostile template ended, and the processor time that it took."""
    start = time.thread_time()
    with pytest.raises(ChatTemplateError) as caught:
        render(template, MESSAGES)
    return str(caught.value), time.thread_time() - start


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_in_an_error(name: str) -> None:
    said, seconds = cost(HOSTILE[name])
    assert "chat template" in said
    assert seconds < 2  # of this thread's own work, whatever else the machine does


def test_limits_hold_off_the_main_thread() -> None:
    found: list[tuple[str, float]] = []
    names = ["loops in loops", "macros that call themselves twice", "class", "deep brackets", "doubled"]
    thread = threading.Thread(target=lambda: found.extend(cost(HOSTILE[name]) for name in names), daemon=True)
    thread.start()
    thread.join(60)
    assert len(found) == len(names)


def test_the_clock_stops_what_the_counters_let_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinylm.chat_template.environment.SECONDS", -1.0)
    with pytest.raises(ChatTemplateError, match="takes too long"):
        render("{% for i in range(3000) %}{{ i }}{% endfor %}", MESSAGES)


def test_what_is_shared_between_renderings_cannot_be_changed() -> None:
    template = "{% set range = 5 %}{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}{{ range }}"
    assert [render(template, MESSAGES) for _ in range(2)] == ["25", "25"]
    assert render("{{ range(2) | list }}", MESSAGES) == "[0, 1]"
