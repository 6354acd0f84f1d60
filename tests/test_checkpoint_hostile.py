"""Model folders that lie: each ends in one CheckpointError that names the file and the tensor."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from tinylm.checkpoint import Checkpoint
from tinylm.errors import CheckpointError


def write_folder(folder: Path, tensors: dict[str, np.ndarray] | None = None, config: str = "{}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config)
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors")
    return folder


def write_raw(folder: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A model folder whose safetensors header is `header` (bytes, or an object to write as JSON)."""
    write_folder(folder)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + text + data)
    return folder


def write_shards(folder: Path, shards: dict[str, dict[str, np.ndarray]], weight_map: dict) -> Path:
    write_folder(folder)
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    )
    return folder


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


EIGHT = bytes(8)

BAD_HEADERS = {
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12), r"tensor 'b' overlap .* 'a'"),
    "same place": ({"a": entry(), "b": entry()}, EIGHT, r"overlap"),
    "hole": ({"a": entry(offsets=(4, 12))}, bytes(12), r"the 4 bytes between the header and tensor 'a'"),
    "hole between": (
        {"a": entry(), "b": entry(offsets=(9, 17))},
        bytes(17),
        r"1 bytes between tensor 'a' and",
    ),
    "bytes left": ({"a": entry()}, bytes(9), r"the 1 bytes after tensor 'a'"),
    "nothing promised": ({}, EIGHT, r"the 8 bytes after the header"),
    "out of range": ({"a": entry(offsets=(0, 800), shape=(200,))}, EIGHT, r"'a'.*beyond the end .*truncated"),
    "far out of range": ({"a": entry(offsets=(2**62, 2**62 + 8))}, EIGHT, r"'a'.*beyond the end"),
    "huge offset": ({"a": entry(offsets=(0, 2**70))}, EIGHT, r"'a'.*data_offsets"),
    "negative offset": ({"a": entry(offsets=(-8, 0))}, EIGHT, r"'a'.*data_offsets \[-8, 0\]"),
    "backward": ({"a": entry(offsets=(8, 0))}, EIGHT, r"'a'.*data_offsets"),
    "three offsets": ({"a": entry(offsets=(0, 4, 8))}, EIGHT, r"'a'.*data_offsets"),
    "offsets are floats": ({"a": entry(offsets=(0.0, 8.0))}, EIGHT, r"'a'.*data_offsets"),
    "offsets are an object": ({"a": {**entry(), "data_offsets": {}}}, EIGHT, r"'a'.*data_offsets"),
    "shape too small": ({"a": entry(shape=(1,))}, EIGHT, r"'a': F32 of shape \[1\] takes 4 bytes.*hold 8"),
    "shape too large": ({"a": entry(shape=(3,))}, EIGHT, r"'a'.*takes 12 bytes.*hold 8"),
    "shape wraps 64 bits": ({"a": entry(shape=(2**62, 2**3))}, EIGHT, r"'a'.*larger than any memory"),
    "shape hides behind zero": ({"a": entry(shape=(2**62, 2**62, 0), offsets=(0, 0))}, b"", r"'a'.*larger"),
    "negative shape": ({"a": entry(shape=(-2,))}, EIGHT, r"'a': shape \[-2\]"),
    "two negatives": ({"a": entry(shape=(-2, -1))}, EIGHT, r"'a': shape \[-2, -1\]"),
    "float shape": ({"a": entry(shape=(2.0,))}, EIGHT, r"'a': shape"),
    "boolean shape": ({"a": entry(shape=(2, True))}, EIGHT, r"'a': shape"),
    "shape is a number": ({"a": {**entry(), "shape": 2}}, EIGHT, r"'a': shape 2"),
    "33 dimensions": ({"a": entry(shape=(1,) * 32 + (2,))}, EIGHT, r"'a': shape"),
    "unknown dtype": ({"a": entry("F8_E4M3", (8,))}, EIGHT, r"'a': unknown dtype \"F8_E4M3\"; possible: F64"),
    "dtype is a list": ({"a": entry(["F32"])}, EIGHT, r"'a': unknown dtype"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, EIGHT, r"'a': its entry has no dtype"),
    "empty entry": ({"a": {}}, b"", r"'a': .* no dtype and no shape and no data_offsets"),
    "entry is null": ({"a": None}, b"", r"'a': its entry is a JSON null"),
    "metadata of numbers": ({"__metadata__": {"x": 1}}, b"", r"__metadata__"),
    "a list": ([], b"", r"is a JSON array"),
    "a string": ("x", b"", r"is a JSON string"),
    "not JSON": (b"{nonsense", b"", r"not JSON"),
    "NaN": (b'{"a": NaN}', b"", r"not JSON: NaN"),
    "not UTF-8": (b'{"\xff\xfe": 1}', b"", r"not JSON"),
    "empty header": (b"", b"", r"not JSON"),
    "too deep": (b'{"a":' + b"[" * 100_000, b"", r"not JSON"),
    "number of 5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", b"", r"not JSON|entry is"),
    "twice": (b'{"a": {"dtype": "I8", "shape": [0], "data_offsets": [0, 0]}, "a": {}}', b"", r"'a' twice"),
    "key twice": (b'{"a": {"dtype": "I8", "dtype": "U8"}}', b"", r"'dtype' twice"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_header(tmp_path, case):
    header, data, message = BAD_HEADERS[case]
    write_raw(tmp_path, header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint(tmp_path)
    assert str(tmp_path / "model.safetensors") in str(caught.value)
    assert len(str(caught.value)) < 1000 + len(str(tmp_path))
    # The library agrees, but takes the last of two names, any number of dimensions, and float8.
    if case not in ("twice", "33 dimensions", "unknown dtype"):
        with pytest.raises(SafetensorError):
            deserialize((tmp_path / "model.safetensors").read_bytes())


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 100_000_001, 10**7, 3])
def test_header_length_that_lies(tmp_path, length):
    write_raw(tmp_path, {"a": entry()}, EIGHT, length=length)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        Checkpoint(tmp_path)


def test_truncated_anywhere(tmp_path):
    write_folder(tmp_path, {"a": np.ones(3, np.float32)})
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            Checkpoint(tmp_path)


def test_file_that_shrinks_after_opening(tmp_path):
    write_folder(tmp_path, {"a": np.ones(3, np.float32)})
    checkpoint = Checkpoint(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match="shrunk"):
        checkpoint.array("a")


def test_weights_that_are_a_folder(tmp_path):
    (write_folder(tmp_path) / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: a folder, where"):
        Checkpoint(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_weights_that_are_a_pipe(tmp_path):
    os.mkfifo(write_folder(tmp_path) / "model.safetensors")
    with pytest.raises(CheckpointError, match="no regular file"):
        Checkpoint(tmp_path)


def refuse(*arguments, **keywords):
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    ("name", "opener"), [("model.safetensors", "builtins.open"), ("config.json", "pathlib.Path.read_text")]
)
def test_unreadable_file(tmp_path, monkeypatch, name, opener):
    write_folder(tmp_path, {"a": np.ones(1)})
    monkeypatch.setattr(opener, refuse)
    with pytest.raises(CheckpointError, match=rf"{name}: cannot be read: Permission denied"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "holds a JSON list"),
        ("{", "not JSON"),
        ("", "not JSON"),
        ("\x00", "not JSON"),
        ("[" * 10**5, "not JSON"),
    ],
)
def test_bad_config(tmp_path, config, message):
    write_folder(tmp_path, {"a": np.ones(1)}, config)
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        Checkpoint(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        Checkpoint(tmp_path)
    write_folder(tmp_path)
    with pytest.raises(CheckpointError, match=r"no model\.safetensors .* holds config\.json"):
        Checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="a file, where a model folder"):
        Checkpoint(tmp_path / "config.json")


def test_pickles_are_explained_and_not_read(tmp_path):
    (write_folder(tmp_path) / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin\. Pickles are not read.*safetensors"):
        Checkpoint(tmp_path)


def test_other_weights_are_explained(tmp_path):
    folder = write_folder(tmp_path / "one")
    save_file({"a": np.ones(1)}, folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"found weights\.safetensors: rename"):
        Checkpoint(folder)
    (write_folder(tmp_path / "two") / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"tinylm import m\.gguf"):
        Checkpoint(tmp_path / "two")


SHARD = {"a.safetensors": {"a": np.ones(1, np.float32)}, "b.safetensors": {"b": np.ones(1, np.float32)}}


@pytest.mark.parametrize(
    ("shards", "weight_map", "message"),
    [
        (
            ["a"],
            {"a": "a.safetensors", "b": "b.safetensors"},
            r"b\.safetensors: this shard is missing.* 1 tensors",
        ),
        (["a", "b"], {"a": "a.safetensors", "b": "a.safetensors"}, r"a\.safetensors: lacks tensor 'b'"),
        (
            ["a", "b"],
            {"a": "b.safetensors", "b": "a.safetensors"},
            r"lacks tensor 'a'.*it is in a\.safetensors",
        ),
        (["a"], {"a": "a.safetensors", "c": "a.safetensors"}, r"a\.safetensors: lacks tensor 'c'"),
        (["a"], {}, r"index\.json: has no weight_map"),
        (["a"], [], r"index\.json: has no weight_map"),
        (["a"], {"a": "../a.safetensors"}, r"'a' is said to be in '\.\./a\.safetensors'"),
        (["a"], {"a": "/etc/a.safetensors"}, r"is not the name"),
        (["a"], {"a": "..\\a.safetensors"}, r"is not the name"),
        (["a"], {"a": "C:a.safetensors"}, r"is not the name"),
        (["a"], {"a": "a\0.safetensors"}, r"is not the name"),
        (["a"], {"a": "pytorch_model.bin"}, r"is not the name"),
        (["a"], {"a": 7}, r"is not the name"),
    ],
)
def test_bad_index(tmp_path, shards, weight_map, message):
    write_shards(
        tmp_path, {f"{name}.safetensors": SHARD[f"{name}.safetensors"] for name in shards}, weight_map
    )
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(tmp_path)


def test_tensor_in_two_shards(tmp_path):
    both = {"a": np.ones(1, np.float32)}
    write_shards(
        tmp_path,
        {"1.safetensors": both, "2.safetensors": {**both, "b": np.ones(1)}},
        {"a": "1.safetensors", "b": "2.safetensors"},
    )
    with pytest.raises(CheckpointError, match=r"tensor 'a' is in 1\.safetensors and in 2\.safetensors"):
        Checkpoint(tmp_path)


def test_a_damaged_shard_is_named(tmp_path):
    write_shards(tmp_path, SHARD, {"a": "a.safetensors", "b": "b.safetensors"})
    (tmp_path / "b.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"b\.safetensors: 0 bytes is too short"):
        Checkpoint(tmp_path)


def test_huge_sizes_allocate_nothing(tmp_path):
    """A header that promises 2^40 bytes costs no more than its own text."""
    import tracemalloc

    write_raw(tmp_path, {"a": entry(shape=(2**38,), offsets=(0, 2**40))}, EIGHT)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="beyond the end"):
        Checkpoint(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
