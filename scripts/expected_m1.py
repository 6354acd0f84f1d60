#!/usr/bin/env python3
"""Computes how many tokens a second an Apple M1 could write at most, for each published shape and number format.

Writing reads every weight once a token, and keys and values of all positions before it. The bytes are those of the
programs that tinylm makes of the models' configs; no weights are needed, and nothing is measured.

    python scripts/expected_m1.py            print the table of docs/expected-m1.md
    python scripts/expected_m1.py --write    write it into that file
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from exact_shapes import MODELS

from tinylm.checkpoint import Checkpoint
from tinylm.formats.key_values import automatic
from tinylm.formats.table import DTYPES, stored_bytes
from tinylm.measuring import Work
from tinylm.models import architecture, layout
from tinylm.program import Program

BANDWIDTH = 68.25e9
"""Bytes a second of an M1's memory: LPDDR4X-4266, 128 bits."""

REACHED = 0.85
"""Of the bandwidth, in the second figure of each cell."""

DEPTHS = (16, 1024)
PUBLISHED = ("kl3m-002-170m", "kl3m-006-170m", "kl3m-007-500m", "KeyLM-75M", "LRC-1.5B-SFT")
FILE = Path(__file__).resolve().parent.parent / "docs" / "expected-m1.md"
BEGIN, END = "<!-- computed by scripts/expected_m1.py -->", "<!-- end -->"

SMOLLM2: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49_152, "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}  # fmt: skip


def shapes() -> dict[str, tuple[dict[str, Any], str | None]]:
    """Name -> (config, the architecture where the config does not say it)."""
    published = {name: (MODELS[name].config, MODELS[name].architecture) for name in PUBLISHED}
    return {"SmolLM2-135M": (SMOLLM2, None), **published}


def program_of(config: dict[str, Any], name: str | None) -> Program:
    """The program of a config; its weights are zeros that take no memory."""
    empty = cast("Checkpoint", SimpleNamespace(folder=Path(), config=config, tensors={}))
    module = architecture(config, name)
    assert module is not None
    found = layout.fit(empty, module).program
    assert found is not None
    return found


def bytes_per_token(program: Program, dtype: str, depth: int) -> int:
    """What writing a token behind `depth` others reads: matrices that are multiplied, keys and values."""
    matrices = [one.matrix for one in program.operations if one.kind == "matmul"]
    weights = sum(
        stored_bytes(matrix.shape, dtype, program.vocab_size) for matrix in matrices if matrix is not None
    )
    return weights + int(depth * Work.of(program, automatic([dtype])).position)


def table() -> str:
    """The table as Markdown."""
    lines = [
        "| model | format | "
        + " | ".join(f"MB a token after {depth:,} | tokens/s" for depth in DEPTHS)
        + " |"
    ]
    lines.append("|---|---|" + "---|---|" * len(DEPTHS))
    for name, (config, kind) in shapes().items():
        program = program_of(config, kind)
        for dtype in DTYPES[1:]:
            cells = []
            for depth in DEPTHS:
                nbytes = bytes_per_token(program, dtype, depth)
                most = BANDWIDTH / nbytes
                cells.append(f"{nbytes / 1e6:,.0f} | {number(REACHED * most)} to {number(most)}")
            lines.append(f"| {name} | {dtype} | {' | '.join(cells)} |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Two or three figures."""
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}"


def main() -> int:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description="Compute the expected speeds on an Apple M1.")
    parser.add_argument("--write", action="store_true", help="into docs/expected-m1.md")
    if not parser.parse_args().write:
        print(table())
        return 0
    text = FILE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    FILE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
