"""Depth stacking: the tensors, counts and configs of deeper models, in one file and in several."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tinylm import cli
from tinylm import stack as stacking
from tinylm.checkpoint import Checkpoint
from tinylm.engine import Engine
from tinylm.errors import CheckpointError, ParameterError, SourceError
from tinylm.stack import stack

STORIES = Path(__file__).resolve().parent.parent / "tinylm" / "stories260k"

# kl3m-006's 30 blocks and its ratios, narrow
CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 131, "hidden_size": 36, "intermediate_size": 96, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 128, "rope_theta": 100_000.0,
    "tie_word_embeddings": True, "layer_types": ["full_attention"] * 30, "eos_token_id": [0, 1],
}  # fmt: skip


def block_shapes(D: int, F: int, KV: int) -> dict[str, tuple[int, ...]]:
    return {
        "input_layernorm.weight": (D,), "post_attention_layernorm.weight": (D,),
        "self_attn.q_proj.weight": (D, D), "self_attn.k_proj.weight": (KV, D), "self_attn.v_proj.weight": (KV, D),
        "self_attn.o_proj.weight": (D, D), "mlp.gate_proj.weight": (F, D), "mlp.up_proj.weight": (F, D),
        "mlp.down_proj.weight": (D, F),
    }  # fmt: skip


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (131, 36), "model.norm.weight": (36,)}
    for layer in range(layers):
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in block_shapes(36, 96, 12).items()}
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "shallow"
    folder.mkdir()
    generator = np.random.default_rng(0)
    tensors = {
        name: (generator.standard_normal(shape) * 0.2).astype(np.float16)
        for name, shape in shapes(30).items()
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes.pdf").write_text("not of the model")
    return folder


def test_thirty_blocks_become_a_hundred_and_twenty(source: Path, tmp_path: Path) -> None:
    written = stack(source, tmp_path / "deep", 4)
    with Checkpoint(source) as old, Checkpoint(tmp_path / "deep") as new:
        assert {name: info.shape for name, info in new.tensors.items()} == shapes(120)
        for name in new.tensors:
            parts = name.split(".")
            if parts[1] == "layers":
                parts[2] = str(int(parts[2]) % 30)
            assert new.tensors[name].dtype == "F16"
            assert np.array_equal(new.array(name), old.array(".".join(parts))), name
        expected = {**CONFIG, "num_hidden_layers": 120, "layer_types": ["full_attention"] * 120}
        assert new.config == expected
    block = sum(math.prod(shape) for shape in block_shapes(36, 96, 12).values())
    assert written.layers == (30, 120)
    assert written.parameters == (131 * 36 + 36 + 30 * block, 131 * 36 + 36 + 120 * block)
    assert sorted(file.name for file in (tmp_path / "deep").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_the_deeper_model_runs_its_blocks_again(source: Path, tmp_path: Path) -> None:
    """Its residual stream after every 30 blocks is what the shallow one makes of it in one pass."""
    stack(source, tmp_path / "deep", 2)
    shallow, deep = Engine.load(source, threads=1), Engine.load(tmp_path / "deep", threads=1)
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    once = shallow.trace(ids)["blocks.29.resid_post"]
    again = shallow.trace(ids, {"embed": lambda _: once})["logits"]
    assert np.abs(deep.logits(ids) - again).max() < 1e-4 * np.abs(again).max()


def test_several_files(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack(source, tmp_path / "one", 2)
    monkeypatch.setattr(stacking, "SHARD_BYTES", 200_000)
    seen: list[tuple[int, int]] = []
    stack(source, tmp_path / "many", 2, lambda done, total: seen.append((done, total)))
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 5
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(sum(array.nbytes for array in load_file(file).values()) <= 200_000 for file in files)
    with Checkpoint(tmp_path / "one") as one, Checkpoint(tmp_path / "many") as many:
        assert one.tensors.keys() == many.tensors.keys()
        assert all(np.array_equal(one.array(name), many.array(name)) for name in one.tensors)
        total = sum(info.nbytes for info in one.tensors.values())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_names_of_another_architecture(tmp_path: Path) -> None:
    names = [f"gpt_neox.layers.{layer}.mlp.dense_4h_to_h.weight" for layer in range(3)]
    folder = tmp_path / "neox"
    folder.mkdir()
    tensors = {name: np.full((2, 2), i, np.float32) for i, name in enumerate(names)}
    save_file({**tensors, "embed_out.weight": np.zeros((5, 2), np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"num_hidden_layers": 3}')
    stack(folder, tmp_path / "deep", 3)
    with Checkpoint(tmp_path / "deep") as deep:
        found = [deep.array(f"gpt_neox.layers.{layer}.mlp.dense_4h_to_h.weight")[0, 0] for layer in range(9)]
        assert found == [0, 1, 2] * 3
        assert len(deep.tensors) == 10


def test_what_cannot_be_stacked(source: Path, tmp_path: Path) -> None:
    config = source / "config.json"

    def error(changes: dict[str, Any]) -> str:
        config.write_text(json.dumps({**CONFIG, **changes}))
        with pytest.raises(CheckpointError) as caught:
            stack(source, tmp_path / "deep", 2)
        assert not (tmp_path / "deep").exists()
        return str(caught.value)

    assert "'num_hidden_layers' is 29, but there are 30 blocks" in error({"num_hidden_layers": 29})
    assert "'layer_types'" in error({"use_sliding_window": True, "layer_types": None})
    config.write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="none of num_hidden_layers"):
        stack(source, tmp_path / "deep", 2)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["embed", "norm"], "found none"),
        (["encoder.0.w", "decoder.0.w"], r"found .*encoder\.N\."),
        (["h.0.w", "h.2.w"], r"blocks above h\.1\., but not that one"),
    ],
)
def test_tensors_without_one_stack_of_blocks(names: list[str], said: str, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    save_file({name: np.zeros(2, np.float32) for name in names}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"num_hidden_layers": 1}')
    with pytest.raises(CheckpointError, match=said):
        stack(folder, tmp_path / "deep", 2)


@pytest.mark.parametrize("times", [1, 0, -4, True, 2.0])
def test_times_that_stack_nothing(times: Any, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="expected 2 or more"):
        stack(STORIES, tmp_path / "deep", times)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "deep")
    assert cli.main(["stack", "stories260k", target, "--times", "2"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{target}\n"
    assert "5 -> 10 blocks, 260,032 -> 487,232 parameters" in err
    assert cli.main(["generate", "Once", "-n", "3", "-q", "--model", target]) == 0
    assert cli.main(["stack", "stories260k", target, "--times", "2", "-q"]) == 1
    assert "already there" in capsys.readouterr().err
    assert cli.main(["stack", "stories260k", target + "2", "--times", "1"]) == 2
    with pytest.raises(SourceError, match="already there"):
        stack(STORIES, target, 2)
