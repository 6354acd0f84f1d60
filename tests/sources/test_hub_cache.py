"""The hub's cache on this machine, read without its library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinylm.errors import MissingModelError
from tinylm.sources import hub_cache
from tinylm.sources.hub import resolve_hub

COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no settings of the person who runs the tests."""
    for name in [*os.environ]:
        if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_OFFLINE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return tmp_path


def snapshot(home: Path, files: dict[str, str], commit: str = COMMIT, ref: str = "main") -> Path:
    """A repository in a cache, as the hub's library leaves it."""
    repository = home / "hub" / "models--someone--small-model"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    if ref:
        (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / ref).write_text(commit, encoding="ascii")
    return folder


WHOLE = {"config.json": "{}", "tokenizer.json": "{}", "model.safetensors": "weights"}


def test_resolve_finds_whole_snapshots(home: Path) -> None:
    folder = snapshot(home, WHOLE)
    other = snapshot(home, WHOLE, OLDER, "refs/pr/1")
    assert resolve_hub("someone/small-model", offline=True) == folder
    assert resolve_hub(f"someone/small-model@{COMMIT}") == folder
    assert resolve_hub("someone/small-model@refs/pr/1") == other
    with pytest.raises(MissingModelError, match="fetch it with: tinylm pull someone/small-model@v9"):
        resolve_hub("someone/small-model@v9")
    with pytest.raises(MissingModelError, match="which --offline or HF_HUB_OFFLINE forbids"):
        resolve_hub("someone/other", offline=True)


def test_a_snapshot_in_part_is_not_a_model(home: Path) -> None:
    snapshot(home, {"config.json": "{}", "tokenizer.json": "{}"})
    with pytest.raises(MissingModelError, match=r"only in part, without model\.safetensors"):
        resolve_hub("someone/small-model")
    index = json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
    folder = snapshot(home, {"model.safetensors.index.json": index, "one.safetensors": ""})
    with pytest.raises(MissingModelError, match=r"without two\.safetensors"):
        resolve_hub("someone/small-model")
    (folder / "two.safetensors").touch()
    assert resolve_hub("someone/small-model") == folder


def test_what_is_cached_is_listed_and_removed(home: Path) -> None:
    assert hub_cache.cached_models() == []
    snapshot(home, WHOLE)
    snapshot(home, WHOLE, OLDER, "v1.0")
    snapshot(home, {"config.json": "{}"}, "c" * 40, "half")
    snapshot(home, WHOLE, "d" * 40, "")
    listed = hub_cache.cached_models()
    assert [str(model.id) for model in listed] == [
        "someone/small-model", "someone/small-model@v1.0", f"someone/small-model@{'d' * 40}",
    ]  # fmt: skip
    assert listed[0].nbytes == sum(map(len, WHOLE.values()))
    assert hub_cache.remove_cached(listed[0].id) == 3 * listed[0].nbytes + 2 + 3 * 40
    assert hub_cache.cached_models() == []
    with pytest.raises(MissingModelError, match="not in the hub's cache"):
        hub_cache.remove_cached(listed[0].id)


@pytest.mark.parametrize(
    "text",
    [
        "name", "a/b/c", "/b", "a/", "a/b@", "../b", "a/..", "a..b/c", "a--b/c", "a/b.git", "a/b@../../x", "a/b@/x",
        "a/b@x//y", "a b/c", "-a/b", "a/b-", "a/" + "b" * 97, "a\\b/c", "C:/b@x y", "a/b\n",
    ],
)  # fmt: skip
def test_names_that_are_none(text: str) -> None:
    assert not hub_cache.is_hub_id(text)
    with pytest.raises(MissingModelError, match="owner/name"):
        resolve_hub(text)


def test_names() -> None:
    for text in (
        "a/b",
        "Eclipse-Senpai/KeyLM-75M",
        "alea-institute/kl3m-002-170m@main",
        "o/n.v1_2@refs/pr/3",
    ):
        assert hub_cache.is_hub_id(text)
    assert str(hub_cache.parse_hub_id("a/b@main")) == "a/b"
    assert hub_cache.parse_hub_id("a/b@v1").revision == "v1"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_CACHE": "cache"}, "cache"),
        ({"HUGGINGFACE_HUB_CACHE": "old"}, "old"),
        ({"HF_HOME": "home"}, "home/hub"),
        ({"XDG_CACHE_HOME": "caches"}, "caches/huggingface/hub"),
        ({}, "~/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_huggingface_hub_has_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    pytest.importorskip("huggingface_hub")
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub_cache.cache_folder() == Path(expected).expanduser()
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == hub_cache.cache_folder()
