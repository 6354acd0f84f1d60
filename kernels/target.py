"""The processor that kernels are compiled for, in LLVM's words."""

from __future__ import annotations

import json
from functools import cache

from tinylm.kernels.cache import entry, read, write


@cache
def target() -> tuple[str, str, str]:
    """Triple, name and features, as LLVM calls them, of the processor that kernels are compiled for.

    LLVM says it once, and the cache keeps it: asking takes as long as starting the rest of the program.
    """
    path = entry(target.__wrapped__, "target")
    kept = read(path)
    if kept is None:
        from numba.core.registry import cpu_target

        triple, name, features = cpu_target.target_context.codegen().magic_tuple()
        kept = json.dumps([triple, name, features]).encode()
        write(path, kept)
    triple, name, features = json.loads(kept)
    return triple, name, features
