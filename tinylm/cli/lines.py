"""What a person types, as messages: one line, lines that end with a backslash, or a block in triple quotes."""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from typing import Any

from tinylm.errors import TinylmError

QUOTES = '"""'


class LineReader:
    """Reads messages from a terminal, with a prompt and a history, or from a pipe."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdin is not None and sys.stdin.isatty()
        self._readline: Any = None
        if self.is_terminal:
            # Gives `input` a history and the keys of the shell, where the system has it.
            with suppress(ImportError):
                import readline

                self._readline = readline
        elif isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8")

    def read(self, prompt: str) -> str | None:
        """The next message; None where there is no more: the end of the input, or Ctrl-C at an empty line.

        Ctrl-C at a line with text gives up what was typed.
        """
        lines: list[str] = []
        block = False
        while True:
            try:
                line = self.line(prompt if not lines else "... ")
            except EOFError:
                return "\n".join(lines) if lines else None
            except KeyboardInterrupt:
                typed = lines or (self._readline and self._readline.get_line_buffer())
                self.end_line()
                if not typed:
                    return None
                lines, block = [], False
                continue
            if not lines and line.lstrip().startswith(QUOTES):
                line, block = line.lstrip()[len(QUOTES) :], True
            if block and line.rstrip().endswith(QUOTES):
                return "\n".join([*lines, line.rstrip()[: -len(QUOTES)]]).strip("\n")
            if not block and not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line if block else line[:-1])

    def line(self, prompt: str) -> str:
        """One line. Raises EOFError at the end of the input, TinylmError for bytes that are no text."""
        try:
            if self.is_terminal and sys.stdout.isatty():
                text = input(prompt)
            else:
                # `input` would put its prompt among the answers.
                if self.is_terminal:
                    print(prompt, end="", file=sys.stderr, flush=True)
                text = sys.stdin.readline()
                if not text:
                    raise EOFError
                text = text.rstrip("\r\n")
            text.encode("utf-8")
        except UnicodeError:
            raise TinylmError("standard input: not valid UTF-8") from None
        return text

    def end_line(self) -> None:
        """A line end after what was typed and given up."""
        if self.is_terminal:
            print(file=sys.stderr, flush=True)
