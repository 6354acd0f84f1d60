"""The GGUF header: equal to the gguf library's reader on good files, one CheckpointError on bad ones."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinylm.errors import CheckpointError, TinylmError
from tinylm.sources.gguf_file import GgufFile
from tinylm.sources.gguf_import import import_gguf

gguf = pytest.importorskip("gguf")

METADATA = {
    "x.flag": True,
    "x.count": 7,
    "x.real": 0.25,
    "x.text": "naïve \u4e00",
    "x.empty": "",
    "x.numbers": [1, -2, 3],
    "x.reals": [0.5, 1.5],
    "x.texts": ["a", "", "日本"],
}


def plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.skipif(
    not hasattr(gguf.ReaderField, "contents"), reason="an older gguf, whose reader gives parts"
)
def test_equals_the_library(tmp_path, small_model):
    small_model(type="Q8_0", metadata=METADATA).write(tmp_path / "m.gguf")
    library = gguf.GGUFReader(tmp_path / "m.gguf")
    with GgufFile(tmp_path / "m.gguf") as file:
        for key, field in library.fields.items():
            if key not in ("GGUF.tensor_count", "GGUF.kv_count"):
                assert plain(file.metadata[key]) == field.contents(), key
        assert list(file.tensors) == [tensor.name for tensor in library.tensors]
        for tensor in library.tensors:
            assert file.tensors[tensor.name].type == tensor.tensor_type.name
            assert file.tensors[tensor.name].shape == tuple(tensor.shape.tolist()[::-1])
            assert file.rows(tensor.name).tobytes() == tensor.data.tobytes()


def test_rows_are_read_in_part(tmp_path, small_model):
    small_model(type="Q4_0").write(tmp_path / "m.gguf")
    with GgufFile(tmp_path / "m.gguf") as file:
        whole = file.rows("output.weight")
        np.testing.assert_array_equal(file.rows("output.weight", 2, 4), whole[2:4])
        assert file.rows("output_norm.weight").shape == (1, 64)


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def header(
    entries: bytes = b"", tensors: bytes = b"", keys: int = 0, count: int = 0, version: int = 3
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, count, keys) + entries + tensors


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def tensor(
    name: bytes = b"t", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0, rank: int | None = None
) -> bytes:
    return (
        string(name)
        + struct.pack("<I", len(shape) if rank is None else rank)
        + struct.pack(f"<{len(shape)}Q", *shape)
        + struct.pack("<IQ", kind, offset)
    )


FILL = bytes(256)
HUGE = struct.pack("<Q", 2**60)

BAD = {
    "empty": (b"", r"truncated"),
    "other": (b"PK\x03\x04" + FILL, r"not a GGUF file: it begins with b'PK"),
    "version 1": (header(version=1) + FILL, r"GGUF version 1 is not read, 2 and 3 are"),
    "version 4": (header(version=4) + FILL, r"GGUF version 4"),
    "big-endian": (header(version=3 << 24) + FILL, r"big-endian"),
    "keys without end": (header(keys=2**60) + FILL, r"1152921504606846976 metadata entries do not fit"),
    "tensors without end": (header(count=2**63) + FILL, r"9223372036854775808 tensors do not fit"),
    "huge key": (header(HUGE, keys=1) + FILL, r"a metadata key of 1152921504606846976 bytes"),
    "huge string": (header(key(b"k", 8, HUGE), keys=1) + FILL, r"metadata 'k' of 1152921504606846976 bytes"),
    "huge array": (header(key(b"k", 9, struct.pack("<I", 0) + HUGE), keys=1) + FILL, r"metadata 'k'"),
    "huge list": (
        header(key(b"k", 9, struct.pack("<I", 8) + HUGE), keys=1) + FILL,
        r"strings of metadata 'k'",
    ),
    "nested array": (header(key(b"k", 9, struct.pack("<IQ", 9, 1)), keys=1) + FILL, r"unknown type 9"),
    "unknown type": (
        header(key(b"k", 77, FILL), keys=1) + FILL,
        r"metadata 'k' has values of the unknown type 77",
    ),
    "key twice": (header(key(b"k", 0, b"\1") * 2, keys=2) + FILL, r"metadata 'k' is there twice"),
    "key not UTF-8": (header(key(b"\xff", 0, b"\1"), keys=1) + FILL, r"not UTF-8"),
    "alignment 0": (header(key(b"general.alignment", 4, bytes(4)), keys=1) + FILL, r"general\.alignment 0"),
    "alignment 12": (header(key(b"general.alignment", 4, b"\x0c\0\0\0"), keys=1) + FILL, r"alignment 12"),
    "alignment text": (header(key(b"general.alignment", 8, string(b"x")), keys=1) + FILL, r"alignment 'x'"),
    "no dimensions": (header(tensors=tensor(shape=()), count=1) + FILL, r"'t': 0 dimensions"),
    "many dimensions": (
        header(tensors=tensor(rank=2**32 - 1), count=1) + FILL,
        r"'t': 4294967295 dimensions",
    ),
    "unknown kind": (header(tensors=tensor(kind=250), count=1) + FILL, r"'t': type 250 is unknown"),
    "broken block": (
        header(tensors=tensor(shape=(5,), kind=2), count=1) + FILL,
        r"'t': rows of 5 values .* Q4_0's 32",
    ),
    "empty tensor": (header(tensors=tensor(shape=(0, 4)), count=1) + FILL, r"'t': shape \(4, 0\) is empty"),
    "wrapping shape": (header(tensors=tensor(shape=(2**32, 2**32)), count=1) + FILL, r"'t': shape .* larger"),
    "beyond the end": (
        header(tensors=tensor(shape=(2**40,)), count=1) + FILL,
        r"'t': its 4398046511104 bytes",
    ),
    "offset beyond": (
        header(tensors=tensor(offset=2**62), count=1) + FILL,
        r"'t': its 16 bytes at 4611686018",
    ),
    "offset not aligned": (header(tensors=tensor(offset=4), count=1) + FILL, r"'t': .* off the alignment"),
    "tensor twice": (header(tensors=tensor() * 2, count=2) + FILL, r"tensor 't' is there twice"),
    "name not UTF-8": (header(tensors=tensor(b"\xc3"), count=1) + FILL, r"a tensor's name is not UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file(tmp_path, case):
    data, message = BAD[case]
    file = tmp_path / "bad.gguf"
    file.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=message) as caught:
        GgufFile(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(file) in str(caught.value)
    assert peak < 2**22


def test_missing_and_odd_files(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        GgufFile(tmp_path / "nowhere.gguf")
    with pytest.raises(CheckpointError, match="not a file"):
        GgufFile(tmp_path)


def test_truncated_anywhere(tmp_path, small_model):
    small_model(layers=1).write(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    file = tmp_path / "cut.gguf"
    for size in [*range(0, 3000, 7), *range(3000, len(whole), 997), len(whole) - 1]:
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"cut\.gguf"):
            import_gguf(file, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 2500), st.sampled_from([0, 1, 8, 9, 127, 255])), min_size=1, max_size=4
    )
)
def test_damaged_headers_end_in_one_error_or_a_model(tmp_path_factory, small_model, edits):
    """Never a hang, a traceback or half a folder, whatever byte is changed."""
    folder: Path = tmp_path_factory.mktemp("damaged")
    small_model(layers=1, width=32, inner=32, head_dim=8).write(folder / "m.gguf")
    data = bytearray((folder / "m.gguf").read_bytes())
    for place, byte in edits:
        data[place % len(data)] = byte
    (folder / "m.gguf").write_bytes(data)
    try:
        import_gguf(folder / "m.gguf", folder / "m")
    except TinylmError as error:
        assert "m.gguf" in str(error)  # noqa: PT017
        assert [file.name for file in folder.iterdir()] == ["m.gguf"]
