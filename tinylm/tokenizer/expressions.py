r"""Regular expressions of the Oniguruma kind, which tokenizer.json holds, as the `regex` module writes them.

Most are the same. `\w`, `\b`, `\h`, `\Z`, `^` and the flag `m` mean something else there, and some set
operators of `regex` are plain characters here. What has no equal is refused by name.
Source: https://github.com/kkos/oniguruma/blob/master/doc/RE, compared with the library character by character.
"""

from __future__ import annotations

import regex

LARGEST = 100_000
"""Characters of an expression, with its counted repetitions written out, as compilers do."""
MOST_REPETITIONS = 4
"""Unbounded repetitions of one alternative that are trusted to come to an end soon."""

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
_SAME = frozenset("sSdDbBnrtfvaAxu0123456789")

_CODE = regex.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")
_PROPERTY = regex.compile(r"\\([pP])\{(\^?)([^{}]*)\}")
_POSIX = regex.compile(r"\[:\^?[a-z]+:\]")
_OPENED = regex.compile(r"\[\^?(\]?)")
_FLAGS = regex.compile(r"\(\?([imx]*(?:-[imx]+)?)([:)])")
_GROUP = regex.compile(r"\((?!\?)|\(\?(?:[:=!>]|<[=!]|<[A-Za-z_]\w*>)")
_COUNT = regex.compile(r"\{(\d{1,9}|(?=,\d))(?:(,)(\d{0,9}))?\}")


class Translation:
    """An expression for `regex.V1 | regex.MULTILINE`; a ValueError names what has no equal there.

    `may_run_away` says whether it has a shape that can take for ever on some texts: a repeated group, many
    repetitions after each other, a reference back, or a repetition up to the end of a line.
    """

    def __init__(self, source: str) -> None:
        if len(source) > LARGEST:
            raise ValueError(f"it is longer than {LARGEST} characters")
        self.may_run_away = False
        self._source = source
        self._place = 0
        self._out: list[str] = []
        self._depth = 0  # of brackets
        self._group_sizes: list[int] = []
        self._size = 0  # of what stands in the innermost open group
        self._last_size = 0  # of what a repetition would repeat
        self._last_is_group = False
        self._unbounded = 0  # repetitions in this alternative
        while self._place < len(source):
            self._step(source[self._place])
        self.text = "".join(self._out)

    def _write(self, text: str, length: int) -> None:
        self._out.append(text)
        self._place += length

    def _item(self, size: int = 1, is_group: bool = False) -> None:
        self._last_size = size
        self._last_is_group = is_group
        self._size += size

    def _step(self, character: str) -> None:
        if character == "\\":
            self._escape()
        elif self._depth:
            self._in_class(character)
        elif character == "[":
            self._item()
            self._open_class()
        elif character == "(":
            self._open_group()
        elif character == ")":
            size, self._size = self._size, self._group_sizes.pop() if self._group_sizes else 0
            self._item(size, is_group=True)
            self._write(character, 1)
        elif character in "*+?" or _COUNT.match(self._source, self._place):
            self._repeat(character)
        else:
            if character == "|":
                self._unbounded = 0
            elif character == "$":
                self.may_run_away |= self._unbounded > 0
            else:
                self._item()
            # In Oniguruma `^` never matches after a newline that ends the text.
            self._write(r"(?:^(?!\Z))" if character == "^" else character, 1)

    def _repeat(self, character: str) -> None:
        count = _COUNT.match(self._source, self._place)
        if count is None:
            times, unbounded = 1, character != "?"
        else:
            times = max(int(count[1] or 0), int(count[3] or 0))
            unbounded = count[2] is not None and not count[3]
        self._unbounded += unbounded
        self._size += self._last_size * max(times - 1, 0)
        self._last_size *= times
        if self._size > LARGEST:
            raise ValueError(f"its repetitions amount to more than {LARGEST} characters")
        self.may_run_away |= self._unbounded > MOST_REPETITIONS
        self.may_run_away |= self._last_is_group and (unbounded or times > 1)
        self._write(count[0] if count else character, len(count[0]) if count else 1)

    def _escape(self) -> None:
        source, place = self._source, self._place
        self._item()
        if code := _CODE.match(source, place):
            self._write(regex.escape(chr(int(code[1], 16))), len(code[0]))
            return
        if named := _PROPERTY.match(source, place):
            negated = (named[1] == "P") != (named[2] == "^")
            self._write(f"\\{'P' if negated else 'p'}{{{named[3]}}}", len(named[0]))
            return
        name = source[place + 1 : place + 2]
        known = (_IN_CLASS if self._depth else _ALONE).get(name)
        if known is None and name.isascii() and name.isalnum() and name not in _SAME:
            raise ValueError(f"the escape \\{name} is not supported")
        if not self._depth:
            self.may_run_away |= name in "123456789" or (name in "zZ" and self._unbounded > 0)
        self._write(source[place : place + 2] if known is None else known, 2)

    def _open_class(self) -> None:
        opened = _OPENED.match(self._source, self._place)
        self._depth += 1
        # A bracket that closes at once is a plain character.
        self._write(opened[0].replace("]", r"\]"), len(opened[0]))

    def _in_class(self, character: str) -> None:
        source, place = self._source, self._place
        if posix := _POSIX.match(source, place):
            self._write(
                {"[:punct:]": r"\p{P}\p{S}", "[:word:]": _WORD}.get(posix[0], posix[0]), len(posix[0])
            )
        elif character == "[":
            self._open_class()
        elif character == "]":
            self._depth -= 1
            self._write(character, 1)
        elif source.startswith("--", place) and source[place - 1] not in "[^":
            self._write(r"-\-", 2)  # the range up to a hyphen
        elif source[place : place + 2] in {"--", "||", "~~"}:
            self._write(f"\\{character}", 1)
        else:
            self._write(character, 1)

    def _open_group(self) -> None:
        flags = _FLAGS.match(self._source, self._place)
        if flags is None or flags[2] == ":":
            self._group_sizes.append(self._size)
            self._size = 0
        if flags:
            self._write(f"(?{flags[1].replace('m', 's')}{flags[2]}", len(flags[0]))
            return
        group = _GROUP.match(self._source, self._place)
        if group is None:
            raise ValueError(f"the group {self._source[self._place : self._place + 4]}... is not supported")
        self._write(group[0], len(group[0]))
