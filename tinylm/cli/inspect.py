"""`tinylm inspect`: what a model is made of, read from its files without loading the weights."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylm.cli.parsing import BUNDLED_MODEL, Parser, add_layout_options
from tinylm.cli.terminal import ProgressBar, size

if TYPE_CHECKING:
    from tinylm.program import Program
    from tinylm.spectra import Spectrum, Summary

MOST_SPECIAL_TOKENS = 16


def parser() -> Parser:
    """The words that the command takes."""
    it = Parser(
        "inspect",
        "Show what a model is made of: architecture, shapes, parameters, memory, tokenizer.",
        [
            ("tinylm inspect", "the bundled model"),
            ("tinylm inspect ./my-model --json", "for machines"),
            ("tinylm inspect --program | less", "the operations of its program, in order"),
            ("tinylm inspect ./my-model --spectra", "the condition numbers of its weight matrices"),
        ],
    )
    it.add_argument("model", nargs="?", default=BUNDLED_MODEL, metavar="MODEL", help="a name or a folder")
    it.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    it.add_argument("--program", action="store_true", help="print the operations that the model runs")
    it.add_argument(
        "--spectra", action="store_true",
        help="compute the condition number (largest by smallest singular value) of every weight matrix",
    )  # fmt: skip
    it.add_argument("-q", "--quiet", action="store_true", help="no progress")
    add_layout_options(it)
    return it


def run(arguments: argparse.Namespace) -> int:
    """Print the facts; with --program or --spectra those instead, and in JSON all that was asked for."""
    from tinylm.inspection import inspect_folder
    from tinylm.sources.catalog import resolve
    from tinylm.tensor_names import TensorNames

    folder = resolve(arguments.model)
    facts: dict[str, Any] = {}
    if arguments.json or not (arguments.program or arguments.spectra):
        names = TensorNames.read(arguments.tensor_names)
        facts = inspect_folder(folder, arguments.architecture, names)
    if arguments.program or arguments.spectra:
        program = load(folder, arguments)
        if arguments.program:
            facts["program"] = [str(operation) for operation in program.operations]
        if arguments.spectra:
            facts |= spectra_facts(program, arguments)
    if arguments.json:
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    for line in (*facts.get("program", ()), *facts.pop("table", ())):
        print(line)
    if "folder" in facts:
        for label, value in shown(facts):
            print(f"{label:20}{value}".rstrip())
    return 0


def load(folder: Path, arguments: argparse.Namespace) -> Program:
    """The program of the model, its weights mapped."""
    from tinylm.checkpoint import Checkpoint
    from tinylm.models import load_program
    from tinylm.tensor_names import TensorNames

    names = TensorNames.read(arguments.tensor_names)
    return load_program(Checkpoint(folder), "auto", arguments.architecture, names)[0]


def spectra_facts(program: Program, arguments: argparse.Namespace) -> dict[str, Any]:
    """The spectra for machines, and the table for people."""
    import dataclasses

    from tinylm.spectra import spectra, summaries

    bar = None if arguments.quiet else ProgressBar("the singular values", numbers)
    progress = (lambda done, total: bar("computing", done, total)) if bar else None
    try:
        found = spectra(program, progress)
    finally:
        if bar:
            bar.close()
    groups = summaries(found)
    facts: dict[str, Any] = {
        "condition numbers": {name: finite(dataclasses.asdict(one)) for name, one in groups.items()},
        "spectra": [finite({**dataclasses.asdict(one), "condition": one.condition}) for one in found],
    }
    return facts if arguments.json else {"table": list(table(groups, found))}


def finite(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures as JSON can hold them: null for an infinite one."""
    return {name: None if value == float("inf") else value for name, value in figures.items()}


def table(groups: dict[str, Summary], found: list[Spectrum]) -> Iterator[str]:
    """The condition numbers by group, and the worst matrix."""
    yield f"{'condition numbers':18}{'matrices':>10}{'median':>12}{'mean':>12}{'p95':>12}{'max':>12}"
    for name, one in groups.items():
        figures = "".join(f"{value:>12,.1f}" for value in (one.median, one.mean, one.p95, one.max))
        yield f"{name:18}{one.count:>10,}{figures}"
    worst = max(found, key=lambda one: one.condition)
    yield (
        f"the worst: {worst.name}, {worst.shape[0]} x {worst.shape[1]}, singular values"
        f" {worst.largest:.4g} to {worst.smallest:.4g}"
    )


def numbers(count: float) -> str:
    """Numbers of a matrix for people: 1234567 -> '1.2 million'."""
    return f"{count / 1e6:,.1f} million"


def shown(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts for people, as labels and lines."""
    yield "folder", facts["folder"]
    yield "architecture", f"{facts['architecture']} ({facts['fits']})"
    for line in facts["does not fit"]:
        yield "", line
    for label in ("layers", "width", "heads", "key/value heads", "head width", "feed-forward", "vocabulary",
                  "context"):  # fmt: skip
        if label in facts:
            yield label, f"{facts[label]:,}"
    for number, (name, value) in enumerate(facts.get("settings", {}).items()):
        yield "" if number else "settings", f"{name} {plain(value)}"
    yield "parameters", f"{facts['parameters']:,}"
    for name, count in facts.get("parameters by group", {}).items():
        yield f"  {name}", f"{count:,}" if count or name != "head" else "the embedding"
    stored = ", ".join(f"{count:,} {dtype}" for dtype, count in facts["stored as"].items())
    yield "stored as", f"{stored} in {facts['tensors']:,} tensors, {size(facts['bytes'])}"
    if "memory" in facts:
        yield from memory_lines(facts["memory"])
    yield from tokenizer_lines(facts["tokenizer"])
    template = facts["chat template"]
    if isinstance(template, dict):
        yield "chat template", f"{len(template)}: {', '.join(template)}"
    else:
        yield "chat template", "none" if template is None else f"{len(template):,} characters"


def memory_lines(memory: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Weights alone, and with the keys and values of one text of some lengths."""
    lengths = memory["keys and values"]
    yield "memory", f"{'weights':>10}" + "".join(f"{f'+ {int(one):,} tokens':>18}" for one in lengths)
    for name, weights in memory["weights"].items():
        cells = "".join(f"{size(weights + extra):>18}" for extra in lengths.values())
        note = "   as stored" if name == memory["as stored"] else ""
        yield f"  {name}", f"{size(weights):>10}{cells}{note}"


def tokenizer_lines(tokenizer: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The tokenizer's parts, and its tokens with a meaning."""
    if "problem" in tokenizer:
        yield "tokenizer", f"none that can be read: {tokenizer['problem']}"
        return
    counts = ", ".join(f"{tokenizer[name]:,} {name}" for name in ("entries", "merges", "added tokens"))
    yield "tokenizer", f"{tokenizer['model']}, {counts}, ids to {tokenizer['highest id']:,}"
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        yield f"  {part}", ", ".join(tokenizer[part]) or "none"
    for name in ("begin", "end", "padding"):
        yield f"  {name}", plain(tokenizer[name])
    special = [f"{token} {number}" for token, number in tokenizer["special tokens"].items()]
    more = f" and {len(special) - MOST_SPECIAL_TOKENS:,} more" if len(special) > MOST_SPECIAL_TOKENS else ""
    yield "  special tokens", (", ".join(special[:MOST_SPECIAL_TOKENS]) or "none") + more


def plain(value: Any) -> str:
    """A setting for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
