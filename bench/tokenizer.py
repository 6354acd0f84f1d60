"""How fast text becomes ids and ids text, beside the `tokenizers` library on one thread: alternating, in one run.

    python bench/tokenizer.py [TOKENIZER.JSON ...] [--text FILE ...] [--rounds 7]

Without arguments: the published tokenizers and texts of the tests. "First" is a text that a fresh tokenizer has
never seen, "again" the same text once more, when both remember its words. What reads the text alone is the limit
of any encoder in Python: the regular expression that cuts it into words. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import tokenizers

from tinylm.tokenizer import Tokenizer
from tinylm.tokenizer.patterns import GPT2, Pattern

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
PROMPTS = 500
PROMPT = "This Agreement is entered into as of"


def read(path: Path) -> str:
    """The text of a file, packed or not."""
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def many(encode: Callable[[str], object]) -> None:
    """A short prompt, again and again."""
    for _ in range(PROMPTS):
        encode(PROMPT)


def measure(document: str, text: str, rounds: int) -> dict[str, dict[str, float]]:
    """Each case by us and by the library in turns; medians, and the median and spread of the ratio."""
    samples: dict[str, list[tuple[float, float]]] = {}

    def take(name: str, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
        samples.setdefault(name, []).append((seconds(ours), seconds(theirs)))

    for _ in range(rounds):
        take("load", lambda: Tokenizer.from_json(document), lambda: tokenizers.Tokenizer.from_str(document))
        ours, theirs = Tokenizer.from_json(document), tokenizers.Tokenizer.from_str(document)
        take("encode first", lambda a=ours: a.encode(text), lambda b=theirs: b.encode(text))
        take("encode again", lambda a=ours: a.encode(text), lambda b=theirs: b.encode(text))
        ids = ours.encode(text)
        take("decode", lambda a=ours, i=ids: a.decode(i), lambda b=theirs, i=ids: b.decode(i))
        take("many prompts", lambda a=ours: many(a.encode), lambda b=theirs: many(b.encode))
        take("with offsets", lambda a=ours: a.encode_with_offsets(text), lambda b=theirs: b.encode(text))
    found = {}
    for name, pairs in samples.items():
        ratios = sorted(theirs / ours for ours, theirs in pairs)
        found[name] = {
            "ours": statistics.median(ours for ours, _ in pairs),
            "library": statistics.median(theirs for _, theirs in pairs),
            "ratio": statistics.median(ratios),
            "ratio_low": ratios[0],
            "ratio_high": ratios[-1],
        }
    return found


def main() -> None:
    """Measure and print; JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizers", nargs="*", type=Path, help="tokenizer.json files, or .json.gz")
    parser.add_argument("--text", action="append", type=Path, help="default: those of the tests")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    files = arguments.tokenizers or sorted((FIXTURES / "tokenizers").glob("*/tokenizer.json.gz"))
    text = "\n".join(map(read, arguments.text or sorted((FIXTURES / "text").glob("*.txt.gz"))))
    megabytes = len(text.encode()) / 1e6
    words = Pattern(GPT2, "bench")
    limit = megabytes / min(seconds(lambda: words.words(text)) for _ in range(arguments.rounds))
    machine = {
        "processor": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
    }
    print(
        f"{' '.join(machine.values())}, tokenizers {tokenizers.__version__}, 1 thread, {megabytes:.2f} MB of text"
    )
    print(f"cutting the text into words by the expression of GPT-2 alone: {limit:.1f} MB/s\n")
    results: list[dict[str, Any]] = []
    for file in files:
        name = file.parent.name
        for case, figures in measure(read(file), text, arguments.rounds).items():
            if case == "load":
                shown = f"{figures['ours'] * 1e3:8.1f} ms"
            elif case == "many prompts":
                shown = f"{figures['ours'] / PROMPTS * 1e6:8.1f} us each"
            else:
                shown = (
                    f"{megabytes / figures['ours']:8.1f} MB/s ({megabytes / figures['ours'] / limit:4.0%})"
                )
            print(
                f"{name:24} {case:16} {shown:24} {figures['ratio']:5.1f} x the library's speed "
                f"({figures['ratio_low']:.1f}-{figures['ratio_high']:.1f})"
            )
            results.append({"tokenizer": name, "case": case, **figures})
    record = {"bench": "tokenizer", "machine": machine, "megabytes": megabytes, "limit_mb_s": limit}
    print(json.dumps(record | {"results": results}))


if __name__ == "__main__":
    main()
