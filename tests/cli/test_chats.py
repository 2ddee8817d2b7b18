"""Conversations are kept where the settings say so, and go on with --continue and --resume."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.cli.chats import all_kept


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text("keep = true\n")
    return tmp_path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgellm", *arguments]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=False, timeout=60
    )


def say(*arguments: str) -> str:
    done = run("run", *arguments, "--backend", "echo", "--temperature", "0")
    assert done.returncode == 0, done.stderr
    return done.stdout


def messages(home: Path, number: int) -> list[str]:
    saved = json.loads((home / "chats" / f"{number}.json").read_text())
    return [message["content"] for message in saved["messages"] if message["role"] == "user"]


def test_a_conversation_goes_on(home: Path) -> None:
    say("x", "the first")
    say("y", "another one")
    say("--continue", "and on")
    say("--resume", "1", "back to it")
    assert messages(home, 1) == ["the first", "back to it"]
    assert messages(home, 2) == ["another one", "and on"]
    say("--continue", "More")  # no model has that name
    assert messages(home, 1) == ["the first", "back to it", "More"]
    say("--continue", "smollm2:135m", "and another model")
    assert messages(home, 1)[-1] == "and another model"
    listed = run("chats").stdout.splitlines()
    assert listed[1].split()[0] == "1"  # used last
    assert "the first" in listed[1]
    assert [(kept.number, kept.model, kept.turns) for kept in all_kept()] == [(1, "smollm2:135m", 4), (2, "y", 2)]
    assert (home / "chats" / "1.json").stat().st_mode & 0o077 == 0


def test_nothing_is_kept_unasked(home: Path) -> None:
    say("x", "private words", "--private")
    (home / "config.toml").unlink()
    say("x", "some words")
    assert not (home / "chats").exists()
    assert not (home / "history").exists()
    told = run("run", "--continue", "what now", "--backend", "echo")
    assert told.returncode == 2
    assert "keep = true" in told.stderr
    assert "keep = true" in run("chats").stdout


def test_they_can_be_removed(home: Path) -> None:
    for words in ("one", "two", "three"):
        say("x", words)
    assert "removed 2: two" in run("chats", "rm", "2").stdout
    assert {kept.words for kept in all_kept()} == {"one", "three"}
    assert run("chats", "rm", "2").returncode == 2
    run("chats", "rm", "--all")
    assert list((home / "chats").iterdir()) == []


def test_a_damaged_one_is_no_hindrance(home: Path) -> None:
    say("x", "whole")
    (home / "chats" / "9.about").write_text("{")
    (home / "chats" / "1.json").write_text("{")
    assert [kept.words for kept in all_kept()] == ["whole"]
    told = run("run", "--continue", "go on", "--backend", "echo")
    assert told.returncode == 1
    assert "not a saved conversation" in told.stderr
