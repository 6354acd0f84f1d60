"""The prompt, from a word of the command line, from standard input or from a file."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from tinylm.cli.terminal import note
from tinylm.errors import ParameterError, TinylmError

ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "0": "\0"}


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """`PROMPT`, `--prompt-file` and `--escapes`."""
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="the text to go on from; - reads standard input"
    )
    parser.add_argument(
        "-f",
        "--prompt-file",
        metavar="FILE",
        help="read the prompt from a UTF-8 file (without its last line end)",
    )
    parser.add_argument(
        "-e", "--escapes", action="store_true", help=r"read \n, \t, \\ and \uXXXX in PROMPT and --stop"
    )


def read_prompt(arguments: argparse.Namespace) -> str:
    """The prompt that was asked for. Raises ParameterError for none or two, TinylmError for bytes that are no text."""
    if arguments.prompt is not None and arguments.prompt_file is not None:
        raise ParameterError("there are two prompts: PROMPT and --prompt-file; give one")
    if arguments.prompt_file is not None:
        return decode(Path(arguments.prompt_file).read_bytes(), arguments.prompt_file)
    if arguments.prompt == "-":
        if sys.stdin.isatty():
            note("write the prompt; a line with Ctrl-D (Windows: Ctrl-Z, Enter) ends it")
        return decode(sys.stdin.buffer.read(), "standard input")
    if arguments.prompt is None:
        raise ParameterError("there is no prompt: give PROMPT, '-' for standard input, or --prompt-file FILE")
    # Bytes of the command line that are not UTF-8 arrive as lone surrogates.
    try:
        arguments.prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise TinylmError("PROMPT: not valid UTF-8") from None
    return unescape(arguments.prompt) if arguments.escapes else str(arguments.prompt)


def decode(data: bytes, source: str) -> str:
    """UTF-8 bytes as text, without a byte order mark and without one final line end."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at position {error.start}"
        raise TinylmError(
            f"{source}: not valid UTF-8 ({found}); convert it, for example with iconv"
        ) from None
    return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")


def unescape(text: str) -> str:
    r"""The characters that backslashes stand for: `a\nb` -> two lines. Raises ParameterError for an unknown one."""
    plain = re.sub(r"\\u([0-9a-fA-F]{4})|\\(.?)", _character, text, flags=re.DOTALL)
    try:
        return plain.encode("utf-16", "surrogatepass").decode("utf-16")  # joins the halves of a pair
    except UnicodeDecodeError:
        raise ParameterError(f"'{text}' holds half of a surrogate pair, which is no character") from None


def _character(match: re.Match[str]) -> str:
    if match[1]:
        return chr(int(match[1], 16))
    if match[2] not in ESCAPES:
        raise ParameterError(rf"'{match[0]}' is not an escape; there are \n, \t, \r, \0, \\ and \uXXXX")
    return ESCAPES[match[2]]
