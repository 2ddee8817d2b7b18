from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import edgellm
from edgellm.cli.show import show
from edgellm.errors import ModelNotFound, Unsupported
from edgellm.machine import Memory


def run(*arguments: str) -> str:
    result = CliRunner().invoke(show, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stderr == ""
    return result.stdout


def test_text_of_a_chat_model(smollm2: Path) -> None:
    """The expected numbers are those that llama.cpp prints for this file."""
    facts = dict(line.split("  ", 1) for line in run(str(smollm2)).splitlines() if not line.startswith(" "))
    facts = {label: value.strip() for label, value in facts.items()}
    assert facts["path"] == str(smollm2)
    assert facts["architecture"] == "llama"
    assert facts["parameters"] == "135 M (134,515,008)"
    assert facts["file"].startswith("98.4 MB, 5.74 bits per weight")
    assert facts["types"].startswith("Q4_1")
    assert facts["layers"] == "30 of width 576"
    assert facts["vocabulary"] == "49,152 tokens"
    assert facts["context"].startswith("8,192 tokens trained")
    assert facts["KV cache"] == "23,760 bytes per token"
    assert facts["chat template"].startswith("yes")
    assert facts["licence"] == "apache-2.0"


def test_json(smollm2: Path) -> None:
    told = json.loads(run(str(smollm2), "--json", "--ctx", "2048"))
    assert told["path"] == str(smollm2)
    assert (told["format"], told["architecture"], told["context"]) == ("gguf", "llama", 2048)
    assert told["kv_bytes_per_token"] == 23760
    assert told["bits_per_weight"] == pytest.approx(5.744, abs=0.001)
    info = edgellm.inspect(smollm2)
    assert told["memory_needed"] == edgellm.memory_needed(info, 2048)
    assert sum(told["tensor_types"].values()) < told["file_bytes"] == smollm2.stat().st_size


def test_a_preset_is_its_model(smollm2: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    presets = f"model = '{smollm2}'\n[presets.named]\nmodel = '{smollm2}'\n[presets.plain]\ntemperature = 0\n"
    (tmp_path / "config.toml").write_text(presets)
    for name in ("named", "plain"):
        assert json.loads(run(name, "--json"))["path"] == str(smollm2)


def test_context_is_never_more_than_trained(smollm2: Path) -> None:
    assert json.loads(run(str(smollm2), "--json", "--ctx", "100000"))["context"] == 8192
    assert "100,000 asked, which is more than it was trained for" in run(str(smollm2), "--ctx", "100000")


def test_template(smollm2: Path, gemma3: Path) -> None:
    assert run(str(smollm2), "--template").rstrip("\n") == str(edgellm.inspect(smollm2).chat_template).rstrip("\n")
    error = CliRunner().invoke(show, [str(gemma3), "--template"]).exception
    assert isinstance(error, Unsupported)
    assert "no: a base model" in run(str(gemma3))


@pytest.mark.parametrize(
    ("available", "context", "words"),
    [
        (1 << 40, 8192, "1099.51 GB available"),
        (300_000_000, 6400, "300.0 MB available"),
        (50_000_000, 0, "none of use fits in memory"),
        (0, 8192, "does not say"),
    ],
)
def test_memory(smollm2: Path, monkeypatch: pytest.MonkeyPatch, available: int, context: int, words: str) -> None:
    monkeypatch.setattr("edgellm.machine.memory", lambda: Memory(total=1 << 40, available=available, limit=None))
    assert json.loads(run(str(smollm2), "--json"))["context_default"] == context
    assert words in run(str(smollm2))
    if 512 < context < 8192:
        info = edgellm.inspect(smollm2)
        assert edgellm.memory_needed(info, context) <= available < edgellm.memory_needed(info, context + 256)


def test_nothing_is_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    for name, words in (("gemma3:270m", "edgellm pull gemma3:270m"), ("nope", "known"), ("x.gguf", "no such file")):
        error = CliRunner().invoke(show, [name]).exception
        assert isinstance(error, ModelNotFound)
        assert words in str(error)


def test_licence_of_the_store_fills_in(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgellm.hub import ModelStore, StoredFile

    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    store = ModelStore()
    with store.locked("own:1", lambda: None) as staging:
        (staging / "arrived").write_bytes(b"GGUF")
        entry = replace(store.new("own:1"), license="MIT", files=(StoredFile("m.gguf", 4, "0"),))
        store.install(entry, [staging / "arrived"], staging)
    info = replace(edgellm.inspect(smollm2), license=None)
    monkeypatch.setattr(edgellm, "inspect", lambda path: info)
    assert json.loads(run("own", "--json"))["license"] == "MIT"
    assert json.loads(run(str(smollm2), "--json"))["license"] is None
