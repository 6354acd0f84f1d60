"""Condition numbers of weight matrices against NumPy's singular value decomposition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tinylm import spectra as subject
from tinylm.checkpoint import Checkpoint
from tinylm.formats.float32 import Float32Matrix
from tinylm.models import load_program
from tinylm.program import Program
from tinylm.spectra import Spectrum, singular_values, spectra, summaries, summary

STORIES = Path(__file__).resolve().parent.parent / "tinylm" / "stories260k"


def with_singular_values(N: int, K: int, values: np.ndarray, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    left, _ = np.linalg.qr(generator.standard_normal((N, len(values))))
    right, _ = np.linalg.qr(generator.standard_normal((K, len(values))))
    matrix: np.ndarray = (left * values) @ right.T
    return matrix


@pytest.mark.parametrize(("N", "K"), [(40, 40), (100, 30), (30, 100), (1, 7), (7, 1)])
def test_singular_values(N: int, K: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "ROWS", 16)  # several blocks of rows
    matrix = np.random.default_rng(N).standard_normal((N, K)).astype(np.float32)
    expected = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    assert np.allclose(singular_values(matrix), expected, rtol=1e-6)


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_known_condition_numbers(condition: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond SAFE_CONDITION the squares would lose the smallest value."""
    monkeypatch.setattr(subject, "ROWS", 50)
    values = np.geomspace(1, 1 / condition, 30)
    matrix = with_singular_values(200, 30, values)
    found = singular_values(matrix)  # type: ignore[arg-type]  # float64, so that rounding leaves the values
    assert found[0] / found[-1] == pytest.approx(condition, rel=1e-4)


def test_a_matrix_that_loses_a_direction() -> None:
    matrix = np.random.default_rng(1).standard_normal((20, 10)).astype(np.float32)
    matrix[:, 9] = matrix[:, 3]
    values = singular_values(matrix)
    assert values[-1] < 1e-7 * values[0]
    assert Spectrum("w", "MLP", (2, 2), 1.0, 0.0).condition == float("inf")
    assert summary([1.0, float("inf")]).p95 == float("inf")


def test_every_matrix_of_the_story_model() -> None:
    with Checkpoint(STORIES) as checkpoint:
        found = {one.name: one for one in spectra(load_program(checkpoint)[0])}
        assert len(found) == 5 * 7 + 1
        for name, tensor in {
            "blocks.2.attn.k": "model.layers.2.self_attn.k_proj",
            "blocks.0.attn_out": "model.layers.0.self_attn.o_proj",
            "blocks.4.mlp_out": "model.layers.4.mlp.down_proj", "logits": "model.embed_tokens",
        }.items():  # fmt: skip
            weights = checkpoint.float32(f"{tensor}.weight")
            assert found[name].shape == weights.shape
            assert found[name].condition == pytest.approx(
                np.linalg.cond(weights.astype(np.float64)), rel=1e-5
            )


def test_groups_and_their_figures() -> None:
    groups = ["attention q", "attention k", "attention o", "MLP", "MLP", "head"]
    found = [Spectrum("w", group, (2, 2), float(i + 1), 1.0) for i, group in enumerate(groups)]
    tables = summaries(found)
    assert list(tables) == ["attention q", "attention k", "attention o", "attention", "MLP", "head", "all"]
    assert (tables["attention"].count, tables["attention"].mean) == (3, 2.0)
    assert (tables["MLP"].median, tables["MLP"].max) == (4.5, 5.0)
    assert tables["all"].p95 == pytest.approx(np.percentile([1, 2, 3, 4, 5, 6], 95))


def test_the_parts_of_a_fused_matrix() -> None:
    """Rows are head-major, then q, k and v of the head."""
    generator = np.random.default_rng(3)
    H, Dh, D = 3, 4, 12
    parts = {part: generator.standard_normal((H, Dh, D)).astype(np.float32) for part in "qkv"}
    fused = np.concatenate([parts[part] for part in "qkv"], axis=1).reshape(3 * D, D)
    program = Program(
        vocab_size=5, heads=H, key_value_heads=H, head_dim=Dh, inverse_frequencies=np.ones(2, np.float32)
    )
    x = program.embed("embed", Float32Matrix(np.zeros((5, D), np.float32)))
    qkv = program.matmul("blocks.0.attn.qkv", x, Float32Matrix(fused))
    for i, part in enumerate("qkv"):
        program.part_of_heads(f"blocks.0.attn.{part}", qkv, i * Dh, Dh, 3 * Dh)
    seen: list[tuple[int, int]] = []
    found = spectra(program, lambda done, total: seen.append((done, total)))
    assert [(one.name, one.group) for one in found] == [
        (f"blocks.0.attn.{part}", f"attention {part}") for part in "qkv"
    ]
    for one, part in zip(found, "qkv", strict=True):
        assert one.condition == pytest.approx(
            np.linalg.cond(parts[part].reshape(D, D).astype(np.float64)), rel=1e-5
        )
    assert seen == [(144, 432), (288, 432), (432, 432)]
