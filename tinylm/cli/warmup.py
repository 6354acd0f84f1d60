"""`tinylm warmup`: compile ahead of time what the first text would wait for."""

from __future__ import annotations

import argparse
import time

from tinylm.cli.parsing import BUNDLED_MODEL, FORMATS, Parser
from tinylm.cli.terminal import compile_notice


def parser() -> Parser:
    """The words that the command takes."""
    it = Parser(
        "warmup",
        "Compile every kernel for this machine and keep the result, so that the first text comes at once. "
        "It is done again after an update of tinylm, Numba or Python.",
        [("tinylm warmup", ""), ("tinylm warmup --dtype float32", "one number format only")],
    )
    it.add_argument(
        "--dtype", choices=FORMATS[1:], help="only the kernels of this number format (default: all)"
    )
    it.add_argument("-q", "--quiet", action="store_true", help="no progress")
    return it


def run(arguments: argparse.Namespace) -> int:
    """Generate with the bundled model in each format: it takes the same kernels as any other."""
    import tinylm
    from tinylm.kernels.cache import folder

    started = time.perf_counter()
    prompt = "Once upon a time there was a small program. " * 20
    with compile_notice(arguments.quiet) as compiled:
        for dtype in [arguments.dtype] if arguments.dtype else FORMATS[1:]:
            model = tinylm.load(BUNDLED_MODEL, dtype=dtype)
            model.generate(prompt, max_new_tokens=3, do_sample=True, top_p=0.9, min_p=0.01, seed=0)
            model.generate_batch([prompt], max_new_tokens=3, num_return_sequences=2, do_sample=True, seed=0)
    if not arguments.quiet:
        seconds = time.perf_counter() - started
        print(f"{len(compiled)} kernels compiled in {seconds:.1f} s; all are kept in {folder()}")
    return 0
