"""What is installed is whole, runs away from the checkout, and needs no symbolic link."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command without what would let Python find the checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "TINYLM_MODEL"}}
    words = [str(word) for word in command]
    return subprocess.run(
        words, cwd=cwd, env=kept | environment, capture_output=True, text=True, encoding="utf-8", check=False
    )


def needs(*names: str) -> None:
    """Skip where a package is missing; looked for and not imported, because importing setuptools has effects."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def installed_files() -> set[str]:
    """The Python files that a wheel must hold, under their names in it."""
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tinylm").rglob("*.py")}
    kernels = {f"tinylm/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "kernels").rglob("*.py")}
    return {name for name in files if not name.startswith("tinylm/kernels/")} | kernels


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources as Git for Windows lays them out: the link is a text file."""
    folder = tmp_path_factory.mktemp("checkout")
    left_out = shutil.ignore_patterns("__pycache__", "kernels")
    shutil.copytree(ROOT / "tinylm", folder / "tinylm", ignore=left_out)
    shutil.copytree(ROOT / "kernels", folder / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tinylm" / "kernels").write_text("../kernels", encoding="utf-8")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def distributions(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, built from the source archive as an index's users get it, and that archive."""
    needs("build", "setuptools")
    target = tmp_path_factory.mktemp("distributions")
    built = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, checkout, cwd=target)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(target.glob("*.whl")), next(target.glob("*.tar.gz"))


def test_the_wheel_holds_every_module_and_only_one_top_level_name(distributions: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(distributions[0]).namelist())
    assert {name for name in names if name.endswith(".py")} == installed_files()
    # A top-level `kernels` would hide the package of that name, which transformers imports.
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"tinylm"}
    story = "tinylm/stories260k/"
    assert {"tinylm/py.typed", f"{story}model.safetensors", f"{story}config.json"} <= names
    assert f"{story}tokenizer.json" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_source_archive_holds_the_kernels_and_no_fixtures(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kernels = {path.relative_to(ROOT).as_posix() for path in (ROOT / "kernels").rglob("*.py")}
    assert kernels <= names
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= names
    assert not [name for name in names if name.startswith("tests")]


def test_an_installed_wheel_writes_text_away_from_the_checkout(
    distributions: tuple[Path, Path], tmp_path: Path
) -> None:
    target = tmp_path / "site"
    installed = run(
        sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target, distributions[0],
        cwd=tmp_path,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    code = (
        "import tinylm, tinylm.kernels as k; print(tinylm.__file__); print(k.__file__);"
        "from tinylm.cli import main; raise SystemExit(main(['generate', 'Once upon a time', '-n', '5']))"
    )
    result = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(target))
    assert result.returncode == 0, result.stderr
    package, kernels, text = result.stdout.split("\n", 2)
    assert Path(package).is_relative_to(target)
    assert Path(kernels).is_relative_to(target)
    assert text.strip()
    version = run(sys.executable, "-m", "tinylm", "--version", cwd=tmp_path, PYTHONPATH=str(target))
    assert (version.returncode, version.stdout.startswith("tinylm ")) == (0, True)


def test_an_editable_install_finds_the_kernels_without_the_link(checkout: Path, tmp_path: Path) -> None:
    needs("setuptools", "pip")
    home = tmp_path / "environment"
    venv.create(home, system_site_packages=False, with_pip=False)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    # The dependencies and the builder come from the environment of the tests.
    beside = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    searched = os.pathsep.join(beside)
    installed = run(
        python, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "-e", checkout,
        cwd=tmp_path, PYTHONPATH=searched,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    code = "import tinylm.kernels; print(tinylm.kernels.__file__)"
    result = run(python, "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).resolve() == (checkout / "kernels" / "__init__.py").resolve()


def test_setup_names_every_package() -> None:
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    packages = {Path(name).parent.as_posix().replace("/", ".") for name in installed_files()}
    missing = sorted(package for package in packages if f'"{package}"' not in text)
    assert not missing, f"setup.py does not list {missing}"
