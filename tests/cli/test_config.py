"""The settings: default model, aliases and presets, as `edgellm run` uses them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgellm.cli import cli
from edgellm.config import read_config
from edgellm.errors import InvalidParameter


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    return tmp_path / "config.toml"


PRESETS = """
model = "quick"
[aliases]
quick = "x"
[presets.loud]
backend = "echo"
temperature = 0
system = "Shout."
max_tokens = 3
logit_bias = { 5 = -1.5 }
[presets.other]
model = "y"
backend = "echo"
temperature = 0
"""


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgellm", *arguments],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=60,
    )


def test_a_preset_is_run_by_its_name(settings: Path) -> None:
    settings.write_text(PRESETS)
    assert run("run", "loud", "abcdef").stdout == "abc\n"
    assert run("run", "loud", "abcdef", "--max-tokens", "5").stdout == "abcde\n"  # the command line wins
    assert run("run", "z", "abcdef", "--preset", "loud").stdout == "abc\n"
    assert json.loads(run("run", "other", "hi", "--json").stdout)["text"] == "hi"


def test_the_default_model_answers_a_lone_prompt(settings: Path) -> None:
    settings.write_text(PRESETS)
    common = ("--backend", "echo", "--temperature", "0")
    assert run("run", "two words", *common).stdout == "two words\n"
    assert run("run", *common, stdin="from a pipe").stdout == "from a pipe\n"
    settings.unlink()
    lone = run("run", "two words", *common)
    assert lone.returncode == 2
    assert "which MODEL?" in lone.stderr
    assert str(settings) in lone.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = 5", "model is not a text"),
        ("nonsense = true", "'nonsense' is no setting"),
        ("keep = 'yes'", "keep is true or false"),
        ("aliases = 3", "aliases is not a table"),
        ("[aliases]\na = 3", "aliases.a is not the name"),
        ("[presets]\na = 3", "presets.a is not a table"),
        ("[presets.a]\nmodel = 3", "presets.a.model"),
        ("not toml", "config.toml"),
    ],
)
def test_mistakes_name_their_place(settings: Path, text: str, words: str) -> None:
    settings.write_text(text)
    with pytest.raises(InvalidParameter, match=words):
        read_config()
    done = run("run", "x", "hi", "--backend", "echo")
    assert done.returncode == 2
    assert done.stderr.startswith(f"edgellm: {settings}: ")


@pytest.mark.parametrize(
    ("preset", "words"),
    [("temprature = 1", "'temprature'"), ("temperature = 'hot'", "temperature='hot'"), ("cache = false", "'cache'")],
)
def test_mistakes_in_a_preset(settings: Path, preset: str, words: str) -> None:
    settings.write_text(f"[presets.p]\n{preset}\n")
    done = run("run", "x", "hi", "--preset", "p", "--backend", "echo")
    assert done.returncode == 2
    assert words in done.stderr
    for command in ("config", "doctor"):
        told = run(command)
        assert words in told.stdout + told.stderr
    assert "no preset 'q'" in run("run", "x", "hi", "--preset", "q", "--backend", "echo").stderr


def test_circles_of_aliases(settings: Path) -> None:
    settings.write_text('[aliases]\na = "b"\nb = "a"\n')
    for command in ("config", "doctor"):
        told = run(command)
        assert "go in a circle" in told.stdout + told.stderr


def test_the_command_shows_them(settings: Path) -> None:
    shown = CliRunner().invoke(cli, ["config"], catch_exceptions=False).stdout
    assert f"{settings} (not there yet" in shown
    settings.write_text(PRESETS)
    shown = CliRunner().invoke(cli, ["config"], catch_exceptions=False).stdout
    assert "quick = x" in shown
    assert "loud: backend 'echo', temperature 0, system 'Shout.'" in shown
    told = json.loads(CliRunner().invoke(cli, ["config", "--json"], catch_exceptions=False).stdout)
    assert told["presets"]["other"]["model"] == "y"


def test_the_editor_begins_with_what_can_be_set(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", f'{sys.executable} -c "import sys; open(sys.argv[-1], chr(97)).write(chr(10))"')
    result = CliRunner().invoke(cli, ["config", "--edit"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert settings.read_text().startswith("# Settings of edgellm")
    assert read_config().model is None
