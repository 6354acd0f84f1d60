"""What a person sees on standard error: notes, questions, a progress bar, sizes in words."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def note(message: str) -> None:
    """Print a line beside the answer."""
    print(message, file=sys.stderr, flush=True)


def can_ask() -> bool:
    """Whether somebody sits before us: both ends of the conversation are a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> bool:
    """Ask a person; anything but a yes is a no."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer:
        note("")
    return answer.strip().lower() in {"y", "yes"}


def size(count: float) -> str:
    """Bytes for people: 134515008 -> '134.5 MB' (powers of 1000, as disks and networks count)."""
    for unit, bytes_in_it in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= bytes_in_it:
            return f"{count / bytes_in_it:.1f} {unit}"
    return f"{count:.0f} bytes"


def tokens(count: float) -> str:
    """Tokens for people: 1234 -> '1,234 tokens'."""
    return f"{count:,.0f} tokens"


class ProgressBar:
    """A bar on a terminal, a line for each stage in a file. Called as `bar(stage, done, total)`.

    `amount` says how many that is, in words: bytes unless something else is given.
    """

    WIDTH = 28

    def __init__(self, subject: str, amount: Callable[[float], str] = size) -> None:
        self._subject, self._amount = subject, amount
        self._live = sys.stderr.isatty()
        self._stage = ""
        self._shown = self._started = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show how far it is, ten times a second at most."""
        now = time.monotonic()
        if stage != self._stage:
            self.close()
            self._stage, self._started, self._shown = stage, now, 0.0
            if not self._live:
                note(f"{stage} {self._subject} ({self._amount(total)})")
        if not self._live or (now - self._shown < 0.1 and done < total):
            return
        self._shown = now
        filled = self.WIDTH * done // total if total else self.WIDTH
        bar = "#" * filled + "." * (self.WIDTH - filled)
        rate = self._amount(done / max(now - self._started, 1e-3))
        line = f"{stage} {self._subject} [{bar}] {self._amount(done)} of {self._amount(total)}, {rate}/s"
        print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line of the bar."""
        if self._live and self._shown:
            note("")
        self._stage, self._shown = "", 0.0


def prompt_progress(done: int, total: int) -> None:
    """On a terminal, a line that shows how far a long prompt is read and that vanishes at its end."""
    if sys.stderr.isatty() and total > 512:
        line = f"reading the prompt, {done:,} of {total:,} tokens" if done < total else ""
        print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)


@contextmanager
def compile_notice(quiet: bool = False) -> Iterator[list[str]]:
    """Say on standard error that kernels are being compiled, and which; yields the names so far."""
    from tinylm.kernels.machine_code import on_compile

    compiled: list[str] = []
    total, depth = 0.0, 0
    live = sys.stderr.isatty()

    def listener(name: str, seconds: float) -> None:
        nonlocal total, depth
        if seconds:
            compiled.append(name)
            depth -= 1
            total += 0.0 if depth else seconds  # what one kernel needs is compiled within its time
            return
        depth += 1
        if quiet:
            return
        if not compiled and depth == 1:
            note(
                "compiling kernels for this machine; this happens once ('tinylm warmup' does it ahead of time)"
            )
        if live:
            print(f"\r  {len(compiled) + 1}: {name}\033[K", end="", file=sys.stderr, flush=True)

    undo = on_compile(listener)
    try:
        yield compiled
    finally:
        undo()
        if compiled and not quiet:
            if live:
                print("\r\033[K", end="", file=sys.stderr)
            note(f"compiled {len(compiled)} kernels in {total:.1f} s")
