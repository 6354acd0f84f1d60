"""tinylm beside its peers, in every number format, on the same weights, in turns: the table of the README.

    python bench/peers.py [MODEL] [--formats int8] [--peers llama.cpp OpenVINO] [--cases decode:16 prefill:512]
    python bench/peers.py --render one.json two.json

Each contestant is a process of its own, set as is best for it, which the output says. A peer that is not
installed is left out and said; `--peer-python` is another Python that may have it. What their own tools export is
kept in `--scratch`. Cases are `decode:N` (after N tokens), `prefill:N`, `together:N` (N texts at once) and `peak:N`
(peak memory of a process that fills N positions). All of it takes long: parts of it, each with its last line in a
file, are made one table by `--render`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from machine import Limits, describe
from peers_table import markdown
from start_and_memory import peak_memory
from turns import DEPTH_TOGETHER, TOKENS, Case, figures, line, ratio, take_turns
from worker import NotInstalledError, RemoteRunner

from tinylm.measuring import Work
from tinylm.sources.catalog import resolve

FORMATS = {
    "float32": ["tinylm float32", "llama.cpp F32", "transformers float32", "OpenVINO float32",
                "ONNX Runtime float32", "CTranslate2 float32"],
    "bfloat16": ["tinylm bfloat16", "llama.cpp F16", "llama.cpp BF16", "transformers bfloat16"],
    "int8": ["tinylm int8", "llama.cpp Q8_0", "transformers int8", "OpenVINO int8", "ONNX Runtime int8",
             "CTranslate2 int8"],
    "int4": ["tinylm int4", "llama.cpp Q4_0"],
}  # fmt: skip
"""Contestants by how many bits their weights have."""

CASES = ["decode:16", "decode:1024", "prefill:512", "prefill:2048", "together:8", "peak:2304"]


def main() -> None:
    """Measure and print, or print what was measured before."""
    arguments = parse()
    if arguments.render:
        print(markdown([json.loads(file.read_text("utf-8").splitlines()[-1]) for file in arguments.render]))
        return
    folder = resolve(arguments.model)
    with ExitStack() as stack:
        if arguments.scratch is None:
            arguments.scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arguments.scratch.mkdir(parents=True, exist_ok=True)
        found = measure(folder, arguments, stack)
    print(f"\n{markdown([found])}\n")
    print(json.dumps(found))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct", help="a name or a folder")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--peers", nargs="*", help="default: all; none for tinylm alone")
    parser.add_argument("--cases", nargs="+", default=CASES, type=case, metavar="KIND:N")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: as many as are worth having")
    parser.add_argument("--kv-dtype", default="auto", help="how tinylm stores keys and values")
    parser.add_argument(
        "--peer-python", action="append", default=[], metavar="PATH", help="where else peers may be"
    )
    parser.add_argument("--scratch", type=Path, help="keeps what is exported (default: a temporary folder)")
    parser.add_argument(
        "--render", nargs="+", type=Path, metavar="FILE", help="print the table of earlier runs"
    )
    arguments = parser.parse_args()
    arguments.cases = [case(one) if isinstance(one, str) else one for one in arguments.cases]
    if arguments.threads is None:
        from tinylm.kernels.cores import default_threads

        arguments.threads = default_threads()
    return arguments


def case(text: str) -> Case:
    """`decode:16` -> the case."""
    kind, _, length = text.partition(":")
    if kind not in ("decode", "prefill", "together", "peak") or not length.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form decode:16")
    return Case(kind, int(length))


def contestants(arguments: argparse.Namespace) -> dict[str, str]:
    """Name -> format, of tinylm and of the peers that are asked for."""
    return {
        name: kind
        for kind in arguments.formats
        for name in FORMATS[kind]
        if arguments.peers is None or name.rpartition(" ")[0] in ("tinylm", *arguments.peers)
    }


def start(name: str, folder: Path, arguments: argparse.Namespace) -> RemoteRunner:
    """A contestant, by the first Python that has it. Raises NotInstalledError."""
    reasons = []
    for python in dict.fromkeys([sys.executable, *arguments.peer_python]):
        try:
            return RemoteRunner(
                name, python, folder, arguments.threads, arguments.scratch, arguments.kv_dtype
            )
        except NotInstalledError as error:
            reasons.append(str(error))
    raise NotInstalledError("; ".join(dict.fromkeys(reasons)))


def measure(folder: Path, arguments: argparse.Namespace, stack: ExitStack) -> dict[str, Any]:
    """Everything that is asked for, as the JSON has it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named, machine = contestants(arguments), describe(arguments.threads)
    found: dict[str, Any] = {
        "bench": "peers", "model": arguments.model, "machine": machine, "tokens": TOKENS,
        "repeats": arguments.repeats, "settings": {}, "left_out": {}, "results": [],
    }  # fmt: skip
    print(f"{arguments.model}, {machine['processor']}, {machine['threads']} threads, {machine['system']}")
    runners = []
    for name in named:
        print(f"starting {name}\033[K", end="\r", file=sys.stderr, flush=True)
        try:
            runner = start(name, folder, arguments)
        except (NotInstalledError, RuntimeError) as error:
            found["left_out"][name] = str(error)
            print(f"{name:22} left out: {error}")
            continue
        stack.callback(runner.close)
        runners.append(runner)
        found["settings"][name] = runner.settings
        print(f"{name:22} {runner.settings}", flush=True)
    timed = [one for one in arguments.cases if one.kind != "peak"]
    longest = config.get("max_position_embeddings", 2048)
    for one in [one for one in timed if one.positions > longest]:
        timed.remove(one)
        print(f"{one.name} is left out: the model's context is {longest}")
    if timed and runners:
        limits = Limits(arguments.threads)
        samples, last = take_turns(runners, timed, arguments.repeats, limits, config["vocab_size"])
        found["last_tokens"] = last
        print(f"\nthe last token, which should mostly be the same: {last}")
        for one in timed:
            found["results"] += results(one, runners, named, samples)
    for runner in runners:
        runner.close()
    for one in arguments.cases:
        if one.kind == "peak":
            found["results"] += peaks(one, [runner.name for runner in runners], named, folder, arguments)
    return found


def results(
    one: Case, runners: list[RemoteRunner], named: dict[str, str], samples: dict[tuple[str, str], Any]
) -> list[dict[str, Any]]:
    """The figures of a case, each with how many times as fast tinylm is in that format; printed too."""
    print(f"\n{one.title}")
    records = []
    for runner in runners:
        mine = samples.get((one.name, runner.name))
        if mine is None:
            continue
        work = Work(**runner.work) if runner.work else None
        record = {"case": one.name, "title": one.title, "format": named[runner.name], "name": runner.name}
        record |= figures(one, mine, work)
        ours = samples.get((one.name, f"tinylm {named[runner.name]}"))
        text = line(runner.name, one, record)
        if ours is not None and work is None:
            record["tinylm_is"] = ratio(ours, mine)
            text += f"; tinylm is {record['tinylm_is']:.2f} x this"
        alone = samples.get((Case("decode", DEPTH_TOGETHER).name, runner.name))
        if one.kind == "together" and alone is not None:
            record["times_one"] = one.length * ratio(mine, alone)
            text += f"; {record['times_one']:.2f} x one text"
        record["samples"] = [[sample.seconds, sample.before, sample.after] for sample in mine]
        print(text)
        records.append(record)
    return records


def peaks(
    one: Case, names: list[str], named: dict[str, str], folder: Path, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Peak memory of each, in a new process."""
    if sys.platform == "win32":
        print("peak memory: not measured on Windows")
        return []
    title = f"peak memory at {one.length:,} positions"
    print(f"\n{title}")
    records = []
    for name in names:
        try:  # the last token is chosen, and not read any more
            peak = peak_memory(start(name, folder, arguments), one.length - TOKENS, TOKENS - 1)
        except RuntimeError as error:
            print(f"  {name:22} {error}")
            continue
        print(f"  {name:22} {peak / 1e6:8.0f} MB", flush=True)
        records.append({"case": one.name, "title": title, "format": named[name], "name": name, "bytes": peak})
    return records


if __name__ == "__main__":
    main()
