"""The facts of a model folder, also of one that does not fit."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from tinylm.engine import Engine
from tinylm.inspection import inspect_folder
from tinylm.tensor_names import TensorNames

ROOT = Path(__file__).resolve().parent.parent
STORIES = ROOT / "tinylm" / "stories260k"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("model_goldens", ROOT / "scripts" / "make_model_goldens.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()
STORED = json.loads(SCRIPT.VARIANTS_FILE.read_text(encoding="utf-8"))


def write(folder: Path, name: str, **changes: object) -> Path:
    path: Path = SCRIPT.write_folder(folder, {**SCRIPT.VARIANTS[name], **changes}, STORED[name]["shapes"])
    return path


def test_the_story_model() -> None:
    facts = inspect_folder(STORIES)
    # The figures that are published with the model.
    assert facts["parameters"] == 260_032
    assert facts["fits"] == "all 47 tensors fit"
    assert [facts[name] for name in ("layers", "width", "heads", "key/value heads", "head width", "feed-forward",
                                     "vocabulary", "context")] == [5, 64, 8, 4, 8, 172, 512, 512]  # fmt: skip
    assert facts["parameters by group"] == {
        "embedding": 512 * 64,
        "attention": 5 * (64 * 64 * 2 + 64 * 32 * 2),
        "MLP": 5 * 3 * 64 * 172,
        "norms": 11 * 64,
        "head": 0,
    }
    assert facts["stored as"] == {"F32": 260_032}
    tokenizer = facts["tokenizer"]
    assert (tokenizer["begin"], tokenizer["end"], tokenizer["padding"]) == (1, 2, None)
    assert tokenizer["special tokens"] == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert tokenizer["normalizer"] == ["Prepend", "Replace"]
    assert facts["chat template"] is None
    json.dumps(facts)


def test_memory_is_what_a_loaded_model_holds() -> None:
    memory = inspect_folder(STORIES)["memory"]
    for dtype in ("float32", "bfloat16", "int8", "int4"):
        engine = Engine.load(STORIES, dtype=dtype, threads=1)
        vectors = sum(vector.nbytes for one in engine.program.operations for vector in one.vectors.values())
        assert memory["weights"][dtype] == sum(one.nbytes for one in engine.program.matrices) + vectors
    cache = Engine.load(STORIES, threads=1).new_sequence().cache
    cache.reserve(512, 0)
    assert memory["keys and values"] == {"512": cache.nbytes}


def test_fused_matrices_biases_and_an_own_head(tmp_path: Path) -> None:
    facts = inspect_folder(write(tmp_path, "gpt_neox"))
    D, F, V = 32, 48, 97
    assert facts["parameters by group"] == {
        "embedding": V * D,
        "attention": 2 * (4 * D * D + 4 * D),
        "MLP": 2 * (2 * D * F + D + F),
        "norms": 5 * 2 * D,
        "head": V * D,
    }
    assert facts["settings"]["rotary_dim"] == 2
    assert facts["settings"]["hidden_act"] == "gelu"
    assert "problem" in facts["tokenizer"]


def test_a_tie_that_is_stored_twice_counts_once(tmp_path: Path) -> None:
    facts = inspect_folder(write(tmp_path, "llama, tied with its head beside"))
    assert facts["stored as"]["F32"] - facts["parameters"] == 97 * 32
    assert facts["parameters by group"]["head"] == 0


@pytest.mark.parametrize(("stored", "loads"), [("F32", "float32"), ("F16", "float32"), ("BF16", "bfloat16")])
def test_the_format_that_is_taken_by_itself(stored: str, loads: str, tmp_path: Path) -> None:
    facts = inspect_folder(write(tmp_path, "llama", stored=stored))
    assert facts["memory"]["as stored"] == loads
    assert list(facts["stored as"]) == [stored]


def test_folders_that_do_not_fit_are_told_about(tmp_path: Path) -> None:
    facts = inspect_folder(write(tmp_path, "qwen3", model_type="mine"))
    assert facts["fits"] == "unknown; the closest is qwen3: all 25 tensors fit"
    assert "memory" not in facts
    assert inspect_folder(tmp_path, "qwen3")["fits"] == "all 25 tensors fit"
    facts = inspect_folder(write(tmp_path, "qwen3", model_type="llama"))
    assert facts["fits"] == "21 of 21 tensors fit, 4 are extra"
    assert facts["does not fit"][0].startswith("extra      model.layers.{}.self_attn")
    facts = inspect_folder(write(tmp_path, "llama", hidden_size=None))
    assert facts["fits"] == "but config.json lacks 'hidden_size'"


def test_names_of_its_own(tmp_path: Path) -> None:
    names = TensorNames({"model.norm.weight": "model.final.weight"})
    facts = inspect_folder(write(tmp_path, "llama"), names=names)
    assert facts["fits"] == "20 of 21 tensors fit, 1 are extra"
