"""Attention patterns, residual streams, the logit lens and an ablation against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinylm

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

STORIES = Path(__file__).resolve().parent.parent.parent / "tinylm" / "stories260k"
TEXT = "Tim had a big red ball. He liked to play with his big red"


@pytest.fixture(scope="module")
def theirs() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(STORIES, attn_implementation="eager").eval()


def test_patterns_residuals_and_the_lens(theirs: Any) -> None:
    trace = tinylm.load(threads=1).trace(TEXT)
    with torch.no_grad():
        output = theirs(torch.tensor([trace.ids]), output_attentions=True, output_hidden_states=True)
        for layer, attention in enumerate(output.attentions):
            assert np.abs(trace.pattern(layer) - attention[0].numpy()).max() < 1e-5
        # transformers normalizes the last of its hidden states
        for layer, hidden in enumerate(output.hidden_states[:-1]):
            assert np.abs(trace.residuals[layer] - hidden[0].numpy()).max() < 1e-4
            lens = theirs.lm_head(theirs.model.norm(hidden[0, -1])).numpy()
            assert np.abs(trace.logit_lens()[layer] - lens).max() < 1e-4
        assert np.abs(trace["ln_final"] - output.hidden_states[-1][0].numpy()).max() < 1e-4


def test_an_ablated_head(theirs: Any) -> None:
    def ours(z: np.ndarray) -> None:
        z[:, 4] = 0

    def their_hook(module: Any, inputs: Any) -> Any:
        z = inputs[0].clone()
        z[..., 4 * 8 : 5 * 8] = 0
        return (z,)

    trace = tinylm.load(threads=1).trace(TEXT, {"blocks.4.attn.hook_z": ours})
    handle = theirs.model.layers[4].self_attn.o_proj.register_forward_pre_hook(their_hook)
    with torch.no_grad():
        logits = theirs(torch.tensor([trace.ids])).logits[0].numpy()
    handle.remove()
    assert np.abs(trace.logits - logits).max() < 1e-4
