"""A stacked folder is a folder for transformers too, with the same logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tinylm import stack as stacking
from tinylm.engine import Engine

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("shard_bytes", [stacking.SHARD_BYTES, 300_000])
def test_thirty_blocks_become_a_hundred_and_twenty(
    shard_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacking, "SHARD_BYTES", shard_bytes)
    torch.manual_seed(6)
    config = transformers.LlamaConfig(
        vocab_size=211, hidden_size=72, intermediate_size=192, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=256, initializer_range=0.1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "shallow")
    written = stacking.stack(tmp_path / "shallow", tmp_path / "deep", 4)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "deep", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert theirs.config.num_hidden_layers == 120
    assert sum(one.numel() for one in theirs.parameters()) == written.parameters[1]
    ids = np.random.default_rng(1).integers(0, 211, 60)
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(ids[None])).logits[0].numpy()
    found = Engine.load(tmp_path / "deep", threads=1, kv_dtype="float32").logits(ids)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
