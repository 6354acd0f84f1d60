"""What a number format costs beside its speed: how far the next token's probabilities move from float32's.

    python bench/quality.py [MODEL] [--tokens 1024] [--text FILE ...] [--peers llama.cpp]

The same ids go through tinylm in each format and through llama.cpp in each of its own; all are held against
tinylm's float32. Shown are the mean Kullback-Leibler divergence KL(float32 || format) in nats with its standard
error, how often both find the same token likeliest, and the perplexity. Texts
are cut from their middle, where no title page is, and read as a prompt is. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from numpy.typing import NDArray

import tinylm.engine
from tinylm.engine import Engine
from tinylm.formats.table import DTYPES
from tinylm.perplexity import token_nll
from tinylm.sources.catalog import resolve
from tinylm.tokenizer import Tokenizer

Logits = NDArray[np.float32]
TEXTS = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "text"
LEGAL, GENERAL = TEXTS / "scotus_opinion.txt.gz", TEXTS / "alice.txt.gz"

ROWS = 64
"""Rows of logits that are compared at a time."""

PEER_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0")


def main() -> None:
    """Measure and print."""
    arguments = parse()
    folder = resolve(arguments.model)
    tokenizer = Tokenizer.from_folder(folder)
    texts = {path.name.partition(".")[0]: cut(tokenizer, path, arguments.tokens) for path in arguments.text}
    machine = describe(arguments.threads)
    print(f"{arguments.model}, {machine['processor']}; KL from tinylm's float32\n")
    reference = engine(folder, "float32", "float32", arguments.threads)
    references = {name: read(reference, ids) for name, ids in texts.items()}
    del reference
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for label, logits_of in contestants(folder, arguments, Path(scratch)):
            print(f"measuring {label}", file=sys.stderr, flush=True)
            for name, ids in texts.items():
                found = compare(references[name], logits_of(ids), ids)
                records.append({"format": label, "text": name, **found})
    print(table(records, list(texts)))
    print(json.dumps({"bench": "quality", "model": arguments.model, "machine": machine, "results": records}))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct", help="a name or a folder")
    parser.add_argument("--tokens", type=int, default=1024, help="of each text")
    parser.add_argument("--text", type=Path, nargs="+", default=[LEGAL, GENERAL], help="UTF-8, may be .gz")
    parser.add_argument("--formats", nargs="+", default=["bfloat16", "int8", "int4"], choices=DTYPES[1:])
    parser.add_argument("--peers", nargs="*", default=["llama.cpp"], choices=["llama.cpp"])
    parser.add_argument("--types", nargs="+", default=["F32", "Q8_0", "Q4_0"], choices=PEER_TYPES)
    parser.add_argument(
        "--kv-dtype", default="auto", help="how tinylm stores keys and values; float32's own stay"
    )
    parser.add_argument("--threads", type=int, help="default: as many as are worth having")
    arguments = parser.parse_args()
    if arguments.threads is None:
        from tinylm.kernels.cores import default_threads

        arguments.threads = default_threads()
    return arguments


def cut(tokenizer: Tokenizer, path: Path, tokens: int) -> list[int]:
    """So many ids from the middle of a text. Raises SystemExit for a shorter one."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) < tokens:
        raise SystemExit(f"{path}: {len(ids)} tokens, fewer than {tokens}")
    begin = (len(ids) - tokens) // 2
    return ids[begin : begin + tokens]


def engine(folder: Path, dtype: str, kv_dtype: str, threads: int) -> Engine:
    """The model in a format."""
    return Engine.load(folder, dtype=dtype, kv_dtype=kv_dtype, threads=threads)


def read(model: Engine, ids: list[int]) -> Logits:
    """(T, V), in the steps in which a prompt is read."""
    tinylm.engine.LOGIT_ROWS = tinylm.engine.CHUNK  # else they are shorter
    sequence = model.new_sequence()
    model.reserve(sequence, len(ids))
    return model.extend(sequence, ids)


def contestants(
    folder: Path, arguments: argparse.Namespace, scratch: Path
) -> Iterator[tuple[str, Callable[[list[int]], Logits]]]:
    """What is compared, one after the other: a label, and ids -> logits."""
    for dtype in arguments.formats:
        model = engine(folder, dtype, arguments.kv_dtype, arguments.threads)
        label = f"tinylm {dtype}" + ("" if model.kv_dtype == "float32" else f" (cache {model.kv_dtype})")
        yield label, lambda ids, model=model: read(model, ids)
    if "llama.cpp" not in arguments.peers:
        return
    try:
        import llama_cpp
        from gguf_of_folder import quantize_gguf, write_gguf
    except ImportError as error:
        print(f"llama.cpp: not installed ({error})")
        return
    source = write_gguf(folder, scratch / "F32.gguf")
    for kind in arguments.types:
        file = quantize_gguf(source, scratch / f"{kind}.gguf", kind)
        model = llama_cpp.Llama(
            str(file), n_ctx=arguments.tokens, n_threads=arguments.threads, n_threads_batch=arguments.threads,
            n_batch=512, flash_attn=True, logits_all=True, verbose=False,
        )  # fmt: skip

        def logits(ids: list[int], model: Any = model) -> Logits:
            model.reset()
            model.eval(ids)
            found: Logits = np.array(model.scores[: len(ids)], np.float32)
            return found

        yield f"llama.cpp {kind}", logits
        model.close()


def compare(reference: Logits, found: Logits, ids: list[int]) -> dict[str, float]:
    """What the table shows of logits (T, V) after each of the ids."""
    divergences, same = [], 0
    for begin in range(0, len(ids), ROWS):
        part = slice(begin, begin + ROWS)
        true, other = log_probabilities(reference[part]), log_probabilities(found[part])
        divergences.append((np.exp(true) * (true - other)).sum(axis=-1))
        same += int((reference[part].argmax(axis=-1) == found[part].argmax(axis=-1)).sum())
    divergence = np.concatenate(divergences)
    targets = np.asarray(ids[1:])
    expected, actual = (float(token_nll(one[:-1], targets).mean()) for one in (reference, found))
    return {
        "tokens": len(ids),
        "mean_kl": float(divergence.mean()),
        "standard_error": float(divergence.std() / np.sqrt(len(divergence))),
        "same_top": same / len(ids),
        "perplexity": float(np.exp(actual)),
        "perplexity_change": float(np.exp(actual - expected) - 1),
    }


def log_probabilities(logits: Logits) -> NDArray[np.float64]:
    """`(T, V) -> (T, V)`: log softmax, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def table(records: list[dict[str, Any]], texts: list[str]) -> str:
    """The records as Markdown, a row for each format."""
    lines = [
        "| weights | " + " | ".join(f"{text}: KL | same top | perplexity" for text in texts) + " |",
        "|---|" + "---|---|---|" * len(texts),
    ]
    for label in dict.fromkeys(record["format"] for record in records):
        cells = [
            f"{one['mean_kl']:.5f} ± {one['standard_error']:.5f} | {one['same_top']:.3f} |"
            f" {one['perplexity']:.3f} ({one['perplexity_change']:+.2%})"
            for one in records
            if one["format"] == label
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
