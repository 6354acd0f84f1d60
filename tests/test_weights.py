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
        *((stored, "int8", "int8") for stored in ("f32", "f16", "bf16", "f64")),
    ],
)
def test_a_matrix_in_the_format_asked_for(
    checkpoint: Checkpoint, stored: str, dtype: str, format: str
) -> None:
    matrix = Weights(checkpoint, dtype, team=Team(2)).matrix(stored, (N, K))
    assert (matrix.format, matrix.shape) == (format, (N, K))
    found = matrix.dequantize()
    assert (found.dtype, found.shape) == (np.float32, (N, K))
    if format == "int8":
        error = np.linalg.norm(found - MATRIX, axis=1) / np.linalg.norm(MATRIX, axis=1)
        assert (error < 0.01).all()
    else:
        np.testing.assert_array_equal(found, MATRIX)


def test_what_is_stored_so_is_not_copied(checkpoint: Checkpoint) -> None:
    weights = Weights(checkpoint)
    for name, stored in (("f32", checkpoint.array("f32")), ("bf16", checkpoint.array("bf16"))):
        matrix = weights.matrix(name, (N, K))
        assert matrix.operands()[0] == stored.ctypes.data
        assert matrix.nbytes == stored.nbytes
    assert weights.vector("f32 vector", K).ctypes.data == checkpoint.array("f32 vector").ctypes.data


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "int8"])
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


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "int8"])
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
    for dtype in ("float16", "int4", "", "FLOAT32"):
        with pytest.raises(ParameterError, match="expected one of auto, float32, bfloat16, int8"):
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


# Folders that hold int8 as `tinylm quantize` writes it


def int8_tensors(tmp_path: Path) -> dict[str, tuple[str, np.ndarray]]:
    (tmp_path / "float").mkdir()
    matrix = Weights(write(tmp_path / "float", TENSORS), "int8", team=Team(1)).matrix("f32", (N, K))
    stored, scales = matrix.arrays()  # type: ignore[attr-defined]
    return {"m": ("I8", stored), "m.scales": ("BF16", scales)}


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_int8_folders_are_mapped(tmp_path: Path, dtype: str) -> None:
    checkpoint = write(tmp_path, int8_tensors(tmp_path))
    weights = Weights(checkpoint, dtype)
    matrix = weights.matrix("m", (N, K))
    np.testing.assert_allclose(matrix.dequantize(), MATRIX, atol=0.03)
    assert matrix.operands()[:2] == [checkpoint.array(name).ctypes.data for name in ("m", "m.scales")]
    weights.finish()


@pytest.mark.parametrize("shape", [(N, K + 4), (N + 64, K), (N, K + 64)])
def test_int8_of_another_shape(tmp_path: Path, shape: tuple[int, int]) -> None:
    weights = Weights(write(tmp_path, int8_tensors(tmp_path)))
    with pytest.raises(LayoutError, match=r"tensor 'm'.* is .*where int8 of"):
        weights.matrix("m", shape)


def test_int8_that_lacks_a_part(tmp_path: Path) -> None:
    tensors = int8_tensors(tmp_path)
    with pytest.raises(LayoutError, match="'m' is missing"):
        Weights(write(tmp_path, {"m.scales": tensors["m.scales"]})).matrix("m", (N, K))
    with pytest.raises(LayoutError, match=r"'m' has shape \(2, 18, 16, 4\)"):
        Weights(write(tmp_path, {"m": tensors["m"]})).matrix("m", (N, K))
    changed = {**tensors, "m.scales": ("I16", tensors["m.scales"][1])}
    with pytest.raises(LayoutError, match=r"'m\.scales' is I16"):
        Weights(write(tmp_path, changed)).matrix("m", (N, K))
    with pytest.raises(ParameterError, match="holds int8"):
        Weights(write(tmp_path, tensors), "float32").matrix("m", (N, K))
