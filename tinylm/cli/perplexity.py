"""`tinylm perplexity`: how well a model foresees texts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylm.cli import parsing
from tinylm.cli.open_model import add_pull_options, locate, open_model
from tinylm.cli.terminal import ProgressBar, compile_notice, tokens
from tinylm.errors import ParameterError, TinylmError

if TYPE_CHECKING:
    from tinylm.perplexity import Perplexity

NOTES = """Each text is read in windows of CONTEXT tokens that begin STRIDE tokens apart; in each, the tokens
that no window before has scored are scored. A shorter stride gives each token more of a past and takes
longer. Perplexity is a figure a token: to compare models with different tokenizers take the figures a byte."""


def parser() -> parsing.Parser:
    """The words that the command takes."""
    it = parsing.Parser(
        "perplexity",
        "Measure how well a model foresees texts: perplexity by token and by byte, with a sliding window.",
        [
            ("tinylm perplexity story.txt", "the bundled story model"),
            ("tinylm perplexity a.txt b.txt --model ./my-model --context 1024 --stride 512", ""),
            ("tinylm perplexity test.txt --model ./my-model --dtype int8 --json", "for machines"),
        ],
        notes=NOTES,
    )
    it.add_argument(
        "files", nargs="+", metavar="FILE", help="UTF-8 texts, each by itself; - is standard input"
    )
    parsing.add_model_options(it)
    add_pull_options(it)
    group = it.add_argument_group("protocol")
    group.add_argument(
        "--context", type=int, metavar="N",
        help="tokens of a window (default: the model's context, 2048 if that is longer)",
    )  # fmt: skip
    group.add_argument(
        "--stride", type=int, metavar="N", help="tokens between windows (default: half a window)"
    )
    group.add_argument(
        "--bos", choices=["auto", "yes", "no"], default="auto",
        help="begin each text with the model's token for that (default: auto, as the tokenizer does by itself)",
    )  # fmt: skip
    group = it.add_argument_group("what is shown")
    group.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress, no notes")
    return it


def run(arguments: argparse.Namespace) -> int:
    """Measure file by file, and print a line for each and one for all."""
    from tinylm.perplexity import perplexity, protocol

    texts = [(name, read_text(name)) for name in arguments.files]
    folder = locate(arguments)
    measured: list[tuple[str, Perplexity]] = []
    with compile_notice(arguments.quiet):
        model, _ = open_model(folder, arguments)
        # a mistake in the protocol is told before kernels are compiled
        context, stride = protocol(model.engine.context_length, arguments.context, arguments.stride)
        model.engine.compile()
    for name, text in texts:
        bar = None if arguments.quiet else ProgressBar(name, tokens)
        progress = (lambda done, total, bar=bar: bar("reading", done, total)) if bar else None
        try:
            found = perplexity(
                model, text, context=context, stride=stride, bos=arguments.bos, progress=progress
            )
        except ParameterError as error:
            raise TinylmError(f"{name}: {error}") from None
        finally:
            if bar:
                bar.close()
        measured.append((name, found))
        if not arguments.json and len(texts) > 1:
            print(f"{name}\n{lines(found)}\n", flush=True)
    total = sum((found for _, found in measured[1:]), measured[0][1])
    if arguments.json:
        print(json.dumps(as_json(arguments, measured, total), ensure_ascii=False))
        return 0
    print(f"{'all together' if len(texts) > 1 else texts[0][0]}\n{lines(total)}")
    begin = "begins with the model's token for that" if total.bos else "begins with its own first token"
    print(
        f"\nprotocol: windows of {context} tokens, {stride} apart; each text {begin}; dtype {arguments.dtype}"
    )
    return 0


def read_text(name: str) -> str:
    """A text exactly as it is, line ends and all. Raises TinylmError for bytes that are not UTF-8."""
    data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TinylmError(
            f"{name}: not valid UTF-8 (byte 0x{data[error.start]:02x} at {error.start})"
        ) from None


def lines(found: Perplexity) -> str:
    """The figures for people."""
    return "\n".join(
        [
            f"  perplexity        {found.perplexity:.4f} a token, {found.byte_perplexity:.4f} a byte",
            f"  bits a byte       {found.bits_per_byte:.4f}",
            f"  scored            {found.scored_tokens:,} of {found.tokens:,} tokens, {found.scored_bytes:,} bytes",
        ]
    )


def as_json(
    arguments: argparse.Namespace, measured: list[tuple[str, Perplexity]], total: Perplexity
) -> dict[str, Any]:
    """The figures for machines; these keys stay."""
    return {
        "model": arguments.model,
        "protocol": {
            "context": total.context,
            "stride": total.stride,
            "bos": total.bos,
            "dtype": arguments.dtype,
        },
        "files": [{"file": name, **found.as_dict()} for name, found in measured],
        "total": total.as_dict(),
    }
