from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.errors import InvalidModelFile, InvalidParameter, ModelNotFound, Offline
from edgellm.hub import ModelStore, StoredFile, StoredModel, resolve

pytestmark = pytest.mark.usefixtures("store_home")


def put(name: str) -> StoredModel:
    store = ModelStore()
    with store.locked(name, lambda: None) as staging:
        path = staging / "arrived"
        path.write_bytes(b"GGUF")
        file = StoredFile("model.gguf", 4, hashlib.sha256(b"GGUF").hexdigest())
        return store.install(replace(store.new(name), files=(file,)), [path], staging)


def test_existing_paths_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my model.gguf"
    file.write_bytes(b"GGUF")
    (tmp_path / "folder").mkdir()
    assert resolve(str(file)) == file
    assert resolve(str(tmp_path / "folder")) == tmp_path / "folder"
    monkeypatch.chdir(tmp_path)
    assert resolve("my model.gguf") == Path("my model.gguf")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert resolve("~/my model.gguf") == file


@pytest.mark.parametrize(
    "path",
    [r"C:\models\x.gguf", "C:/models/x.gguf", r"models\x", "./tiny:2", "x.gguf", "X.GGUF", "C:", "~nobody/x", "a/b"],
)
def test_absent_paths_are_called_files(path: str) -> None:
    with pytest.raises(ModelNotFound, match="no such file"):
        resolve(path)


@pytest.mark.parametrize("name", ["", "nope", "x" * 5000, "nul\0byte", "tiny:2:3", ":", "tiny:"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ModelNotFound):
        resolve(name)


def test_near_names_are_offered() -> None:
    put("local:7b")
    with pytest.raises(ModelNotFound, match=r"did you mean tiny:2\?"):
        resolve("tinny:2")
    with pytest.raises(ModelNotFound, match="did you mean local:7b"):
        resolve("lokal:7b")
    with pytest.raises(ModelNotFound, match="`edgellm list` shows the known names"):
        resolve("zzz")


def test_offline_names_the_command() -> None:
    with pytest.raises(Offline, match=r"'tiny:2' is not here yet .* `edgellm pull tiny:2`"):
        resolve("tiny", offline=True)


def test_names_of_the_store() -> None:
    entry = put("hf:org/repo:Q8_0")
    for name in ("hf:org/repo:Q8_0", "hf:org/repo", "hf:ORG/repo:q8_0"):
        assert resolve(name) == entry.path
    put("hf:org/repo:Q4_0")
    with pytest.raises(InvalidParameter, match=r"hf:org/repo:Q4_0, hf:org/repo:Q8_0"):
        resolve("hf:org/repo")


def test_damaged_entries_are_not_opened() -> None:
    put("hf:org/repo:Q8_0").path.unlink()
    with pytest.raises(InvalidModelFile, match=r"model\.gguf is missing; run `edgellm pull hf:org/repo:Q8_0` again"):
        resolve("hf:org/repo")
    put("tiny:2").path.unlink()
    with pytest.raises(InvalidModelFile, match=r"is missing"):
        resolve("tiny:2", offline=True)


@pytest.mark.parametrize("name", ["org/name", "Org/Name-GGUF", "org/name:Q4_K_M"])
def test_a_repository_without_its_prefix_is_told_how(name: str) -> None:
    with pytest.raises(ModelNotFound, match=f"hf:{name}"):
        resolve(name)


def test_aliases(store_home: Path, tmp_path: Path) -> None:
    path = put("local:7b").path
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (store_home / "config.toml").write_text(
        f'[aliases]\nmine = "local"\nbest = "mine"\nfile = "{tmp_path / "x.gguf"}"\n'
        'a = "b"\nb = "a"\nrepo = "https://hf.co/org/name"\n'
    )
    assert resolve("best") == path
    assert resolve("file") == tmp_path / "x.gguf"
    with pytest.raises(InvalidParameter, match="a → b → a go in a circle"):
        resolve("a")
    with pytest.raises(Offline, match="hf:org/name"):
        resolve("repo", offline=True)
