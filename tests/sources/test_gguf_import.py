"""GGUF files made by the gguf library's writer come back as the tensors and the config that they were made of."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tinylm.checkpoint import Checkpoint
from tinylm.errors import CheckpointError, MissingExtraError, ParameterError, SourceError
from tinylm.sources import gguf_import as module
from tinylm.sources.gguf_config import llama3_factors
from tinylm.sources.gguf_file import GgufFile
from tinylm.sources.gguf_import import import_gguf

gguf = pytest.importorskip("gguf")

FILES = ["config.json", "generation_config.json", "model.safetensors", "source.json"]
FILES += ["tokenizer.json", "tokenizer_config.json"]

VARIANTS = {
    "llama": {},
    "one key head": {"kv_heads": 1},
    "all key heads": {"kv_heads": 4},
    "head_dim is not width / heads": {"head_dim": 32},
    "tied": {"tied": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "qwen3": {"architecture": "qwen3"},
    "qwen3 with biases": {"architecture": "qwen3", "attention_bias": True},
}


def check_equal(folder: Path, expected: dict[str, np.ndarray]) -> None:
    with Checkpoint(folder) as checkpoint:
        assert set(checkpoint.tensors) == set(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(checkpoint.float32(name), values, err_msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_and_config_come_back(tmp_path, small_model, variant):
    model = small_model(**VARIANTS[variant])
    expected = model.write(tmp_path / "m.gguf")
    folder = import_gguf(tmp_path / "m.gguf", tmp_path / "m")
    assert sorted(file.name for file in folder.iterdir()) == FILES
    check_equal(folder, expected)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == model.architecture
    assert config["tie_word_embeddings"] is model.tied
    assert config["head_dim"] == model.head_dim
    assert config["num_key_value_heads"] == model.kv_heads
    assert config["attention_bias"] is model.attention_bias
    # float32 in the file, but decimal numbers in the config, as their author wrote them
    assert config["rms_norm_eps"] == 1e-6
    assert config["rope_theta"] == 5000.0
    assert config["rope_scaling"] is None
    assert config["torch_dtype"] == "float32"
    assert config["bos_token_id"] == 0


@pytest.mark.parametrize("type_", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_types_come_back_exactly(tmp_path, small_model, type_, architecture):
    expected = small_model(type=type_, architecture=architecture).write(tmp_path / "m.gguf")
    folder = import_gguf(tmp_path / "m.gguf", tmp_path / "m")
    check_equal(folder, expected)
    stored = Checkpoint(folder).tensors["model.layers.0.self_attn.q_proj.weight"].dtype
    assert stored == (type_ if type_ in ("F16", "BF16") else "F32")
    assert Checkpoint(folder).tensors["model.norm.weight"].dtype == "F32"


@pytest.mark.parametrize("type_", ["Q4_K", "Q6_K", "IQ4_XS"])
def test_types_that_the_library_only_dequantizes(tmp_path, small_model, type_):
    """Random blocks, and what the library makes of them row by row."""
    model = small_model(width=256, inner=256, layers=1, heads=4, kv_heads=4, head_dim=64)
    kind = gguf.GGMLQuantizationType[type_]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(1)
    blocks = random.integers(0, 64, (256, 256 // block * block_bytes), np.uint8)
    name = "blk.0.attn_q.weight"
    model.leave_out = (name,)
    values = gguf.dequantize(blocks, kind)
    writer_write = gguf.GGUFWriter.write_header_to_file

    def with_blocks(writer, *arguments):
        writer.add_tensor(name, blocks, raw_dtype=kind)
        return writer_write(writer, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", with_blocks)
        expected = model.write(tmp_path / "m.gguf")
    # Row 2i of a head in llama.cpp's order is row i of Hugging Face's, row 2i+1 is row 32+i.
    order = [64 * head + 2 * (row % 32) + row // 32 for head in range(4) for row in range(64)]
    expected["model.layers.0.self_attn.q_proj.weight"] = values[order]
    check_equal(import_gguf(tmp_path / "m.gguf", tmp_path / "m"), expected)


@pytest.mark.parametrize("part", [1, 100, 1000])
def test_small_parts_give_the_same_file(tmp_path, small_model, monkeypatch, part):
    expected = small_model(type="Q8_0", attention_bias=True).write(tmp_path / "m.gguf")
    monkeypatch.setattr(module, "PART", part)
    check_equal(import_gguf(tmp_path / "m.gguf", tmp_path / "m"), expected)


def test_dtype_is_chosen(tmp_path, small_model):
    kinds = {"float32": np.float32, "float16": np.float16}
    expected = small_model(type="Q4_0").write(tmp_path / "m.gguf")
    for dtype, kind in kinds.items():
        folder = import_gguf(tmp_path / "m.gguf", tmp_path / dtype, dtype)
        check_equal(
            folder, {name: values.astype(kind).astype(np.float32) for name, values in expected.items()}
        )
        assert json.loads((folder / "config.json").read_text())["torch_dtype"] == dtype
    folder = import_gguf(tmp_path / "m.gguf", tmp_path / "bfloat16", "bfloat16")
    rounded = {  # by the library's own rounding
        name: gguf.dequantize(
            gguf.quantize(values, gguf.GGMLQuantizationType.BF16), gguf.GGMLQuantizationType.BF16
        )
        for name, values in expected.items()
    }
    check_equal(folder, rounded)
    with pytest.raises(ParameterError, match="possible: auto, float32"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "x", "int8")


def test_float16_that_would_overflow_is_refused(tmp_path, small_model):
    model = small_model(leave_out=("output_norm.weight",))
    model.extra_tensors = {"output_norm.weight": np.full(64, 70000, np.float32)}
    model.write(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=r"'output_norm\.weight' has values beyond float16's 65504"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "m", "float16")
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


def test_bfloat16_is_widened(tmp_path, small_model):
    expected = small_model(type="BF16").write(tmp_path / "m.gguf")
    folder = import_gguf(tmp_path / "m.gguf", tmp_path / "m", "float32")
    check_equal(folder, expected)
    assert {info.dtype for info in Checkpoint(folder).tensors.values()} == {"F32"}


def llama3(**changes):
    return {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        **changes,
    }


def test_llama3_factors_by_the_published_rule():
    """The rule as Llama's authors wrote it, frequency by frequency."""
    factors = llama3_factors(500000.0, 128, llama3())
    for i, factor in enumerate(factors):
        frequency = 500000.0 ** (-2 * i / 128)
        wave = 2 * np.pi / frequency
        if wave < 8192 / 4:
            expected = frequency
        elif wave > 8192:
            expected = frequency / 32
        else:
            smooth = (8192 / wave - 1) / (4 - 1)
            expected = (1 - smooth) * frequency / 32 + smooth * frequency
        assert frequency / factor == pytest.approx(expected, rel=1e-12)
    assert {1.0, 32.0} < set(np.round(factors, 9))


@pytest.mark.parametrize("scaling", [llama3(), llama3(factor=8.0, original_max_position_embeddings=4096)])
def test_rope_factors_become_llama3_scaling(tmp_path, small_model, scaling):
    factors = llama3_factors(500000.0, 16, scaling).astype(np.float32)
    model = small_model(
        metadata={"llama.rope.freq_base": 500000.0}, extra_tensors={"rope_freqs.weight": factors}
    )
    expected = model.write(tmp_path / "m.gguf")
    folder = import_gguf(tmp_path / "m.gguf", tmp_path / "m")
    assert json.loads((folder / "config.json").read_text())["rope_scaling"] == scaling
    check_equal(folder, expected)


def test_rope_factors_of_one_are_no_scaling_and_others_are_refused(tmp_path, small_model):
    model = small_model(extra_tensors={"rope_freqs.weight": np.ones(8, np.float32)})
    model.write(tmp_path / "m.gguf")
    folder = import_gguf(tmp_path / "m.gguf", tmp_path / "m")
    assert json.loads((folder / "config.json").read_text())["rope_scaling"] is None
    model.extra_tensors = {"rope_freqs.weight": np.linspace(1, 3, 8, dtype=np.float32)}
    model.write(tmp_path / "n.gguf")
    with pytest.raises(CheckpointError, match=r"'rope_freqs\.weight' holds other factors than llama3's"):
        import_gguf(tmp_path / "n.gguf", tmp_path / "n")


def test_linear_rope_scaling(tmp_path, small_model):
    model = small_model(metadata={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    model.write(tmp_path / "m.gguf")
    folder = import_gguf(tmp_path / "m.gguf", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_defaults_of_metadata_that_is_absent(tmp_path, small_model):
    absent = [
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
    ]
    absent += ["rope.freq_base"]
    model = small_model(kv_heads=4, metadata={f"llama.{key}": None for key in absent})
    expected = model.write(tmp_path / "m.gguf")
    folder = import_gguf(tmp_path / "m.gguf", tmp_path / "m")
    check_equal(folder, expected)
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_key_value_heads"], config["head_dim"], config["rope_theta"]) == (4, 16, 10000.0)


def test_source_is_recorded_and_progress_told(tmp_path, small_model):
    import hashlib

    small_model(type="Q8_0", metadata={"general.license": "mit"}).write(tmp_path / "m.gguf")
    told = []
    folder = import_gguf(
        tmp_path / "m.gguf",
        tmp_path / "m",
        progress=lambda *done: told.append(done),
        origin={"from": "a friend"},
    )
    source = json.loads((folder / "source.json").read_text())
    assert source["gguf_sha256"] == hashlib.sha256((tmp_path / "m.gguf").read_bytes()).hexdigest()
    assert (source["gguf"], source["license"], source["from"]) == ("m.gguf", "mit", "a friend")
    assert source["gguf_types"]["Q8_0"] == 16
    size = (folder / "model.safetensors").stat().st_size
    assert told[-1] == (size, size)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_end_ids_are_joined(tmp_path, small_model):
    ids = {
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.eot_token_id": 2,
        "tokenizer.ggml.padding_token_id": 1,
    }
    small_model(metadata=ids).write(tmp_path / "m.gguf")
    folder = import_gguf(tmp_path / "m.gguf", tmp_path / "m")
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 0, "eos_token_id": [2, 3], "pad_token_id": 1}
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 3


# Each: what is changed, and what the error says.
REFUSED = {
    "architecture": ({"metadata": {"general.architecture": "gemma"}}, r"'gemma'; possible: llama, qwen3"),
    "experts": ({"metadata": {"llama.expert_count": 8}}, r"llama\.expert_count = 8 is not supported"),
    "softcap": ({"metadata": {"llama.final_logit_softcapping": 30.0}}, r"final_logit_softcapping = 30\.0"),
    "yarn": ({"metadata": {"llama.rope.scaling.type": "yarn"}}, r"rope\.scaling\.type 'yarn'"),
    "window": ({"metadata": {"llama.attention.sliding_window": 64}}, r"a sliding window of 64"),
    "partial rotary": ({"metadata": {"llama.rope.dimension_count": 8}}, r"rope\.dimension_count"),
    "split": ({"metadata": {"split.count": 3}}, r"one part of 3"),
    "no width": ({"metadata": {"llama.embedding_length": None}}, r"llama\.embedding_length is missing"),
    "width is text": ({"metadata": {"llama.embedding_length": "64"}}, r"llama\.embedding_length = '64'"),
    "width is zero": ({"metadata": {"llama.embedding_length": 0}}, r"llama\.embedding_length = 0"),
    "no eps": ({"metadata": {"llama.attention.layer_norm_rms_epsilon": None}}, r"rms_epsilon is missing"),
    "NaN eps": ({"metadata": {"llama.attention.layer_norm_rms_epsilon": float("nan")}}, r"rms_epsilon = nan"),
    "heads by layer": (
        {"metadata": {"llama.attention.head_count": [4, 2]}},
        r"head_count .*one size for all",
    ),
    "sizes lie": (
        {"metadata": {"llama.feed_forward_length": 128}},
        r"'blk\.0\.ffn_gate\.weight' has shape \(96, 64\)",
    ),
    "a billion layers": (
        {"metadata": {"llama.block_count": 2**30}},
        r"1073741824 layers, but only 21 tensors",
    ),
    "more layers": ({"metadata": {"llama.block_count": 3}}, r"'blk\.2\.attn_norm\.weight' is missing"),
    "fewer layers": (
        {"metadata": {"llama.block_count": 1}},
        r"'blk\.1\.attn_norm\.weight' is not one of llama's",
    ),
    "odd heads": ({"metadata": {"llama.attention.head_count_kv": 3}}, r"4 heads, 3 key/value heads"),
    "missing": ({"leave_out": ("blk.1.attn_q.weight",)}, r"'blk\.1\.attn_q\.weight' is missing"),
    "no embedding": ({"leave_out": ("token_embd.weight",)}, r"'token_embd\.weight' is missing"),
    "extra": (
        {"extra_tensors": {"blk.0.ffn_exps": np.ones(4, np.float32)}},
        r"'blk\.0\.ffn_exps' is not one",
    ),
    "half of the biases": (
        {"extra_tensors": {"blk.0.attn_q.bias": np.ones(64, np.float32)}},
        r"attn_q have biases and attn_k, attn_v, attn_output not",
    ),
    "integers": (
        {
            "leave_out": ("output_norm.weight",),
            "extra_tensors": {"output_norm.weight": np.ones(64, np.int32)},
        },
        r"'output_norm\.weight' has type I32, which the gguf library cannot dequantize",
    ),
    "qwen3 mlp bias": ({"architecture": "qwen3", "mlp_bias": True}, r"biases in the feed-forward part"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name_and_nothing_written(tmp_path, small_model, case):
    changes, message = REFUSED[case]
    small_model(**changes).write(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=message) as caught:
        import_gguf(tmp_path / "m.gguf", tmp_path / "m")
    assert str(tmp_path / "m.gguf") in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


def test_a_folder_that_is_there_is_kept(tmp_path, small_model):
    small_model().write(tmp_path / "m.gguf")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "precious").write_text("x")
    with pytest.raises(SourceError, match="already there"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "m")
    assert (tmp_path / "m" / "precious").read_text() == "x"
    (tmp_path / "m" / "precious").unlink()
    import_gguf(tmp_path / "m.gguf", tmp_path / "m")  # an empty one is filled
    assert sorted(file.name for file in (tmp_path / "m").iterdir()) == FILES


def test_interrupted_import_leaves_nothing(tmp_path, small_model):
    small_model().write(tmp_path / "m.gguf")

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_gguf(tmp_path / "m.gguf", tmp_path / "m", progress=interrupt)
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


def test_file_cut_while_it_is_read(tmp_path, small_model):
    small_model().write(tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    with GgufFile(tmp_path / "m.gguf") as file:
        (tmp_path / "m.gguf").write_bytes(whole[:-256])
        with pytest.raises(CheckpointError, match=r"'output\.weight': the file was cut"):
            file.rows("output.weight")


def test_without_the_library(tmp_path, small_model, monkeypatch):
    import builtins

    small_model().write(tmp_path / "m.gguf")
    true_import = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name.startswith("gguf"):
            raise ImportError(name)
        return true_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"tinylm\[gguf\]"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "m")


def test_too_small_a_disk_is_told_before(tmp_path, small_model, monkeypatch):
    small_model().write(tmp_path / "m.gguf")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(SourceError, match=r"MB are needed on this disk, 0 MB are free"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "m")
