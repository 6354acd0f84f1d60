"""The checkpoint loader against the safetensors library."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save_file

from tinylm.checkpoint import Checkpoint
from tinylm.errors import CheckpointError
from tinylm.safetensors_header import format_header, read_header

BUNDLED = Path(__file__).parents[1] / "tinylm" / "stories260k"

SAFETENSORS_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


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


def test_bundled_model_equals_the_library():
    checkpoint = Checkpoint(BUNDLED)
    with safe_open(BUNDLED / "model.safetensors", "np") as library:
        assert set(checkpoint.tensors) == set(library.keys())
        for name in library.keys():  # noqa: SIM118  (safe_open is no mapping)
            np.testing.assert_array_equal(checkpoint.array(name), library.get_tensor(name))
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.config["hidden_size"] == 64


dtypes = st.sampled_from(sorted(SAFETENSORS_NAMES)).map(np.dtype)
arrays = dtypes.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


@settings(max_examples=150, deadline=None)
@given(
    tensors=st.dictionaries(st.text(max_size=12).filter(lambda n: n != "__metadata__"), arrays, max_size=5)
)
def test_every_dtype_and_shape_round_trips(tmp_path_factory, tensors):
    folder = write_folder(tmp_path_factory.mktemp("folder"), tensors)
    checkpoint = Checkpoint(folder)
    assert set(checkpoint.tensors) == set(tensors)
    library = dict(deserialize((folder / "model.safetensors").read_bytes()))
    for name, written in tensors.items():
        info = checkpoint.tensors[name]
        assert info.dtype == SAFETENSORS_NAMES[written.dtype.name] == library[name]["dtype"]
        assert list(info.shape) == library[name]["shape"]
        assert info.nbytes == written.nbytes
        read = checkpoint.array(name)
        assert read.shape == written.shape
        assert read.tobytes() == written.tobytes()  # bytes, because NaN != NaN
        assert read.flags.aligned
        assert not read.flags.writeable


def mutate(data: bytes, edits: list[tuple[float, int]]) -> bytes:
    mutated = bytearray(data)
    for place, byte in edits:
        mutated[int(place * len(mutated))] = byte
    return bytes(mutated)


@settings(max_examples=400, deadline=None)
@given(
    edits=st.lists(
        st.tuples(
            st.floats(0, 1, exclude_max=True), st.sampled_from(b'0123456789-.eE[]{}":, \\FIUB\x00\xff')
        ),
        min_size=1,
        max_size=3,
    ),
    cut=st.integers(0, 12),
)
def test_accepts_no_damaged_header_that_the_library_refuses(tmp_path_factory, edits, cut):
    file = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(3, dtype=np.int8)}
    save_file(tensors, file)
    data = mutate(file.read_bytes()[:-8], edits) + file.read_bytes()[-8:]
    file.write_bytes(data[: len(data) - cut])
    try:
        library = {
            name: (info["dtype"], tuple(info["shape"])) for name, info in deserialize(file.read_bytes())
        }
    except SafetensorError:
        with pytest.raises(CheckpointError):
            read_header(file)
        return
    try:
        ours = {name: (info.dtype, info.shape) for name, info in read_header(file).items()}
    except CheckpointError as error:
        # Stricter than the library in two things only.
        assert "unknown dtype" in str(error) or "twice" in str(error)  # noqa: PT017
        return
    assert ours == library


def test_float32_is_a_view_of_the_file(tmp_path):
    checkpoint = Checkpoint(write_folder(tmp_path, {"w": np.arange(12, dtype=np.float32).reshape(3, 4)}))
    array = checkpoint.array("w")
    assert not array.flags.owndata
    assert checkpoint.float32("w").ctypes.data == array.ctypes.data
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1


def test_bfloat16_is_its_bits_and_converts_exactly(tmp_path):
    bits = np.array([[0x3F80, 0xC000, 0x0000], [0x8000, 0x7F80, 0x0001]], np.uint16)
    with open(write_folder(tmp_path) / "model.safetensors", "wb") as stream:
        stream.write(format_header([("w", "BF16", (2, 3))]) + bits.tobytes())
    with safe_open(tmp_path / "model.safetensors", "np") as library:
        assert library.get_slice("w").get_dtype() == "BF16"
    checkpoint = Checkpoint(tmp_path)
    stored = checkpoint.array("w")
    assert stored.dtype == np.uint16
    assert not stored.flags.owndata
    np.testing.assert_array_equal(stored, bits)
    # The values by the definition of the format: 1, -2, 0, -0, infinity, the smallest subnormal 2^-133.
    expected = np.array([[1.0, -2.0, 0.0], [-0.0, np.inf, 2.0**-133]], np.float32)
    converted = checkpoint.float32("w")
    assert converted.dtype == np.float32
    assert converted.tobytes() == expected.tobytes()


def test_float16_and_float64_convert_and_integers_do_not(tmp_path):
    halves = np.array([1.5, -0.25, 65504, 6e-8], np.float16)
    tensors = {"half": halves, "double": np.array([0.1]), "mask": np.array([True])}
    checkpoint = Checkpoint(write_folder(tmp_path, tensors))
    assert checkpoint.array("half").dtype == np.float16
    np.testing.assert_array_equal(checkpoint.float32("half"), halves.astype(np.float32))
    np.testing.assert_array_equal(checkpoint.float32("double"), np.array([0.1], np.float32))
    with pytest.raises(CheckpointError, match=r"'mask' holds BOOL"):
        checkpoint.float32("mask")


def test_unaligned_bytes_are_copied(tmp_path):
    values = np.arange(4, dtype=np.float32)
    header = json.dumps({"w": entry(shape=(4,), offsets=(0, 16))}).encode()
    header += b" " * ((1 - 8 - len(header)) % 4)  # data begin one byte after a multiple of 4
    write_raw(tmp_path, header, values.tobytes())
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.tensors["w"].offset % 4 == 1
    array = checkpoint.array("w")
    assert array.flags.aligned
    assert not array.flags.writeable
    np.testing.assert_array_equal(array, values)


def test_shards_are_read_as_one(tmp_path):
    one = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float16)}
    two = {"c": np.arange(5, dtype=np.int32)}
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    write_shards(
        tmp_path, dict(zip(names, (one, two), strict=True)), {"a": names[0], "b": names[0], "c": names[1]}
    )
    checkpoint = Checkpoint(tmp_path)
    for name, written in {**one, **two}.items():
        np.testing.assert_array_equal(checkpoint.array(name), written)
    assert checkpoint.tensors["c"].file.name == names[1]


def test_a_tensor_the_index_forgot_is_kept_for_the_architecture_to_judge(tmp_path):
    write_shards(tmp_path, {"s.safetensors": {"a": np.ones(1), "b": np.ones(1)}}, {"a": "s.safetensors"})
    assert set(Checkpoint(tmp_path).tensors) == {"a", "b"}


def test_a_single_file_wins_over_an_index(tmp_path):
    write_shards(tmp_path, {}, {"a": "missing.safetensors"})
    save_file({"a": np.ones(1)}, tmp_path / "model.safetensors")
    assert set(Checkpoint(tmp_path).tensors) == {"a"}


def test_symbolic_links_are_followed(tmp_path):
    blob = write_folder(tmp_path / "blobs", {"a": np.ones(2)})
    folder = tmp_path / "snapshot"
    folder.mkdir()
    try:
        for name in ("config.json", "model.safetensors"):
            (folder / name).symlink_to(blob / name)
    except OSError:
        pytest.skip("this system allows no symbolic links")
    np.testing.assert_array_equal(Checkpoint(folder).array("a"), np.ones(2))


def test_generation_config_is_optional(tmp_path):
    write_folder(tmp_path, {"a": np.ones(1)})
    assert Checkpoint(tmp_path).generation_config == {}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert Checkpoint(tmp_path).generation_config == {"eos_token_id": [1, 2]}


def test_close_keeps_arrays_alive_and_ends_the_rest(tmp_path):
    with Checkpoint(write_folder(tmp_path, {"a": np.arange(4.0), "b": np.ones(1)})) as checkpoint:
        array = checkpoint.array("a")
    np.testing.assert_array_equal(array, np.arange(4.0))
    with pytest.raises(CheckpointError, match="closed"):
        checkpoint.array("b")


def test_asking_for_an_absent_tensor(tmp_path):
    with pytest.raises(CheckpointError, match=r"no tensor 'lm_head\.weight'"):
        Checkpoint(write_folder(tmp_path, {"a": np.ones(1)})).array("lm_head.weight")


def test_format_header_is_read_by_the_library(tmp_path):
    file = tmp_path / "x.safetensors"
    written = np.arange(6, dtype=np.float32).reshape(2, 3)
    file.write_bytes(format_header([("é", "F32", (2, 3)), ("s", "U8", ())]) + written.tobytes() + b"\x07")
    with safe_open(file, "np") as library:
        np.testing.assert_array_equal(library.get_tensor("é"), written)
        assert library.get_tensor("s") == 7
        assert library.metadata() == {"format": "pt"}
    assert read_header(file)["é"].offset % 64 == 0


def test_library_writer_with_metadata(tmp_path):
    write_folder(tmp_path)
    values = np.arange(3, dtype=np.float32)
    save_file({"a": values}, tmp_path / "model.safetensors", metadata={"format": "pt", "k": "ü"})
    np.testing.assert_array_equal(Checkpoint(tmp_path).array("a"), values)
