"""The house keeps its shape: imports point down, files stay small, names say what a thing is."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tinylm"

# Which floor a module stands on; the longest matching name counts. A module imports from its own
# floor and from those below.
FLOORS = {
    "tinylm.errors": 0,
    "tinylm.home": 0,
    "tinylm.kernels": 0,
    "tinylm.safetensors_header": 1,
    "tinylm.checkpoint": 1,
    "tinylm.tensor_names": 1,
    "tinylm.weights": 1,
    "tinylm.formats": 1,
    "tinylm.cache": 1,
    "tinylm.step": 1,
    "tinylm.program": 1,
    "tinylm.lowering": 1,
    "tinylm.early_choice": 1,
    "tinylm.storage": 1,
    "tinylm.executor": 1,
    "tinylm.reference": 1,
    "tinylm.tokenizer": 1,
    "tinylm.chat_template": 1,
    "tinylm.stories260k": 1,
    "tinylm.models": 2,
    "tinylm.sources": 2,
    "tinylm.engine": 3,
    "tinylm.parameters": 3,
    "tinylm.generation_config": 3,
    "tinylm.candidates": 3,
    "tinylm.logits_processors": 3,
    "tinylm.sampler": 3,
    "tinylm.stopping": 3,
    "tinylm.completion": 3,
    "tinylm": 5,
    "tinylm.cli": 6,
    "tinylm.__main__": 6,
}
TEXT_AND_IDS = 4  # every other module directly in tinylm/: where text, engine and sampler meet

# What a room may use from outside the standard library.
OUTSIDE = {
    "tinylm.errors": set(),
    "tinylm.kernels": {"numpy", "numba", "llvmlite"},
    "tinylm.models": {"numpy"},
    "tinylm.tokenizer": {"numpy", "regex"},
    "tinylm.chat_template": {"jinja2", "markupsafe"},
    "tinylm.engine": {"numpy"},
    "tinylm.sampler": {"numpy"},
    "tinylm.cli": {"numpy"},
}

# Rooms that must not know each other though one stands above the other.
APART = [
    ("tinylm.engine", "tinylm.tokenizer", "the engine knows no text"),
    ("tinylm.sampler", "tinylm.tokenizer", "the sampler knows no text"),
    ("tinylm.models", "tinylm.tokenizer", "an architecture knows no text"),
    ("tinylm.models", "tinylm.executor", "an architecture writes a program and does not run it"),
    ("tinylm.tokenizer", "tinylm.checkpoint", "the tokenizer stands alone"),
    ("tinylm.tokenizer", "tinylm.executor", "the tokenizer stands alone"),
    ("tinylm.kernels", "tinylm.errors", "a kernel knows arrays only"),
]


def module_name(path: Path) -> str:
    """`kernels/norm.py` -> `tinylm.kernels.norm`; the package's own file -> the package."""
    relative = path.relative_to(ROOT).with_suffix("")
    parts = [part for part in relative.parts if part != "__init__"]
    return ".".join(parts if parts[0] == "tinylm" else ["tinylm", *parts])


def source_files() -> list[Path]:
    """Every Python file that is installed, each once, whether `tinylm/kernels` is a link or not."""
    below = [path for path in PACKAGE.rglob("*.py") if "kernels" not in path.relative_to(PACKAGE).parts]
    return sorted(below + list((ROOT / "kernels").rglob("*.py")))


def imports(path: Path) -> set[str]:
    """The modules that a file imports anywhere in it, by their full names; types alone do not count."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                parts = package.split(".")
                above = ".".join(parts[: len(parts) - node.level + 1])
                start = f"{above}.{node.module}" if node.module else above
            modules = {module_name(file) for file in source_files()}
            named = {f"{start}.{alias.name}" for alias in node.names}
            found |= (named & modules) or {start}
    return found


def within(name: str, room: str) -> bool:
    """Whether a module stands in a room or is it."""
    return name == room or name.startswith(room + ".")


def floor(name: str) -> int:
    """The floor of a module of tinylm."""
    rooms = [room for room in FLOORS if room != "tinylm" and within(name, room)]
    if rooms:
        return FLOORS[max(rooms, key=len)]
    return FLOORS["tinylm"] if name == "tinylm" else TEXT_AND_IDS


FILES = source_files()
NAMES = [module_name(path) for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_point_down(path: Path) -> None:
    name = module_name(path)
    for other in sorted(imports(path)):
        if within(other, "tinylm") and other != "tinylm":
            assert floor(other) <= floor(name), (
                f"{name} (floor {floor(name)}) imports {other} (floor {floor(other)})"
            )
        for room, stranger, reason in APART:
            assert not (within(name, room) and within(other, stranger)), f"{name} imports {other}: {reason}"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_rooms_use_only_what_they_may_from_outside(path: Path) -> None:
    name = module_name(path)
    allowed = next((OUTSIDE[room] for room in OUTSIDE if within(name, room)), None)
    outside = {other.partition(".")[0] for other in imports(path)} - set(sys.stdlib_module_names) - {"tinylm"}
    everything = {"numpy", "numba", "llvmlite", "safetensors", "regex", "gguf", "jinja2", "huggingface_hub"}
    assert outside <= (everything if allowed is None else allowed)


def test_no_circle_of_imports() -> None:
    graph = {module_name(path): {o for o in imports(path) if o in NAMES and o != "tinylm"} for path in FILES}
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name] - {name}):
                visit(other, [*way, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])


def python_files() -> list[Path]:
    """Every Python file of the checkout, tests and benches too."""
    folders = [ROOT / "tests", ROOT / "bench"]
    return [
        *FILES,
        *ROOT.glob("*.py"),
        *(file for folder in folders for file in sorted(folder.rglob("*.py"))),
    ]


@pytest.mark.parametrize("path", python_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_are_small_and_well_named(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 500, "over 500 lines: divide it by what its parts do"
    assert not re.search(r"(^|_)(utils?|helpers?|common|base|misc)(_|$)", path.stem), "the name says nothing"
    if text.strip() and path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(text)), "a file begins by saying what it is"


def test_nothing_is_left_unfinished_and_no_machine_is_named() -> None:
    unfinished = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X]|HAC[K])\b")
    machine = re.compile(r"(?<![\w.])/(wor[k]|roo[t]|hom[e]/[a-z]+|User[s]/[a-z]+)/")
    texts = [*python_files(), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".ci").iterdir()]
    for path in texts:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not unfinished.search(line), f"{path.name}:{number}: {line.strip()}"
            assert not machine.search(line), f"{path.name}:{number}: {line.strip()}"
