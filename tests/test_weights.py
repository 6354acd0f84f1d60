"""Every tensor is taken by its name and shape or the folder is refused, and a format holds what was stored."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinylm.checkpoint import Checkpoint
from tinylm.errors import CheckpointError, LayoutError, ParameterError
from tinylm.formats.table import DTYPES, QUANTIZED
from tinylm.kernels.team import Team
from tinylm.tensor_names import TensorNames
from tinylm.weights import Weights

N, K = 13, 70


def numbers(*shape: int) -> np.ndarray:
    """float32 that bfloat16 and float16 hold exactly."""
    random = np.random.default_rng(1)
    return (random.integers(-127, 128, shape) / 64).astype(np.float32)


def bfloat16(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


MATRIX, VECTOR = numbers(N, K), numbers(K)
TENSORS: dict[str, tuple[str, np.ndarray]] = {
    "f32": ("F32", MATRIX),
    "f16": ("F16", MATRIX.astype(np.float16)),
    "bf16": ("BF16", bfloat16(MATRIX)),
    "f64": ("F64", MATRIX.astype(np.float64)),
    "f32 vector": ("F32", VECTOR),
    "f16 vector": ("F16", VECTOR.astype(np.float16)),
    "bf16 vector": ("BF16", bfloat16(VECTOR)),
    "i32": ("I32", MATRIX.astype(np.int32)),
    "bool": ("BOOL", MATRIX > 0),
}


def write(folder: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> Checkpoint:
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, values) in tensors.items():
        end = len(data) + values.nbytes
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [len(data), end]}
        data += values.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors that are not aligned would be copied
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return Checkpoint(folder)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return write(tmp_path, TENSORS)


@pytest.mark.parametrize(
    ("stored", "dtype", "format"),
    [
        ("f32", "auto", "float32"),
        ("f16", "auto", "float32"),
        ("f64", "auto", "float32"),
        ("bf16", "auto", "bfloat16"),
        *((stored, "float32", "float32") for stored in ("f32", "f16", "bf16", "f64")),
        *((stored, "bfloat16", "bfloat16") for stored in ("f32", "f16", "bf16", "f64")),
        *((stored, name, name) for name in QUANTIZED for stored in ("f32", "f16", "bf16", "f64")),
    ],
)
def test_a_matrix_in_the_format_asked_for(
    checkpoint: Checkpoint, stored: str, dtype: str, format: str
) -> None:
    matrix = Weights(checkpoint, dtype, team=Team(2)).matrix(stored, (N, K))
    assert (matrix.format, matrix.shape) == (format, (N, K))
    found = matrix.dequantize()
    assert (found.dtype, found.shape) == (np.float32, (N, K))
    if format in QUANTIZED:
        error = np.linalg.norm(found - MATRIX, axis=1) / np.linalg.norm(MATRIX, axis=1)
        assert (error < {"int8": 0.01, "int4": 0.12}[format]).all()
    else:
        np.testing.assert_array_equal(found, MATRIX)


def test_what_is_stored_so_is_not_copied(checkpoint: Checkpoint) -> None:
    weights = Weights(checkpoint)
    for name, stored in (("f32", checkpoint.array("f32")), ("bf16", checkpoint.array("bf16"))):
        matrix = weights.matrix(name, (N, K))
        assert matrix.operands()[0] == stored.ctypes.data
        assert matrix.nbytes == stored.nbytes
    assert weights.vector("f32 vector", K).ctypes.data == checkpoint.array("f32 vector").ctypes.data


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", ["f32 vector", "f16 vector", "bf16 vector"])
def test_vectors_are_float32_in_every_format(checkpoint: Checkpoint, stored: str, dtype: str) -> None:
    found = Weights(checkpoint, dtype).vector(stored, K)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, VECTOR)


def test_missing(checkpoint: Checkpoint) -> None:
    weights = Weights(checkpoint)
    with pytest.raises(
        LayoutError, match=r"lacks the tensor 'f32 vectr' \(70,\); the closest .* 'f32 vector'"
    ):
        weights.vector("f32 vectr", K)
    with pytest.raises(LayoutError, match=r"lacks the tensor 'zzz' \(3, 4\)$"):
        weights.matrix("zzz", (3, 4))
    assert "f32" in weights
    assert "zzz" not in weights


@pytest.mark.parametrize("shape", [(K, N), (N, K + 1), (N - 1, K), (1, N * K)])
def test_misshapen(checkpoint: Checkpoint, shape: tuple[int, int]) -> None:
    with pytest.raises(LayoutError) as caught:
        Weights(checkpoint).matrix("f32", shape)
    assert f"'f32' has shape ({N}, {K}), where the config asks for {shape}" in str(caught.value)
    with pytest.raises(LayoutError, match=r"'f32' has shape \(13, 70\)"):
        Weights(checkpoint).vector("f32", N * K)
    with pytest.raises(LayoutError, match=r"'f32 vector' has shape \(70,\)"):
        Weights(checkpoint).matrix("f32 vector", (1, K))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", ["i32", "bool"])
def test_of_another_type(checkpoint: Checkpoint, stored: str, dtype: str) -> None:
    with pytest.raises(CheckpointError, match=f"'{stored}' is {stored.upper()}; expected one of F32, F16"):
        Weights(checkpoint, dtype).matrix(stored, (N, K))


def test_what_is_left_is_named(checkpoint: Checkpoint) -> None:
    weights = Weights(checkpoint)
    weights.matrix("f32", (N, K))
    weights.ignore("f16")
    with pytest.raises(LayoutError, match="holds 'bf16' and 6 more, which this architecture"):
        weights.finish()
    with pytest.raises(LayoutError, match="holds 'i32', which"):
        weights.finish(["b.*", "f64", r"f\d+ vector"])
    weights.finish(["b.*", "f64", r"f\d+ vector", "i32"])
    with pytest.raises(LayoutError, match="holds 'bf16 vector'"):
        weights.finish(["bf16", "bool", "f64", r"f\d+ vector", "i32"])  # a pattern means a whole name


def test_names_of_the_folder_s_own(checkpoint: Checkpoint) -> None:
    weights = Weights(checkpoint, names=TensorNames({"model.weight": "f32", "model.norm": "f32 vector"}))
    np.testing.assert_array_equal(weights.matrix("model.weight", (N, K)).dequantize(), MATRIX)
    with pytest.raises(LayoutError, match=r"'model\.norm' is no name that"):
        weights.finish([".*"])
    weights.vector("model.norm", K)
    weights.finish([".*"])


def test_a_format_that_is_none(checkpoint: Checkpoint) -> None:
    for dtype in ("float16", "int2", "", "FLOAT32"):
        with pytest.raises(ParameterError, match="expected one of auto, float32, bfloat16, int8, int4"):
            Weights(checkpoint, dtype)


@pytest.mark.parametrize("compared", [1 << 20, 3])
def test_the_same_numbers(compared: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinylm.weights.COMPARED", compared)
    other = MATRIX.copy()
    other[-1, -1] += 1
    tensors = {**TENSORS, "again": TENSORS["f32"], "other": ("F32", other), "part": ("F32", MATRIX[:-1])}
    weights = Weights(write(tmp_path, tensors))
    assert weights.same("f32", "again")
    assert weights.same("f32", "bf16"), "in another type, but the same"
    assert weights.same("bf16", "f16")
    assert not weights.same("f32", "other")
    assert not weights.same("other", "bf16")
    assert not weights.same("f32", "part")


# Folders that hold what `tinylm quantize` writes


def quantized(tmp_path: Path, name: str) -> dict[str, tuple[str, np.ndarray]]:
    (tmp_path / "float").mkdir()
    matrix = Weights(write(tmp_path / "float", TENSORS), name, team=Team(1)).matrix("f32", (N, K))
    stored, scales = matrix.arrays()  # type: ignore[attr-defined]
    return {"m": (QUANTIZED[name].stored, stored), "m.scales": ("BF16", scales)}


def write_as(tmp_path: Path, tensors: dict[str, tuple[str, np.ndarray]], format: str) -> Checkpoint:
    """As `write`, with a config that says the format."""
    write(tmp_path, tensors)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"format": format}}))
    return Checkpoint(tmp_path)


@pytest.mark.parametrize("asked_for", [True, False])
@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_folders_are_mapped(tmp_path: Path, name: str, asked_for: bool) -> None:
    checkpoint = write_as(tmp_path, quantized(tmp_path, name), name)
    weights = Weights(checkpoint, name if asked_for else "auto")
    matrix = weights.matrix("m", (N, K))
    assert matrix.format == name
    np.testing.assert_allclose(matrix.dequantize(), MATRIX, atol={"int8": 0.03, "int4": 0.4}[name])
    assert matrix.operands()[:2] == [checkpoint.array(name).ctypes.data for name in ("m", "m.scales")]
    weights.finish()


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("shape", [(N, K + 8), (N + 64, K), (N, K + 64)])
def test_quantized_to_another_shape(tmp_path: Path, name: str, shape: tuple[int, int]) -> None:
    weights = Weights(write(tmp_path, quantized(tmp_path, name)))
    with pytest.raises(LayoutError, match=rf"tensor 'm'.* is .*where {name} of"):
        weights.matrix("m", shape)


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_and_lacking_a_part(tmp_path: Path, name: str) -> None:
    tensors = quantized(tmp_path, name)
    with pytest.raises(LayoutError, match="'m' is missing"):
        Weights(write(tmp_path, {"m.scales": tensors["m.scales"]})).matrix("m", (N, K))
    with pytest.raises(LayoutError, match=r"'m' has shape \(2, \d+, 16, 4\)"):
        Weights(write(tmp_path, {"m": tensors["m"]})).matrix("m", (N, K))
    changed = {**tensors, "m.scales": ("I16", tensors["m.scales"][1])}
    with pytest.raises(LayoutError, match=r"'m\.scales' is I16"):
        Weights(write(tmp_path, changed)).matrix("m", (N, K))
    other = next(one for one in QUANTIZED if one != name)
    for dtype in ("float32", "bfloat16", other):
        with pytest.raises(ParameterError, match=f"holds {name}"):
            Weights(write(tmp_path, tensors), dtype).matrix("m", (N, K))
    with pytest.raises(LayoutError, match=f"'m' is {QUANTIZED[name].stored}.*where {other} of"):
        Weights(write_as(tmp_path, tensors, other)).matrix("m", (N, K))


def test_a_row_for_each_token_is_int8_beside_int4(tmp_path: Path) -> None:
    (tmp_path / "float").mkdir()
    write(tmp_path / "float", TENSORS)
    (tmp_path / "float" / "config.json").write_text(json.dumps({"vocab_size": N}))
    assert Weights(Checkpoint(tmp_path / "float"), "int4").matrix("f32", (N, K)).format == "int8"
