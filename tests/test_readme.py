"""What the README shows is what happens."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_examples_print_what_they_show() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "README.md", "README.md", 0)
    assert len(test.examples) >= 8
    failures: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    runner.run(test, out=failures.append)
    assert not failures, "".join(failures)


def test_the_package_says_the_same_of_itself() -> None:
    import tinylm

    assert doctest.testmod(tinylm).failed == 0


@pytest.mark.parametrize("path", re.findall(r"\| `([\w./]+)`", README))
def test_the_map_names_what_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_address_of_the_project_stands_in_one_place() -> None:
    texts = [*ROOT.glob("*.md"), ROOT / "pyproject.toml", *(ROOT / "tinylm").rglob("*.py")]
    named = [
        path.name for path in texts for _ in re.findall(r"github\.com/tinylm/tinylm", path.read_text("utf-8"))
    ]
    assert named == ["README.md"]
