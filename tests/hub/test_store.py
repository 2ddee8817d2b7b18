from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.errors import ModelNotFound, ResourceError
from edgellm.hub import ModelStore, StoredFile, StoredModel

DATA = b"GGUF and more"


def put(store: ModelStore, name: str, data: bytes = DATA) -> StoredModel:
    """Install a model of that content."""
    with store.locked(name, lambda: None) as staging:
        path = staging / "arrived"
        path.write_bytes(data)
        file = StoredFile("model.gguf", len(data), hashlib.sha256(data).hexdigest())
        entry = replace(store.new(name), type="F16", source="test", license="MIT", files=(file,))
        return store.install(entry, [path], staging)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def test_empty(store: ModelStore) -> None:
    assert list(store.list()) == []
    assert store.find("x:1") is None
    assert not store.root.exists()
    with pytest.raises(ModelNotFound, match="x:1"):
        store.remove("x:1")


@pytest.mark.parametrize("name", ["x:1", "hf:Org/Some-Repo.v2-GGUF:Q4_K_M"])
def test_install_find_remove(store: ModelStore, name: str) -> None:
    entry = put(store, name)
    assert store.find(name) == entry
    assert list(store.list()) == [entry]
    assert entry.path.read_bytes() == DATA
    assert entry.size == len(DATA)
    assert store.verify(entry) is None
    assert store.remove(name) > len(DATA)
    assert list(store.list()) == []
    assert not entry.folder.exists()
    assert [path.name for path in (store.root / ".staging").iterdir()] == [f"{entry.folder.name}.lock"]


def test_names_do_not_collide_and_stay_inside(store: ModelStore) -> None:
    folders = [store.new(name).folder for name in ("a:b", "a/b", "a@b", "hf:a/b:c")]
    assert len({folder.parent for folder in folders}) == 1
    assert len({folder.name for folder in folders[:2]}) == 2


def test_install_replaces(store: ModelStore) -> None:
    put(store, "x:1")
    entry = put(store, "x:1", b"newer")
    assert entry.path.read_bytes() == b"newer"
    assert len(list(store.list())) == 1


def _spoil_manifest(entry: StoredModel, **changes: object) -> None:
    path = entry.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda e: e.path.unlink(), "model.gguf is missing"),
        (lambda e: e.path.write_bytes(b"short"), "has 5 bytes instead of 13"),
        (lambda e: (e.folder / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda e: (e.folder / "manifest.json").write_text("{"), "cannot be read"),
        (lambda e: (e.folder / "manifest.json").write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda e: (e.folder / "manifest.json").write_text("[]"), "cannot be read"),
        (lambda e: _spoil_manifest(e, files=[]), "names no file"),
        (lambda e: _spoil_manifest(e, files=[{"name": "../../x", "size": 1, "sha256": ""}]), "outside its folder"),
        (lambda e: _spoil_manifest(e, files=[{"name": "x"}]), "cannot be read"),
        (lambda e: _spoil_manifest(e, name="y:1"), "belongs to 'y:1'"),
    ],
)
def test_damage_is_reported(store: ModelStore, damage: object, words: str) -> None:
    entry = put(store, "x:1")
    damage(entry)  # type: ignore[operator]
    (found,) = store.list()
    assert found.name == "x:1"
    assert found.problem is not None
    assert words in found.problem
    assert store.verify(found) == found.problem
    store.remove("x:1")
    assert list(store.list()) == []


def test_verify_reads_the_bytes(store: ModelStore) -> None:
    entry = put(store, "x:1")
    entry.path.write_bytes(bytes(len(DATA)))
    assert store.find("x:1") == entry
    assert "changed" in str(store.verify(entry))


def test_stray_files_are_ignored(store: ModelStore) -> None:
    entry = put(store, "x:1")
    (store.root / "notes.txt").write_text("mine")
    assert list(store.list()) == [entry]


def test_staged_bytes_are_counted_and_removed(store: ModelStore) -> None:
    with store.locked("x:1", lambda: None) as staging:
        (staging / "x.partial").write_bytes(bytes(100))
    assert store.staged("x:1") == 100
    assert store.remove("x:1") == 100
    assert store.staged("x:1") == 0


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_store(store: ModelStore) -> None:
    store.root.mkdir()
    store.root.chmod(0o500)
    with pytest.raises(ResourceError, match="EDGELLM_HOME"), store.locked("x:1", lambda: None):
        pass


def test_store_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ModelStore(tmp_path / "file" / "models")
    with pytest.raises(ResourceError, match="cannot write in"), store.locked("x:1", lambda: None):
        pass
