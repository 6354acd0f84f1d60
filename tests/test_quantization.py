"""Quantized folders compute what the same format makes in memory; damaged ones are refused in a line."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tinylm.checkpoint import Checkpoint
from tinylm.cli import main
from tinylm.engine import Engine
from tinylm.errors import CheckpointError, ParameterError, TinylmError
from tinylm.formats.key_values import automatic
from tinylm.formats.table import QUANTIZED
from tinylm.inspection import inspect_folder
from tinylm.quantization import quantize_folder
from tinylm.sources.catalog import BUNDLED

STORIES = Path(BUNDLED["stories260k"])
IDS = [1, 403, 407, 261, 378, 31, 400, 17]
NAME = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module", params=list(QUANTIZED))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The story model in each format."""
    return quantize_folder(STORIES, tmp_path_factory.mktemp("made") / request.param, request.param, threads=2)


def test_a_folder_computes_what_is_quantized_in_memory(folder: Path) -> None:
    name = folder.name
    expected = Engine.load(STORIES, dtype=name, threads=2).logits(IDS)
    for dtype in ("auto", name):
        engine = Engine.load(folder, dtype=dtype, threads=2)
        np.testing.assert_array_equal(engine.logits(IDS), expected)
        assert engine.kv_dtype == automatic([name])
    formats = {matrix.shape: matrix.format for matrix in engine.program.matrices}
    assert formats.pop((512, 64)) == "int8", "the embedding, which is the head too"
    assert set(formats.values()) == {name}


def test_what_is_said_of_a_folder(folder: Path) -> None:
    facts, name = inspect_folder(folder), folder.name
    assert (facts["does not fit"], facts["memory"]["as stored"]) == ([], name)
    weights = facts["memory"]["weights"]
    assert weights["int4"] < weights["int8"] < weights["bfloat16"]
    assert weights == inspect_folder(STORIES)["memory"]["weights"]
    assert abs(facts["bytes"] - weights[name]) < 0.01 * weights[name]
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert (said["quant_method"], said["format"], said["group_size"]) == ("tinylm", name, 64)


def test_another_format_than_the_folder_s(folder: Path) -> None:
    for dtype in {"float32", "bfloat16", *QUANTIZED} - {folder.name}:
        with pytest.raises(ParameterError, match=f"dtype '{dtype}': the folder .* holds"):
            Engine.load(folder, dtype=dtype, threads=1)
    with pytest.raises(CheckpointError, match="is quantized already"):
        quantize_folder(folder, folder.parent / "again")


def test_formats_that_are_none(tmp_path: Path) -> None:
    for dtype in ("float32", "int3", "auto"):
        with pytest.raises(ParameterError, match=f"'{dtype}': a folder can be quantized to int8 or int4"):
            quantize_folder(STORIES, tmp_path / "no", dtype)


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_what_the_weights_were_before(folder: Path, stored: str, tmp_path: Path) -> None:
    """bfloat16 is read as it is, float16 as float32; both lead to what float32 of the same numbers does."""
    exact = {name: narrowed(values) for name, values in load_file(STORIES / "model.safetensors").items()}
    made = []
    for kind in ("float32", stored):
        source = tmp_path / kind
        shutil.copytree(STORIES, source, dirs_exist_ok=True)
        (source / "model.safetensors").unlink()
        if kind == "bfloat16":
            bits = {name: (values.view(np.uint32) >> 16).astype(np.uint16) for name, values in exact.items()}
            write_raw(source / "model.safetensors", bits, dict.fromkeys(bits, "BF16"))
        else:
            converted = {name: values.astype(kind) for name, values in exact.items()}
            save_file(converted, source / "model.safetensors")
        made.append(quantize_folder(source, tmp_path / f"{len(made)} quantized", folder.name, threads=3))
        shutil.rmtree(source)
    with Checkpoint(made[0]) as one, Checkpoint(made[1]) as two:
        assert one.tensors.keys() == two.tensors.keys()
        for name in one.tensors:
            if name.endswith(".scales") or name + ".scales" in one.tensors:
                np.testing.assert_array_equal(one.array(name), two.array(name))


def narrowed(values: np.ndarray) -> np.ndarray:
    """float32 that bfloat16 and float16 hold exactly."""
    return (values.astype(np.float16).view(np.uint16) & 0xFFF8).view(np.float16).astype(np.float32)


Tensors = dict[str, np.ndarray]


def without_scales(config: dict[str, Any], tensors: Tensors) -> None:
    del tensors[f"{NAME}.scales"]


def without_numbers(config: dict[str, Any], tensors: Tensors) -> None:
    del tensors[NAME]


def cut(config: dict[str, Any], tensors: Tensors) -> None:
    tensors[NAME] = np.ascontiguousarray(tensors[NAME][:, :-1])


def cut_scales(config: dict[str, Any], tensors: Tensors) -> None:
    tensors[f"{NAME}.scales"] = np.ascontiguousarray(tensors[f"{NAME}.scales"][:, :-1])


def of_another_type(config: dict[str, Any], tensors: Tensors) -> None:
    tensors[NAME] = tensors[NAME].astype(np.int16)


def older(config: dict[str, Any], tensors: Tensors) -> None:
    config["quantization_config"]["version"] = 1


def of_a_format_to_come(config: dict[str, Any], tensors: Tensors) -> None:
    config["quantization_config"]["format"] = "int2"


def contradictory(config: dict[str, Any], tensors: Tensors) -> None:
    said = config["quantization_config"]
    said["format"] = next(name for name in QUANTIZED if name != said["format"])


DAMAGES: dict[Callable[[dict[str, Any], Tensors], None], str] = {
    without_scales: rf"'{NAME}' has shape \(4, \d+, 16, 4\), where the config asks for \(64, 172\)",
    without_numbers: rf"tensor '{NAME}' is missing, where \w+ of \(64, 172\) has",
    cut: rf"tensor '{NAME}' is \w+ \(4, \d+, 16, 4\), where",
    cut_scales: rf"tensor '{NAME}.scales' is BF16 \(4, 2, 16\), where \w+ of \(64, 172\) has BF16 \(4, 3, 16\)",
    of_another_type: rf"tensor '{NAME}' is I16",
    older: "quantized by another version of tinylm",
    of_a_format_to_come: "was quantized to 'int2'; known are int8, int4",
    contradictory: "tensor '.*' is .*, where int[48] of .* has",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_folders(
    folder: Path, damage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Checkpoint(folder) as checkpoint:
        config = json.loads(json.dumps(checkpoint.config))
        tensors = {name: checkpoint.array(name).copy() for name in checkpoint.tensors}
        types = {name: info.dtype for name, info in checkpoint.tensors.items()}
    damage(config, tensors)
    shutil.copytree(folder, tmp_path / "bad")
    (tmp_path / "bad" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_raw(tmp_path / "bad" / "model.safetensors", tensors, types)
    with pytest.raises(TinylmError, match=DAMAGES[damage]):
        Engine.load(tmp_path / "bad", threads=1)
    assert main(["generate", "Once", "--model", str(tmp_path / "bad")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err


def write_raw(path: Path, tensors: Tensors, types: dict[str, str]) -> None:
    """Tensors of their former types, where these fit."""
    header: dict[str, Any] = {}
    data = b""
    for name, values in tensors.items():
        dtype = "I16" if values.dtype == np.int16 else types[name]
        offsets = [len(data), len(data) + values.nbytes]
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": offsets}
        data += values.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "made"
    assert main(["quantize", "stories260k", str(target), "--dtype", folder.name, "-q"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    for path in folder.iterdir():
        assert (target / path.name).read_bytes() == path.read_bytes()
    words = ["Once upon", "--max-new-tokens", "5", "--temperature", "0", "-q"]
    assert main(["generate", *words, "--model", str(target)]) == 0
    mapped = capsys.readouterr().out
    assert main(["generate", *words, "--model", "stories260k", "--dtype", folder.name]) == 0
    assert capsys.readouterr().out == mapped != ""
