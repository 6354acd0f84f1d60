"""`tinylm bench`: how fast a model is on this machine, beside what the memory could deliver."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylm.cli import parsing
from tinylm.cli.open_model import add_pull_options, locate
from tinylm.cli.terminal import compile_notice, note, size

if TYPE_CHECKING:
    from tinylm.engine import Engine
    from tinylm.measuring import Case, Subject

NOTES = """pp512 reads a prompt of 512 tokens; tg128 @ 1024 writes 128 tokens behind 1,024 others. Formats and
threads take turns in each round. The memory's bandwidth is measured right before and after every sample: the
share says how much of it the writing used, against the better and against the worse of the two."""

TOGETHER, ALONE = 0.5, 0.75
"""Shares of the machine's memory: so much may all formats hold at once, and so much one of them."""


def parser() -> parsing.Parser:
    """The words that the command takes."""
    it = parsing.Parser(
        "bench",
        "Measure how fast a model reads prompts and writes, in every number format, as Markdown or JSON.",
        [
            ("tinylm bench smollm2-135m-instruct", ""),
            ("tinylm bench ./my-model --dtype int8,bfloat16 --threads 1,2,4", ""),
            ("tinylm bench ./my-model --prompt 512,2048 --depth 0,1024,4096 --json > figures.json", ""),
            ("tinylm bench smollm2-135m-instruct --receipt", "with all that a reader elsewhere must know"),
        ],
        notes=NOTES,
    )
    it.add_argument(
        "model", nargs="?", default=parsing.BUNDLED_MODEL, metavar="MODEL",
        help=f"a name that 'tinylm list' shows, or a folder (default: {parsing.BUNDLED_MODEL}, too small to tell much)",
    )  # fmt: skip
    group = it.add_argument_group("what is measured")
    group.add_argument(
        "--dtype", type=formats, metavar="A,B",
        help=f"formats, of {', '.join(parsing.FORMATS)} (default: all that the model can be held in)",
    )  # fmt: skip
    group.add_argument(
        "--kv-dtype", type=kv_formats, default=["auto"], metavar="A,B",
        help=f"formats of keys and values, of {', '.join(parsing.KV_FORMATS)} (default: auto, by the weights)",
    )  # fmt: skip
    group.add_argument(
        "--threads", type=numbers, metavar="N,M", help="numbers of threads (default: one a performance core)"
    )
    group.add_argument(
        "--prompt",
        type=numbers,
        default=[512],
        metavar="N,M",
        help="tokens of prompts (default: 512; 0: none)",
    )
    group.add_argument(
        "--depth", type=numbers, default=[0, 1024], metavar="N,M",
        help="tokens that stand before the written ones (default: 0,1024)",
    )  # fmt: skip
    group.add_argument(
        "--tokens", type=int, default=128, metavar="N", help="tokens to write (default: 128; 0: none)"
    )
    group.add_argument("--repeats", type=int, default=5, metavar="N", help="samples of each (default: 5)")
    group = it.add_argument_group("what is shown")
    group.add_argument("--json", action="store_true", help="one JSON object instead of a Markdown table")
    group.add_argument(
        "--receipt", action="store_true",
        help="also the machine, versions, kernels, checksums and start times: a block to post",
    )  # fmt: skip
    group.add_argument("-q", "--quiet", action="store_true", help="no progress, no notes")
    group = it.add_argument_group("model")
    group.add_argument("--offline", action="store_true", help="never touch the network")
    add_pull_options(it)
    parsing.add_layout_options(group)
    return it


def numbers(text: str) -> list[int]:
    """`'1,2'` -> `[1, 2]`."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [-1]
    if min(found) < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form 1,2,4")
    return list(dict.fromkeys(found))


def formats(text: str) -> list[str]:
    """`'int8,float32'` -> `['int8', 'float32']`."""
    return choices(text, parsing.FORMATS)


def choices(text: str, known: Sequence[str]) -> list[str]:
    """Names between commas, each once. Raises ArgumentTypeError for one that is not known."""
    found = text.split(",")
    for name in found:
        if name not in known:
            raise argparse.ArgumentTypeError(f"no format is called '{name}'; there are {', '.join(known)}")
    return list(dict.fromkeys(found))


def kv_formats(text: str) -> list[str]:
    """`'float32,bfloat16'` -> `['float32', 'bfloat16']`."""
    return choices(text, parsing.KV_FORMATS)


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print what was found; after Ctrl-C, or where something fails, what was found so far."""
    from tinylm.cli.bench_report import markdown
    from tinylm.inspection import inspect_folder
    from tinylm.machine import describe_machine, identity
    from tinylm.tensor_names import TensorNames

    asked_for = cases(arguments)
    folder = locate(arguments)
    facts = inspect_folder(folder, arguments.architecture, TensorNames.read(arguments.tensor_names))
    machine = describe_machine()
    groups, left_out = plan(facts.get("memory"), arguments.dtype, machine["memory"])
    found: dict[str, Any] = {
        "bench": "tinylm bench",
        "model": arguments.model,
        "date": time.strftime("%Y-%m-%d"),
        "complete": False,
        "repeats": arguments.repeats,
        "tinylm": identity(),
        "machine": machine,
        "left_out": left_out,
        "results": [],
    }
    try:
        for names in groups:
            measure(folder, names, asked_for, arguments, found)
        if arguments.receipt:
            from tinylm.receipt import receipt

            remark(arguments, "starting tinylm anew, without compiled kernels and with them")
            found |= receipt(folder, layout_words(arguments))
        found["complete"] = True
    finally:
        if found["results"]:
            print(json.dumps(found, ensure_ascii=False) if arguments.json else markdown(found), flush=True)
    return 0


def cases(arguments: argparse.Namespace) -> list[Case]:
    """What is to be timed. Raises ParameterError for nothing, and for no repeats."""
    from tinylm.errors import ParameterError
    from tinylm.measuring import Case

    if arguments.repeats < 1:
        raise ParameterError(f"repeats is {arguments.repeats}; expected 1 or more")
    found = [Case("prompt", tokens) for tokens in arguments.prompt if tokens]
    if arguments.tokens > 0:
        found += [Case("generate", arguments.tokens, depth) for depth in arguments.depth]
    if not found:
        raise ParameterError("with no prompt and no tokens there is nothing to measure")
    return found


def plan(
    memory: dict[str, Any] | None, asked_for: list[str] | None, available: int | None
) -> tuple[list[list[str]], list[dict[str, str]]]:
    """(groups of formats that are loaded together, what is left out and why).

    Formats take turns where the machine has memory for all of them; else one is measured after the other. `memory` as
    `inspect_folder` tells it: None for a folder that does not fit, of which loading says more.
    """
    if memory is None:
        return [asked_for or ["auto"]], []
    weights, stored = memory["weights"], memory["as stored"]
    names = asked_for or ([stored] if stored in parsing.QUANTIZED else list(parsing.FORMATS[1:]))
    left_out = []
    if available and not asked_for:
        for name in [name for name in names if weights[name] > ALONE * available]:
            reason = f"{size(weights[name])} of weights, and the machine's memory is {size(available)}"
            left_out.append({"format": name, "reason": reason})
        names = [name for name in names if weights[name] <= ALONE * available] or ["auto"]
    together = sum(weights.get(name, weights[stored]) for name in names)
    return [names] if not available or together <= TOGETHER * available else [
        [name] for name in names
    ], left_out


def measure(
    folder: Path, names: list[str], wanted: list[Case], arguments: argparse.Namespace, found: dict[str, Any]
) -> None:
    """Load a folder in some formats, measure them in turns, and add to what was found, whatever happens."""
    from tinylm.kernels.cores import default_threads
    from tinylm.measuring import Measurement

    with compile_notice(arguments.quiet):
        loaded = list(subjects(folder, names, arguments.threads or [default_threads()], arguments))
    for case in wanted:
        if not loaded[0].fits(case):
            reason = f"the model's context is {loaded[0].engine.context_length:,}"
            entry = {"test": case.name, "reason": reason}
            if entry not in found["left_out"]:
                found["left_out"].append(entry)
                remark(arguments, f"{case.name} is left out: {reason}")
    measurement = Measurement(loaded, wanted, arguments.repeats)
    progress = None if arguments.quiet else ShowProgress()
    try:
        measurement.run(progress)
    finally:
        if progress is not None:
            progress.close()
        found["results"] += measurement.records()


def subjects(
    folder: Path, names: list[str], threads: list[int], arguments: argparse.Namespace
) -> Iterator[Subject]:
    """The model in each format, with each of keys and values, on each number of threads; a format is loaded once."""
    from tinylm.engine import Engine
    from tinylm.kernels.bandwidth import Bandwidth
    from tinylm.kernels.team import Team
    from tinylm.measuring import Subject
    from tinylm.tensor_names import TensorNames

    bandwidths = {}
    for name in names:
        first = Engine.load(
            folder, dtype=name, threads=1, architecture=arguments.architecture,
            tensor_names=TensorNames.read(arguments.tensor_names),
        )  # fmt: skip
        for kv_dtype, count in itertools.product(arguments.kv_dtype, threads):
            engine = Engine(first.program, first.context_length, count, kv_dtype)
            engine.compile()
            if count not in bandwidths:
                bandwidths[count] = Bandwidth(Team(count))
            yield Subject(engine, format_of(engine) if name == "auto" else name, bandwidths[count])


def format_of(engine: Engine) -> str:
    """What the format of the weights is called."""
    from tinylm.formats.table import model_format

    sizes: dict[str, int] = {}
    for matrix in engine.program.matrices:
        sizes[matrix.format] = sizes.get(matrix.format, 0) + matrix.nbytes
    return model_format(sizes)


def layout_words(arguments: argparse.Namespace) -> list[str]:
    """The options of the layout, as words for another command."""
    words = []
    for option, value in (
        ("--architecture", arguments.architecture),
        ("--tensor-names", arguments.tensor_names),
    ):
        words += [option, value] if value else []
    return words


def remark(arguments: argparse.Namespace, message: str) -> None:
    """A note, unless there are to be none."""
    if not arguments.quiet:
        note(message)


class ShowProgress:
    """Says what is measured now: a line that changes on a terminal, a line a round elsewhere."""

    def __init__(self) -> None:
        self._stage = ""
        self._live = sys.stderr.isatty()

    def __call__(self, round_number: int, rounds: int, subject: Subject, case: Case) -> None:
        """Called before each measurement; round 0 prepares."""
        stage = f"round {round_number} of {rounds}" if round_number else "reading and warming up"
        if self._live:
            what = f"{case.name}, {subject.format}, {subject.engine.threads} threads"
            print(f"\r{stage}: {what}\033[K", end="", file=sys.stderr, flush=True)
        elif stage != self._stage:
            note(stage)
        self._stage = stage

    def close(self) -> None:
        """Take the line away."""
        if self._live and self._stage:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
