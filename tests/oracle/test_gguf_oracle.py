"""An imported GGUF file has the tensors and the config that transformers' own GGUF reader makes of it."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("gguf")

from tinylm.checkpoint import Checkpoint  # noqa: E402
from tinylm.sources.gguf_import import import_gguf  # noqa: E402


def small_models():
    """The writer of small GGUF files that the tests of tinylm.sources use."""
    file = Path(__file__).parents[1] / "sources" / "conftest.py"
    spec = importlib.util.spec_from_file_location("small_gguf_models", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module.SmallModel


@pytest.mark.parametrize("type_", ["F32", "F16", "Q4_1", "Q8_0"])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"tied": True},
        {"kv_heads": 1},
        {"architecture": "qwen3", "head_dim": 128},  # the only width that its reader knows of Qwen3
    ],
    ids=["llama", "tied", "one key head", "qwen3"],
)
def test_equals_transformers(tmp_path, type_, shape):
    from transformers import AutoConfig, AutoModelForCausalLM

    # transformers' reader asks the vocabulary for more than ours does.
    keys = {"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.unknown_token_id": 0}
    small_models()(type=type_, metadata=keys, **shape).write(tmp_path / "m.gguf")
    folder = import_gguf(tmp_path / "m.gguf", tmp_path / "m")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    expected = {name: values.numpy() for name, values in theirs.state_dict().items()}
    with Checkpoint(folder) as checkpoint:
        left = set(expected) - set(checkpoint.tensors)
        assert left == ({"lm_head.weight"} if shape.get("tied") else set())
        for name in checkpoint.tensors:
            np.testing.assert_array_equal(checkpoint.float32(name), expected[name], err_msg=name)
    ours = AutoConfig.from_pretrained(folder)
    for key in (
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "max_position_embeddings",
        "attention_bias",
        "tie_word_embeddings",
        "rope_parameters",
        "bos_token_id",
        "eos_token_id",
    ):
        assert getattr(ours, key) == getattr(theirs.config, key), key
    assert ours.rms_norm_eps == pytest.approx(theirs.config.rms_norm_eps, rel=1e-7)
