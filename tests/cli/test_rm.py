from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgellm.cli.rm import rm
from edgellm.errors import ModelNotFound
from edgellm.hub import ModelStore, StoredFile


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    return ModelStore()


def put(store: ModelStore, name: str) -> None:
    with store.locked(name, lambda: None) as staging:
        path = staging / "arrived"
        path.write_bytes(bytes(5_000_000))
        file = StoredFile("model.gguf", 5_000_000, hashlib.sha256(bytes(5_000_000)).hexdigest())
        store.install(replace(store.new(name), files=(file,)), [path], staging)


@pytest.mark.parametrize("name", ["hf:org/repo:Q8_0", "hf:org/repo"])
def test_removes_and_says_so(store: ModelStore, name: str) -> None:
    put(store, "hf:org/repo:Q8_0")
    put(store, "smollm2:135m")
    result = CliRunner().invoke(rm, [name], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout == "removed hf:org/repo:Q8_0, 5.0 MB freed\n"
    assert [entry.name for entry in store.list()] == ["smollm2:135m"]


def test_absent(store: ModelStore) -> None:
    error = CliRunner().invoke(rm, ["smollm2:135m"]).exception
    assert isinstance(error, ModelNotFound)
    assert "'smollm2:135m' is not here" in str(error)


def test_unfinished_pull(store: ModelStore) -> None:
    with store.locked("gemma3:270m", lambda: None) as staging:
        (staging / "x.partial").write_bytes(bytes(2_000_000))
    result = CliRunner().invoke(rm, ["gemma3"], catch_exceptions=False)  # others of that family are not here
    assert result.stdout == "removed gemma3:270m, 2.0 MB freed\n"
    assert store.staged("gemma3:270m") == 0
