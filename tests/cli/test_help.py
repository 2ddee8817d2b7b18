"""`edgellm help`: the page of each command, and all of them for `man`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edgellm.cli import COMMANDS, cli
from edgellm.cli.manual import pages, write_manual


def told(*words: str) -> str:
    return CliRunner().invoke(cli, [*words], prog_name="edgellm", catch_exceptions=False).output


def every_command() -> list[list[str]]:
    root = click.Context(cli, info_name="edgellm")
    return [page.name.split()[1:] for page in pages(root)]


def test_the_page_of_every_command() -> None:
    commands = every_command()
    assert [each[0] for each in commands if len(each) == 1] == list(COMMANDS)
    assert ["cache", "ls"] in commands
    for command in commands:
        assert told("help", *command) == told(*command, "--help")
    assert "'cache lss' is no command" in told("help", "cache", "lss")


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("share") / "man" / "man1"
    assert f"{len(every_command())} pages" in told("help", "--man", str(folder))
    return folder


def test_a_manual_page_for_every_command(manual: Path) -> None:
    found = {each.name for each in manual.iterdir()}
    assert found == {"-".join(["edgellm", *command]) + ".1" for command in every_command()}
    page = (manual / "edgellm-run.1").read_text(encoding="utf-8")
    assert page.startswith('.TH "EDGELLM\\-RUN" "1"')
    assert "\n\\fB\\-\\-max\\-tokens N\\fP\n" in page
    assert not any(line.startswith("'") for each in manual.iterdir() for line in each.read_text("utf-8").splitlines())


def test_written_again_they_are_the_same(manual: Path) -> None:
    before = {each: each.read_bytes() for each in manual.iterdir()}
    told("help", "--man", str(manual))
    assert {each: each.read_bytes() for each in manual.iterdir()} == before


def test_where_they_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "--man" in told("help", "--man", str(tmp_path / "file"))
    assert "leave the command out" in told("help", "--man", str(tmp_path), "run")
    result = CliRunner().invoke(cli, ["help", "--man", str(tmp_path / "file" / "man1")])
    assert "cannot be written" in str(result.exception)


@pytest.mark.skipif(not shutil.which("groff"), reason="no groff")
def test_groff_has_nothing_to_say(manual: Path) -> None:
    for page in sorted(manual.iterdir()):
        command = ["groff", "-man", "-Tutf8", "-ww", "-P-cbou", str(page)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
        assert done.stderr == "", page.name
        shown = " ".join(done.stdout.replace("‐", "-").replace("−", "-").split())
        assert "--help Show this message and exit." in shown
        if page.name == "edgellm-run.1":
            assert "--max-tokens N Longest answer, in tokens;" in shown
            assert r'default "\n" ":" "\"" "*".' in shown


@pytest.mark.skipif(not shutil.which("groff"), reason="no groff")
def test_any_text_is_shown_as_it_is(tmp_path: Path) -> None:
    said = ".TH is no request… 'nor this', a-b \\fB \\n `run -x` ü ° \"q\" 日"
    command = click.Command("odd", help=said, params=[click.Option(["--é"], help="'x.")])
    [path] = write_manual(click.Context(command, info_name="odd"), tmp_path, "1 'x")
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-P-cbou", str(path)], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stderr == ""
    shown = " ".join(done.stdout.replace("‐", "-").replace("−", "-").split())
    assert said.replace("`", "") in shown
    assert "--é TEXT 'x." in shown


@pytest.mark.skipif(not shutil.which("mandoc"), reason="no mandoc")
def test_mandoc_has_nothing_to_say_but_the_date(manual: Path) -> None:
    command = ["mandoc", "-T", "lint", "-W", "warning", *map(str, sorted(manual.iterdir()))]
    said = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    told = [each for each in (said.stdout + said.stderr).splitlines() if "missing date" not in each]
    assert told == []
