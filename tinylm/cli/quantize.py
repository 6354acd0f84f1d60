"""`tinylm quantize`: a copy of a model in fewer bits."""

from __future__ import annotations

import argparse

from tinylm.cli.parsing import QUANTIZED, Parser
from tinylm.cli.terminal import ProgressBar, note


def parser() -> Parser:
    """The words that the command takes."""
    it = Parser(
        "quantize",
        "Write a copy of a model in fewer bits. int8: a quarter of float32's size and up to three times its speed, at "
        "hardly any loss. int4: faster still, at a loss that can be seen, more so in small models; embedding and head "
        "stay int8. The copy is mapped into memory as it is, so it starts at once. (generate --dtype int8 does the "
        "same in memory, each time.)",
        [
            ("tinylm quantize smollm2-135m-instruct ./smollm2-int8", ""),
            ("tinylm quantize smollm2-135m-instruct ./smollm2-int4 --dtype int4", ""),
        ],
    )
    it.add_argument("model", metavar="MODEL", help="a name that 'tinylm list' shows, or a folder")
    it.add_argument("folder", metavar="FOLDER", help="the folder to make; it must not exist yet")
    it.add_argument("--dtype", choices=QUANTIZED, default="int8", help="the format (default: int8)")
    it.add_argument(
        "--threads", type=int, metavar="N", help="threads that convert (default: one a performance core)"
    )
    it.add_argument("-q", "--quiet", action="store_true", help="no progress, no notes")
    return it


def run(arguments: argparse.Namespace) -> int:
    """Write the folder, and say on standard output where it is."""
    from tinylm.quantization import quantize_folder
    from tinylm.sources.catalog import resolve

    bar = None if arguments.quiet else ProgressBar(arguments.dtype)
    progress = (lambda done, total: bar("quantizing", done, total)) if bar else None
    try:
        source = resolve(arguments.model)
        folder = quantize_folder(source, arguments.folder, arguments.dtype, arguments.threads, progress)
    finally:
        if bar:
            bar.close()
    print(folder)
    if not arguments.quiet:
        note(f"now: tinylm generate --model {folder} PROMPT")
    return 0
