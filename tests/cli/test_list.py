from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgellm import hub
from edgellm.cli.list import list_models
from edgellm.cli.output import print_facts, print_table
from edgellm.hub import ModelStore, StoredFile, StoredModel


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    return ModelStore()


def put(store: ModelStore, name: str) -> StoredModel:
    with store.locked(name, lambda: None) as staging:
        path = staging / "arrived"
        path.write_bytes(b"GGUF")
        file = StoredFile("model.gguf", 4, hashlib.sha256(b"GGUF").hexdigest())
        entry = replace(store.new(name), type="Q4_1", source="PyPI some-package 1.0", files=(file,))
        return store.install(entry, [path], staging)


def run(*arguments: str, stderr: bool = False) -> str:
    result = CliRunner().invoke(list_models, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert bool(result.stderr) == stderr
    return result.stderr if stderr else result.stdout


def test_empty(store: ModelStore) -> None:
    out = run()
    assert out.startswith("No models here yet.")
    assert "smollm2:135m" in out
    assert "gemma3:270m" in out
    told = json.loads(run("--json"))
    assert told["models"] == []
    assert {model["name"] for model in told["available"]} >= {"smollm2:135m", "gemma3:270m"}


def test_what_is_here_and_what_is_not(store: ModelStore) -> None:
    entry = put(store, "smollm2:135m")
    with store.locked("gemma3:270m", lambda: None) as staging:
        (staging / "x.partial").write_bytes(bytes(64_000_000))
    here, _, rest = run().partition("\n\n")
    assert here.splitlines()[0].split() == ["NAME", "SIZE", "TYPE", "PULLED", "SOURCE"]
    assert here.splitlines()[1].split(maxsplit=5)[:4] == ["smollm2:135m", "4", "bytes", "Q4_1"]
    assert here.endswith("PyPI some-package 1.0")
    assert "smollm2:135m" not in rest
    assert "64.0 MB of an unfinished pull are here" in rest
    (model,) = json.loads(run("--json"))["models"]
    assert (model["name"], model["path"], model["problem"]) == ("smollm2:135m", str(entry.path), None)
    assert model["pulled_at"] == entry.pulled_at


def test_aliases_and_presets_are_names_too(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[aliases]\nsmall = "smollm2:135m"\n[presets.terse]\nmodel = "small"\n')
    _, names, _ = run().split("\n\n")
    assert [re.split("  +", line) for line in names.splitlines()[1:]] == [
        ["small", "alias of smollm2:135m"],
        ["terse", "preset of small"],
    ]
    assert json.loads(run("--json"))["names"] == {"small": "alias of smollm2:135m", "terse": "preset of small"}


def test_settings_that_are_wrong_hide_no_model(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("aliases = 5")
    put(store, "smollm2:135m")
    result = CliRunner().invoke(list_models, ["--json"], catch_exceptions=False)
    assert [model["name"] for model in json.loads(result.stdout)["models"]] == ["smollm2:135m"]
    assert "left out: " in result.stderr
    assert "aliases is not a table" in result.stderr


def test_what_can_be_pulled_is_in_order_of_family_and_size(store: ModelStore) -> None:
    known = json.loads(run("--json"))["available"]
    order = [(model["name"].partition(":")[0], model["size"]) for model in known]
    assert order == sorted(order)
    rows = {line.split()[0]: line for line in run().splitlines()[3:]}
    assert list(rows)[1:] == [model["name"] for model in known]
    for model in known:  # of a file that nobody here has had the size is only about right
        assert ("~" in rows[model["name"]]) == (model["sha256"] is None)
        assert model["license"] in rows[model["name"]]


def test_damage_is_shown(store: ModelStore) -> None:
    put(store, "smollm2:135m").path.unlink()
    assert "smollm2:135m is damaged: model.gguf is missing; pull it again" in run(stderr=True)
    (model,) = json.loads(run("--json"))["models"]
    assert model["problem"] == "model.gguf is missing"
    assert model["path"] is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [80, 200])
def test_terminal_tables_fit(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "dumb")
    print_table(("NAME", "SIZE", "TEXT"), [("a:1", "98.4 MB", "word " * 60), ("b", "1", "[red]not markup")], right=(1,))
    print_facts([("path", "x" * 300), ("types", "one\ntwo")])
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "[red]not markup" in screen.getvalue()
    assert "one" in lines[-2]
    assert lines[-1].strip() == "two"
    assert screen.getvalue().count("word") == 60
    assert screen.getvalue().count("x") == 300


def test_piped_tables_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_table(("NAME", "SIZE", "TEXT"), [("a:1", "98.4 MB", "word " * 60)], right=(1,))
    print_facts([("path", "x" * 300), ("types", "one\ntwo")])
    lines = screen.getvalue().splitlines()
    assert lines[0] == "NAME     SIZE  TEXT"
    assert lines[1] == "a:1   98.4 MB  " + ("word " * 60).rstrip()
    assert lines[2:] == ["path   " + "x" * 300, "types  one", "       two"]


@pytest.mark.parametrize(
    ("width", "here", "known"),
    [
        (40, ["NAME", "SIZE", "TYPE"], ["NAME", "SIZE"]),
        (60, ["NAME", "SIZE", "TYPE", "PULLED"], ["NAME", "SIZE", "WHAT", "IT", "IS"]),
        (80, ["NAME", "SIZE", "TYPE", "PULLED", "SOURCE"], ["NAME", "SIZE", "WHAT", "IT", "IS"]),
        (90, ["NAME", "SIZE", "TYPE", "PULLED", "SOURCE"], ["NAME", "SIZE", "WHAT", "IT", "IS", "LICENCE"]),
    ],
)
def test_a_narrow_screen_shows_the_first_columns(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, width: int, here: list[str], known: list[str]
) -> None:
    put(store, "smollm2:135m")
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    list_models.callback(as_json=False)  # type: ignore[misc]
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    assert lines[0].split() == here
    assert lines[1].split()[:4] == ["smollm2:135m", "4", "bytes", "Q4_1"]
    rest = lines[lines.index("") + 1 :]
    start = next(i for i, line in enumerate(rest) if line.startswith("NAME"))
    assert rest[start].split() == known
    if width in (40, 80):  # one line a model
        assert len(rest) - start - 1 == len(hub.catalog()) - 1


def test_a_cropped_table_keeps_its_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    print_table(("NAME", "N", "TEXT"), [("some model", "7", "word " * 30)], right=(1,), crop=True)
    head, row = screen.getvalue().splitlines()
    assert head.split() == ["NAME", "N", "TEXT"]
    assert row.startswith("some model  7  word word")
    assert row.rstrip().endswith("…")


@pytest.mark.parametrize(("setting", "plain"), [("", False), ("1", True)])
def test_no_color_means_no_escapes_at_all(setting: str, plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", setting)
    print_table(("NAME", "TEXT"), [("a", "b")])
    print_facts([("label", "value")])
    assert ("\x1b" not in screen.getvalue()) == plain
