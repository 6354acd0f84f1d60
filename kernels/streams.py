"""How this processor likes to be asked for memory that is read once and in order, as weights are.

What is best was measured (`bench/LOG.md`) and differs: cores of Intel's read 1.2 to 1.5 times as fast when lines are
asked for 6 KB ahead, into the second cache, for their own look ahead ends with a page of 4 KB; AMD's Zen 4 then reads
at 0.9 of its speed. Of an M1 nothing is known from here, so it has what Zen 4 has.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tinylm.kernels.jit import intrinsic, types
from tinylm.kernels.simd import CACHE_LINE, INT64, emit_prefetch
from tinylm.kernels.target import target
from tinylm.kernels.vectors import loop

OF_AMD_OR_UNKNOWN = (
    "znver",
    "bdver",
    "btver",
    "amdfam",
    "barcelona",
    "k8",
    "athlon",
    "opteron",
    "x86-64",
    "generic",
)
"""How LLVM's names of x86 processors begin that are not Intel's, or nobody's."""

SECOND_CACHE = 2
"""Where a line goes that is asked for, as `emit_prefetch` has it."""


def is_intel(triple: str, cpu: str) -> bool:
    """Whether LLVM's name of a processor is one of Intel's."""
    return triple.startswith(("x86_64", "i686")) and not cpu.startswith(OF_AMD_OR_UNKNOWN)


def bytes_ahead(triple: str, cpu: str) -> int:
    """By how much a stream of weights is asked for ahead; 0 where the processor does it better alone.

    No multiple of 4 KB, whose lines go where the one in hand lies in the first cache.
    """
    return 6144 if is_intel(triple, cpu) else 0


def long_row(triple: str, cpu: str) -> int:
    """Columns of a row beyond which one token does not stay in the first cache beside it: 32 KB on AMD's, 48 on
    Intel's, 64 to 128 on ARM.
    """
    if triple.startswith(("x86_64", "i686")):
        return 8192 if is_intel(triple, cpu) else 4096
    return 16384


def kept_bytes(triple: str, cpu: str) -> int:
    """Of what is read again and again, how much is read so at a time: what stays in a second cache of 2 MB.

    On AMD's, whose third cache is near, more at a time was better.
    """
    return 1_250_000 if is_intel(triple, cpu) else 1 << 40


INTEL = is_intel(*target()[:2])
AHEAD, LONG, KEPT = (known(*target()[:2]) for known in (bytes_ahead, long_row, kept_bytes))
"""Of this processor."""


def emit_ahead(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Ask for what comes after the cache line at an address, where that helps."""
    if AHEAD:
        emit_prefetch(builder, builder.add(address, INT64(AHEAD)), SECOND_CACHE)


@intrinsic
def ask_ahead(typingctx: Any, address: Any, size: Any) -> Any:
    """Ask for all lines of so many bytes at an address, where asking for what comes helps at all."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, size = arguments

        def line(at: ir.Value, state: list[Any]) -> list[Any]:
            emit_prefetch(builder, builder.add(address, at), SECOND_CACHE)
            return state

        if AHEAD:
            loop(builder, INT64(0), size, CACHE_LINE, [], line)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate
