"""The cache of compiled kernels: used, never stale, and a miss wherever anything is wrong with it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinylm.kernels import cache, jit, machine_code

ROOT = Path(__file__).resolve().parent.parent.parent

COMPILE_TWO = """
import json
import numpy as np
from tinylm.kernels import cache, machine_code
compiled = []
machine_code.on_compile(lambda name, seconds: compiled.append(name))
from tinylm.kernels.rows import add_bias, add_bias_operation
x = np.ones((2, 3), np.float32)
add_bias(x, np.arange(3, dtype=np.float32), 0, 2)
assert x.tolist() == [[1, 2, 3]] * 2, x
operands = np.array([x.ctypes.data, 2, 3, x[1].ctypes.data, 3], np.int64)
add_bias_operation(operands)
assert x.tolist() == [[2, 4, 6], [1, 2, 3]], x
print(json.dumps({"compiled": sorted(set(compiled)), "folder": str(cache.folder())}))
"""
BOTH = ["add_bias", "add_bias_operation"]


def start(home: Path, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMPILE_TWO],
        cwd=ROOT,
        env={**os.environ, "TINYLM_HOME": str(home), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def compile_two(home: Path, **more: str) -> list[str]:
    """A new process computes with a jitted function and an operation: which of them did it have to compile?"""
    process = start(home, **more)
    answer, complaint = process.communicate()
    assert process.returncode == 0, complaint
    assert complaint == ""
    said = json.loads(answer)
    assert Path(said["folder"]).parent.parent == home
    return [name for name in said["compiled"] if name in BOTH]


def test_another_process_compiles_nothing_unless_its_processor_is_another(tmp_path: Path) -> None:
    first = [start(tmp_path) for _ in range(2)]  # both at once
    for process in first:
        _, complaint = process.communicate()
        assert process.returncode == 0, complaint
    assert compile_two(tmp_path) == []
    other = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    assert compile_two(tmp_path, **other) == BOTH
    assert compile_two(tmp_path, **other) == []
    assert compile_two(tmp_path) == []
    for path in (tmp_path / "kernels").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert hashlib.sha256(data[32:]).digest() == data[:32]
            assert "." not in path.name, "half of it was left"


def test_where_nothing_can_be_written_everything_still_works(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    assert compile_two(file) == BOTH
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "kernels").write_text("in the way")
    assert compile_two(folder) == BOTH
    assert (folder / "kernels").read_text() == "in the way"


def double(x: float) -> float:
    return 2 * x


def nothing(operands: Any, begin: int, end: int) -> None:
    return


class Compiled:
    """What had to be compiled since this was made."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, float]] = []
        self.stop = machine_code.on_compile(lambda name, seconds: self.heard.append((name, seconds)))

    def both(self) -> list[str]:
        """The names, of a function and an operation that are made anew."""
        self.heard.clear()
        assert jit.njit(double)(4) == 8
        assert jit.Operation(nothing).address
        return [name for name, seconds in self.heard if seconds]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of our own."""
    folder = tmp_path / "deep" / "cache"
    monkeypatch.setattr(cache, "folder", lambda: folder)
    return folder


@pytest.fixture
def compiled() -> Iterator[Compiled]:
    found = Compiled()
    yield found
    found.stop()


def test_a_listener_hears_before_and_after(folder: Path, compiled: Compiled) -> None:
    assert compiled.both() == ["double", "nothing"]
    assert [(name, seconds > 0) for name, seconds in compiled.heard] == [
        ("double", False),
        ("double", True),
        ("nothing", False),
        ("nothing", True),
    ]
    assert compiled.both() == []
    compiled.stop()
    shutil.rmtree(folder)
    assert compiled.both() == []
    compiled.stop = machine_code.on_compile(lambda name, seconds: None)


def flipped(data: bytes) -> bytes:
    """One bit of a name is another: nothing that reading it would stumble over."""
    place = max(data.find(b"return_value"), data.find(b"nothing"))
    assert place > 0
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


SPOIL: dict[str, Callable[[Path], object]] = {
    "a byte is another": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "empty": lambda path: path.write_bytes(b""),
    "ten bytes": lambda path: path.write_bytes(path.read_bytes()[:10]),
    "half of it": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "whole, but no pickle": lambda path: path.write_bytes(hashlib.sha256(b"what?").digest() + b"what?"),
    "whole, but no kernel": lambda path: path.write_bytes(hashlib.sha256(PICKLE).digest() + PICKLE),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "gone": lambda path: path.unlink(),
}
PICKLE = pickle.dumps((1, 2, 3))


@pytest.mark.parametrize("spoil", SPOIL.values(), ids=SPOIL)
def test_a_damaged_cache_is_a_miss_and_mends_itself(
    folder: Path, compiled: Compiled, spoil: Callable[[Path], object]
) -> None:
    compiled.both()
    assert compiled.both() == []
    for path in list(folder.iterdir()):
        spoil(path)
    assert compiled.both() == ["double", "nothing"]
    if not any(path.is_dir() for path in folder.iterdir()):
        assert compiled.both() == []


def test_the_folder_is_named_by_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "kernels"
    sources.mkdir()
    for path in Path(jit.__file__).resolve().parent.glob("*.py"):
        shutil.copy(path, sources)
    original = cache.folder.__wrapped__()
    monkeypatch.setattr(cache, "__file__", str(sources / "cache.py"))
    assert cache.folder.__wrapped__() == original
    seen = {original}
    for change in ("norm.py", "simd.py", "new.py"):
        with open(sources / change, "a") as file:
            file.write("\n# changed\n")
        seen.add(cache.folder.__wrapped__())
    (sources / "new.py").rename(sources / "newer.py")
    seen.add(cache.folder.__wrapped__())
    assert len(seen) == 5


def times(factor: Any) -> Any:
    def multiply(x):
        return x * factor

    return jit.njit(multiply)


def then(function: Any) -> Any:
    def call(x):
        return function(x)

    return jit.njit(call)


@pytest.mark.usefixtures("folder")
def test_what_a_function_closes_over_tells_it_from_its_twin() -> None:
    for _ in range(2):  # compiled, then from the cache
        assert times(2)(10) == 20
        assert times(3)(10) == 30
        assert times(2.5)(10) == 25
        assert times(np.float32(0.5))(10) == 5
        assert then(times(2))(10) == 20
        assert then(times(3))(10) == 30
        assert then(then(times(4)))(10) == 40
        assert then(then(times(5)))(10) == 50


@pytest.mark.usefixtures("folder")
def test_a_function_elsewhere_is_not_taken_for_what_it_was(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.py"

    def answer() -> int:
        spec = importlib.util.spec_from_file_location("elsewhere", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return int(module.answer())

    for number in (41, 42):
        text = f"from tinylm.kernels.jit import njit\n@njit\ndef answer():\n    return {number}\n"
        file.write_text(text + "#" * number)  # another length: Python's own cache looks at that and the time
        assert answer() == number


INTERRUPTED = """
import signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)
from tinylm.kernels.rows import take_operation
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupting())
try:
    take_operation.compile()
except KeyboardInterrupt:
    print("interrupted")
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
print(take_operation.compile() > 0)
"""


@pytest.mark.parametrize(
    "module", ["numba.core.types.abstract", "numba.cpython.builtins", "numba.np.arrayobj"]
)
def test_an_interrupt_while_numba_is_imported_does_not_spoil_it(tmp_path: Path, module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module], cwd=ROOT, env=os.environ | {"TINYLM_HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["interrupted", "True"], done.stderr
