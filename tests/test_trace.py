"""Traces: values under TransformerLens' names, hooks that change them, lenses, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import tinylm
from tinylm import trace as tracing
from tinylm.engine import Engine
from tinylm.errors import ContextError, ParameterError
from tinylm.language_model import LanguageModel

TEXT = "Once upon a time, there was a little dog"


def load_script() -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "scripts" / "make_model_goldens.py"
    spec = importlib.util.spec_from_file_location("model_goldens", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tinylm.load(threads=1)


def test_without_hooks_the_logits_are_the_compiled_ones(lm: LanguageModel) -> None:
    trace = lm.trace(TEXT)
    compiled = lm.logits(TEXT)
    assert np.abs(trace.logits - compiled).max() < 1e-4 * np.abs(compiled).max()
    assert trace.ids == lm.prompt_ids(TEXT)
    assert len(trace.tokens) == len(trace.ids)


def test_shapes(lm: LanguageModel) -> None:
    trace = lm.trace(TEXT)
    T, H, Hkv, Dh, D, F, V = len(trace.ids), 8, 4, 8, 64, 172, 512
    shapes = {
        "embed": (T, D), "blocks.4.resid_mid": (T, D), "blocks.0.attn.q": (T, H, Dh),
        "blocks.2.attn.rot_k": (T, Hkv, Dh), "blocks.2.attn.v": (T, Hkv, Dh), "blocks.1.attn.z": (T, H, Dh),
        "blocks.3.attn.pattern": (H, T, T), "blocks.3.mlp.post": (T, F), "ln_final": (T, D), "logits": (T, V),
    }  # fmt: skip
    assert {name: trace[name].shape for name in shapes} == shapes
    assert trace.residuals.shape == (6, T, D)
    assert all(value.dtype == np.float32 for value in trace.values())
    assert len(trace) == len(list(trace)) == len(set(trace))


def test_patterns_are_causal_and_sum_to_one(lm: LanguageModel) -> None:
    trace = lm.trace(TEXT)
    for layer in range(trace.layers):
        pattern = trace.pattern(layer)
        assert np.allclose(pattern.sum(-1), 1, atol=1e-6)
        assert not np.triu(pattern, 1).any()


def test_the_residual_stream_adds_up(lm: LanguageModel) -> None:
    trace = lm.trace(TEXT)
    total = trace["embed"].copy()
    for layer in range(trace.layers):
        assert np.array_equal(trace[f"blocks.{layer}.resid_pre"], trace.residuals[layer])
        total += trace[f"blocks.{layer}.attn_out"] + trace[f"blocks.{layer}.mlp_out"]
        assert np.allclose(total, trace.residuals[layer + 1], atol=1e-4)


def test_names_of_transformer_lens(lm: LanguageModel) -> None:
    trace = lm.trace(TEXT)
    for theirs, ours in {
        "hook_embed": "embed",
        "blocks.3.hook_resid_pre": "blocks.2.resid_post",
        "blocks.0.hook_resid_pre": "embed",
        "blocks.1.attn.hook_pattern": "blocks.1.attn.pattern",
        "blocks.1.ln1.hook_normalized": "blocks.1.ln1",
        "ln_final.hook_normalized": "ln_final",
    }.items():
        assert theirs in trace
        assert trace[theirs] is trace[ours]


def test_the_logit_lens_ends_with_the_models_own_logits(lm: LanguageModel) -> None:
    trace = lm.trace(TEXT)
    assert np.allclose(trace.unembed(trace.residuals[-1]), trace.logits, atol=1e-5)
    lens = trace.logit_lens(position=3)
    assert lens.shape == (6, 512)
    assert np.allclose(lens[-1], trace.logits[3], atol=1e-5)
    # by hand: RMSNorm, then the product with the tied embedding
    matrices = lm.engine.program.matrices
    norm = next(one for one in lm.engine.program.operations if one.output.name == "ln_final")
    x = trace.residuals[2, 3]
    x = x / np.sqrt((x**2).mean() + norm.numbers["eps"]) * norm.vectors["weight"]
    assert np.allclose(lens[2], matrices[0].dequantize() @ x, atol=1e-4)


def test_hooks_return_or_change_in_place(lm: LanguageModel) -> None:
    def in_place(z: np.ndarray) -> None:
        z[:, 3] = 0

    def returned(z: np.ndarray) -> np.ndarray:
        changed = z.copy()
        changed[:, 3] = 0
        return changed

    one, two = (lm.trace(TEXT, {"blocks.2.attn.hook_z": hook}) for hook in (in_place, returned))
    assert not one["blocks.2.attn.z"][:, 3].any()
    assert np.array_equal(one.logits, two.logits)
    assert np.abs(one.logits - lm.trace(TEXT).logits).max() > 0.1


def test_a_hook_changes_what_comes_after_and_nothing_before(lm: LanguageModel) -> None:
    plain = lm.trace(TEXT)
    changed = lm.trace(TEXT, {"blocks.2.resid_pre": lambda x: x * 0})
    assert np.array_equal(changed["blocks.1.mlp_out"], plain["blocks.1.mlp_out"])
    assert not changed["blocks.1.resid_post"].any()
    # what a position no longer holds, later positions no longer see
    last = lm.trace(TEXT, {"blocks.2.resid_pre": lambda x: x * (np.arange(len(x)) < len(x) - 1)[:, None]})
    assert np.array_equal(last.logits[:-1], plain.logits[:-1])


def test_a_changed_pattern_weights_the_values_anew(lm: LanguageModel) -> None:
    def first_only(pattern: np.ndarray) -> None:
        pattern[...] = 0
        pattern[:, :, 0] = 1

    trace = lm.trace(TEXT, {"blocks.1.attn.pattern": first_only})
    values = np.repeat(trace["blocks.1.attn.v"][0], 2, axis=0)  # two query heads share a key/value head
    assert np.allclose(trace["blocks.1.attn.z"], values[None], atol=1e-6)


def test_all_of_a_text_patched_gives_the_other_text(lm: LanguageModel) -> None:
    other = lm.trace("Once upon a time, there was a little cat")
    here = lm.prompt_ids(TEXT)
    assert len(here) == len(other.ids)
    patched = lm.trace(here, {"blocks.3.resid_pre": lambda _: other["blocks.3.resid_pre"]})
    assert np.allclose(patched.logits, other.logits, atol=1e-5)


def test_hooks_that_only_look_change_nothing(lm: LanguageModel) -> None:
    plain = lm.trace(TEXT)
    seen = {}
    hooks = {name: lambda value, name=name: seen.update({name: value.shape}) for name in plain}
    assert np.allclose(lm.trace(TEXT, hooks).logits, plain.logits, atol=1e-5)
    assert seen == {name: value.shape for name, value in plain.items()}


@pytest.mark.parametrize(
    "name", ["gpt_neox", "gpt_neox, sequential residual", "qwen3, one key head", "llama, bfloat16"]
)
def test_other_architectures(name: str, tmp_path: Path) -> None:
    shapes = json.loads(SCRIPT.VARIANTS_FILE.read_text(encoding="utf-8"))[name]["shapes"]
    engine = Engine.load(SCRIPT.write_folder(tmp_path, SCRIPT.VARIANTS[name], shapes), threads=1)
    ids = SCRIPT.text_ids(engine.vocab_size)
    trace = tracing.trace(engine, ids, [""] * len(ids))
    compiled = engine.logits(ids)
    assert np.abs(trace.logits - compiled).max() < 1e-4 * np.abs(compiled).max()
    assert trace["blocks.1.attn.q"].shape == (len(ids), 4, 8)
    assert np.allclose(trace.pattern(1).sum(-1), 1, atol=1e-6)
    assert np.allclose(trace.logit_lens()[-1], trace.logits[-1], atol=1e-5)
    assert ("blocks.0.resid_mid" in trace) == (name != "gpt_neox")
    parts = [trace[f"blocks.{layer}.{part}_out"] for layer in range(2) for part in ("attn", "mlp")]
    assert np.allclose(trace["embed"] + sum(parts), trace.residuals[-1], atol=1e-4)


def test_unknown_names_suggest_known_ones(lm: LanguageModel) -> None:
    trace = lm.trace("Once")
    assert "blocks.9.resid_post" not in trace
    with pytest.raises(KeyError, match=r"blocks.0.attn.pattern"):
        trace["blocks.0.attn.patern"]
    with pytest.raises(
        ParameterError, match=r"hook 'blocks.0.attn.patern' is no value .*blocks.0.attn.pattern"
    ):
        lm.trace("Once", {"blocks.0.attn.patern": lambda x: x})
    with pytest.raises(ParameterError, match="two hooks for 'embed'"):
        lm.trace("Once", {"embed": lambda x: x, "blocks.0.resid_pre": lambda x: x})


def test_a_hook_of_another_shape(lm: LanguageModel) -> None:
    with pytest.raises(ParameterError, match=r"'blocks.0.attn.z' returns shape \(2, 64\), where \(2, 8, 8\)"):
        lm.trace("Once", {"blocks.0.attn.z": lambda z: z.reshape(2, 64)})


def test_a_residual_of_another_width(lm: LanguageModel) -> None:
    with pytest.raises(ParameterError, match=r"shape \(3,\); expected \(..., 64\)"):
        lm.trace("Once").unembed(np.zeros(3, np.float32))


def test_a_text_too_long_to_keep(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = lm.trace(TEXT)
    assert tracing.nbytes(lm.engine.program, len(trace.ids)) == sum(value.nbytes for value in trace.values())
    monkeypatch.setattr(tracing, "MOST_BYTES", 1000)
    with pytest.raises(ContextError, match=r"take 0.* GB, over .*shorter text"):
        lm.trace(TEXT)
