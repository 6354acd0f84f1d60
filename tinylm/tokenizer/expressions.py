r"""Regular expressions of the Oniguruma kind, which tokenizer.json holds, as the `regex` module writes them.

Most are the same. `\w`, `\h`, `\Z`, `^` and the flag `m` mean something else there, and some set operators of
`regex` are plain characters here. What has no equal is refused by name.
Source: https://github.com/kkos/oniguruma/blob/master/doc/RE, compared with the library character by character.
"""

from __future__ import annotations

import regex

_WORD = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}"
_WORD_ALONE = rf"[{_WORD}\xb2\xb3\xb9\xbc-\xbe]"
"""A word character where it stands outside brackets: there Oniguruma takes some Latin-1 numbers for one."""

_IN_CLASS = {
    "w": _WORD,
    "W": f"[^{_WORD}]",
    "h": "0-9A-Fa-f",
    "H": "[^0-9A-Fa-f]",
    "e": r"\x1b",
}
_ALONE = {
    "w": _WORD_ALONE,
    "W": f"[^{_WORD_ALONE[1:]}",
    "b": f"(?:(?<={_WORD_ALONE})(?!{_WORD_ALONE})|(?<!{_WORD_ALONE})(?={_WORD_ALONE}))",
    "B": f"(?:(?<={_WORD_ALONE})(?={_WORD_ALONE})|(?<!{_WORD_ALONE})(?!{_WORD_ALONE}))",
    "h": "[0-9A-Fa-f]",
    "H": "[^0-9A-Fa-f]",
    "e": r"\x1b",
    "z": r"\Z",
    "Z": r"(?=\n?\Z)",
}
_SAME = frozenset("sSdDbBpPnrtfvaAux0123456789")
_POSIX = regex.compile(r"\[:\^?[a-z]+:\]")
_CODE = regex.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")
_FLAGS = regex.compile(r"\(\?([imx]*(?:-[imx]+)?)([:)])")
_GROUP = regex.compile(r"\(\?(?:[:=!>]|<[=!]|<[A-Za-z_]\w*>|#)")
_COUNT = regex.compile(r"\{(\d{0,9}),?(\d{0,9})\}")
_UNBOUNDED = regex.compile(r"(?<!\\)[*+]|\{\d*,\}")
_GROUP_WITH_QUANTIFIER = regex.compile(r"\)(?:[*+]|\{\d*,?\d*\})")
_UP_TO_THE_END = regex.compile(r"[*+}]\$|[*+}]\\[zZ]")
_BACKREFERENCE = regex.compile(r"\\[1-9k]")

LARGEST = 100_000
"""Characters of an expression, with its counted repetitions written out."""
MOST_REPETITIONS = 4
"""Unbounded repetitions of one alternative that are trusted to come to an end soon."""


def translate(source: str) -> str:
    """The expression for `regex.V1 | regex.MULTILINE`; a ValueError names what has no equal there."""
    if len(source) > LARGEST:
        raise ValueError(f"it is longer than {LARGEST} characters")
    out: list[str] = []
    place = 0
    depth = 0
    sizes = _Sizes()
    while place < len(source):
        character = source[place]
        if character == "\\":
            place = _escape(source, place, depth > 0, out)
            sizes.item()
        elif depth:
            place, depth = _in_class(source, place, depth, out)
        elif character == "[":
            depth = 1
            out.append(character)
            place += 1
            sizes.item()
        elif character == "(" and source.startswith("(?", place):
            place = _group(source, place, out)
            sizes.enter(closed=out[-1].endswith(")"))
        else:
            # Here `^` never matches after a newline that ends the text.
            out.append(r"(?:^(?!\Z))" if character == "^" else character)
            sizes.see(source, place)
            place += 1
    return "".join(out)


class _Sizes:
    """How large an expression is when its counted repetitions are written out, as the compiler does."""

    def __init__(self) -> None:
        self._outer: list[int] = []
        self._here = 0
        self._last = 0

    def item(self, size: int = 1) -> None:
        """A character, a class or a whole group."""
        self._last = size
        self._here += size

    def enter(self, closed: bool) -> None:
        """The beginning of a group, unless it is closed already, as flags are."""
        if not closed:
            self._outer.append(self._here)
            self._here = 0

    def see(self, source: str, place: int) -> None:
        """What stands at a place outside brackets."""
        if source[place] == "(":
            self.enter(closed=False)
        elif source[place] == ")":
            size = self._here
            self._here = self._outer.pop() if self._outer else 0
            self.item(size)
        elif count := _COUNT.match(source, place):
            times = max(int(number or 0) for number in count.groups())
            self._here += self._last * max(times - 1, 0)
            self._last *= times
            if self._here > LARGEST:
                raise ValueError(f"its repetitions amount to more than {LARGEST} characters")
        else:
            self.item()


def _escape(source: str, place: int, in_class: bool, out: list[str]) -> int:
    name = source[place + 1 : place + 2]
    code = _CODE.match(source, place)
    if code:
        out.append(regex.escape(chr(int(code[1], 16))))
        return int(code.end())
    known = (_IN_CLASS if in_class else _ALONE).get(name)
    if known is None and name.isascii() and name.isalnum() and name not in _SAME:
        raise ValueError(f"the escape \\{name} is not supported")
    out.append(source[place : place + 2] if known is None else known)
    return place + 2


def _in_class(source: str, place: int, depth: int, out: list[str]) -> tuple[int, int]:
    character = source[place]
    posix = _POSIX.match(source, place)
    if posix:
        out.append({"[:punct:]": r"\p{P}\p{S}", "[:word:]": _WORD}.get(posix[0], posix[0]))
        return posix.end(), depth
    if source[place : place + 2] in {"--", "||", "~~"}:
        out.append(f"\\{character}")
    else:
        out.append(character)
    if character == "^" and source[place - 1] == "[":
        return place + 1, depth
    return place + 1, depth + (character == "[") - (character == "]")


def _group(source: str, place: int, out: list[str]) -> int:
    flags = _FLAGS.match(source, place)
    if flags:
        out.append(f"(?{flags[1].replace('m', 's')}{flags[2]}")
        return int(flags.end())
    group = _GROUP.match(source, place)
    if not group:
        raise ValueError(f"the group {source[place : place + 4]}... is not supported")
    out.append(group[0])
    return int(group.end())


def may_run_away(source: str) -> bool:
    """Whether an expression has a shape that can take for ever.

    That is a repeated group, many repetitions, a reference back, or a repetition up to the end of a line.
    """
    alternatives = source.split("|")
    return bool(
        _GROUP_WITH_QUANTIFIER.search(source)
        or _BACKREFERENCE.search(source)
        or _UP_TO_THE_END.search(source)
        or any(len(_UNBOUNDED.findall(alternative)) > MOST_REPETITIONS for alternative in alternatives)
    )
