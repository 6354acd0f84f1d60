"""How fast a model writes, beside its limits and its peers: all in one run that alternates.

    python bench/generate.py [MODEL] [--threads 2] [--repeats 5] [--peers llama.cpp transformers]

tinylm in one format, the peers in float32; then time to the first token, and peak memory. Shares of the limits (the
memory's bandwidth, NumPy's float32 matrix product) are of the better and of the worse of two measurements around
each sample. A peer that is not installed is left out. The last line is JSON. `bench/peers.py` compares every
format.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from machine import Limits, describe
from runners import Runner, Tinylm, makers
from start_and_memory import measure_peak, measure_start
from turns import Case, figures, line, ratio, take_turns

from tinylm.measuring import Work
from tinylm.sources.catalog import resolve

CASES = (Case("decode", 16), Case("decode", 1024), Case("prefill", 512), Case("prefill", 2048))
PEERS = {"llama.cpp": "F32", "transformers": "float32"}


def main() -> None:
    """Measure and print."""
    arguments = parse()
    folder = resolve(arguments.model)
    with tempfile.TemporaryDirectory() as scratch:
        ours = Tinylm(folder, arguments.threads, arguments.dtype)
        runners: list[Runner] = [ours, *peers(arguments, folder, Path(scratch))]
        result: dict[str, Any] = {
            "model": arguments.model,
            "machine": describe(ours.engine.threads),
            "settings": {runner.name: runner.settings for runner in runners},
        }
        for key, value in result["machine"].items():
            print(f"{key:10} {value}")
        for runner in runners:
            print(f"{runner.name:13} {runner.settings}")
        result["speed"] = measure_speed(runners, ours, arguments.repeats)
        if not arguments.speed_only:
            result["start"] = measure_start(folder, ours.engine.threads, arguments.dtype)
            formats = {"tinylm": arguments.dtype, **PEERS}
            names = [f"{runner.name} {formats[runner.name]}" for runner in runners]
            work = Work.of(ours.engine.program, ours.engine.kv_dtype)
            result["peak_memory"] = measure_peak(names, folder, ours.engine.threads, work, Path(scratch))
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct", help="a name or a folder")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--speed-only", action="store_true", help="no figures of start and memory")
    arguments = parser.parse_args()
    if arguments.threads is None:
        from tinylm.kernels.cores import default_threads

        arguments.threads = default_threads()
    return arguments


def peers(arguments: argparse.Namespace, folder: Path, scratch: Path) -> list[Runner]:
    """Those that are asked for and installed."""
    found: list[Runner] = []
    for name in arguments.peers:
        try:
            found.append(makers()[name](folder, arguments.threads, PEERS[name], scratch))
        except ImportError as error:
            print(f"{name}: not installed ({error})")
    return found


def measure_speed(runners: list[Runner], ours: Tinylm, repeats: int) -> dict[str, dict[str, Any]]:
    """Every case, every runner, in turns; tokens a second and the share of the limit."""
    cases = [case for case in CASES if case.positions <= ours.engine.context_length]
    work = Work.of(ours.engine.program, ours.engine.kv_dtype)
    samples, last = take_turns(runners, cases, repeats, Limits(ours.engine.threads), ours.engine.vocab_size)
    print(f"\nthe last token, which should be the same: {last}")
    result: dict[str, dict[str, Any]] = {}
    for case in cases:
        print(f"\n{case.title}")
        for runner in runners:
            found = figures(case, samples[case.name, runner.name], work)
            text = line(runner.name, case, found)
            if runner is not ours:
                factor = ratio(samples[case.name, ours.name], samples[case.name, runner.name])
                text += f"; tinylm is {factor:.2f} x this"
            print(text)
            result.setdefault(case.name, {})[runner.name] = found
    return result


if __name__ == "__main__":
    main()
