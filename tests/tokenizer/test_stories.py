"""The bundled story model's tokenizer, derived from llama2.c's pieces."""

from __future__ import annotations

import json
import random
import runpy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tinylm.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "stories260k"
BUNDLED = ROOT / "tinylm" / "stories260k"
SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "stories260k_tokenizer.py"))
PIECES: list[tuple[float, str]] = SCRIPT["read_pieces"]((FIXTURES / "tok512.bin").read_bytes())


def test_the_bundled_file_is_what_the_script_makes() -> None:
    assert json.loads((BUNDLED / "tokenizer.json").read_text(encoding="utf-8")) == SCRIPT["tokenizer_of"](
        PIECES
    )


@pytest.mark.parametrize("case", json.loads((FIXTURES / "golden.json").read_text(encoding="utf-8"))["cases"])
def test_golden_ids_and_texts(case: dict[str, Any]) -> None:
    ours = Tokenizer.from_folder(BUNDLED)
    assert ours.encode(case["prompt"]) == case["prompt_ids"]
    # The golden text keeps the space before the first word, and spells the newline token.
    text = case["text"].removeprefix(" ").replace("<0x0A>", "\n")
    assert ours.decode(case["prompt_ids"] + case["greedy_ids"]) == text


def best_score_first(text: str) -> list[int]:
    """llama2.c's own rule: of all neighbours that make a piece, merge the two with the best score, leftmost first."""
    scores = {piece: (score, id) for id, (score, piece) in enumerate(PIECES) if id >= 259}
    symbols = list(f" {text}") if text else []
    while True:
        made = [
            (scores[a + b][0], -place) for place, (a, b) in enumerate(pairwise(symbols)) if a + b in scores
        ]
        if not made:
            break
        place = -max(made)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    ids = [1]
    for symbol in symbols:
        ids += [scores[symbol][1]] if symbol in scores else [3 + byte for byte in symbol.encode()]
    return ids


def test_merging_by_rank_is_merging_by_score(published: Callable[[str], Any], texts: dict[str, str]) -> None:
    ours = published("stories260k").ours
    choose = random.Random(2)
    text = texts["alice"]
    for _ in range(300):
        start = choose.randrange(len(text))
        piece = text[start : start + choose.randrange(120)]
        assert ours.encode(piece) == best_score_first(piece), piece
    assert ours.encode("naïve — “日本”") == best_score_first("naïve — “日本”")


def test_special_tokens_of_the_folder() -> None:
    ours = Tokenizer.from_folder(BUNDLED)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (1, 2, None)
    assert ours.vocab_size == 512
    assert ours.special_ids == {0, 1, 2}
    assert ours.encode("") == [1]
    assert json.loads((BUNDLED / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"] == [
        1,
        2,
    ]
