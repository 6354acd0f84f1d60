"""`tinylm import`: an ordinary model folder from a GGUF file."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinylm.cli.parsing import Parser
from tinylm.cli.terminal import ProgressBar, note


def parser() -> Parser:
    """The words that the command takes."""
    it = Parser(
        "import",
        "Make a model folder (config.json, tokenizer.json, model.safetensors, ...) from a GGUF file of a Llama "
        "or Qwen3 architecture. The folder appears when it is whole.",
        [
            ("tinylm import model.gguf ./my-model", ""),
            ("tinylm import model-q8_0.gguf ./my-model --dtype bfloat16", "half the size, slightly rounded"),
        ],
    )
    it.add_argument("file", metavar="FILE", help="the GGUF file")
    it.add_argument("folder", metavar="FOLDER", help="the folder to make; it must not exist yet")
    it.add_argument(
        "--dtype", choices=["auto", "float32", "float16", "bfloat16"], default="auto",
        help="how weights are stored (default: auto, floats as they are and quantized ones as float32)",
    )  # fmt: skip
    it.add_argument("-q", "--quiet", action="store_true", help="no progress, no notes")
    return it


def run(arguments: argparse.Namespace) -> int:
    """Write the folder, and say on standard output where it is."""
    from tinylm.sources.gguf_import import import_gguf

    bar = None if arguments.quiet else ProgressBar(Path(arguments.file).name)
    progress = (lambda done, total: bar("importing", done, total)) if bar else None
    try:
        folder = import_gguf(arguments.file, arguments.folder, arguments.dtype, progress)
    finally:
        if bar:
            bar.close()
    print(folder)
    if not arguments.quiet:
        note(f"now: tinylm generate --model {folder} PROMPT")
    return 0
