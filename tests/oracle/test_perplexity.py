"""Perplexity of a random text on a GPT-NeoX against the sliding-window recipe, computed by transformers here."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tinylm.engine import Engine
from tinylm.perplexity import window_nll, windows

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODELS, PERPLEXITY = load_script("make_model_goldens"), load_script("make_perplexity_goldens")


@pytest.mark.parametrize(("context", "stride"), [(64, 32), (64, 64), (50, 13)])
def test_the_recipe(context: int, stride: int, tmp_path: Path) -> None:
    MODELS.oracle(tmp_path, MODELS.NEOX)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    generator = random.Random(context + stride)
    ids = [generator.randrange(97) for _ in range(333)]
    expected = PERPLEXITY.recipe(theirs, ids, context, stride)
    engine = Engine.load(tmp_path / "ours", threads=1)
    found = [window_nll(engine, ids, window, print) for window in windows(len(ids), context, stride)]
    assert np.concatenate(found).size == expected["scored_tokens"]
    assert np.concatenate(found).sum() == pytest.approx(expected["nll"], rel=1e-5)
