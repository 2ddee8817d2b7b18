"""The shells complete commands, options and models once `edgellm completion --install` has run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shells of POSIX systems")


@pytest.fixture
def account(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody with an empty home; `edgellm` is found on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "edgellm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m edgellm "$@"\n')
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_") and name != "ZDOTDIR"}
    return {
        **kept,
        "HOME": str(tmp_path),
        "EDGELLM_HOME": str(tmp_path / "state"),
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SHELL": "/bin/bash",
    }


def run(account: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, env=account, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_command_installs_it_and_nothing_twice(account: dict[str, str]) -> None:
    start = Path(account["HOME"]) / ".bashrc"
    start.write_text("alias ll='ls -l'\n")
    run(account, "edgellm", "completion", "--install")
    once = start.read_text()
    run(account, "edgellm", "completion", "--install")
    assert start.read_text() == once
    assert once.startswith("alias ll='ls -l'\n")
    assert len(once.splitlines()) == 2


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_completes(account: dict[str, str]) -> None:
    run(account, "edgellm", "completion", "bash", "--install")
    script = """
        . ~/.bashrc
        complete -p edgellm
        for line in "edgellm c" "edgellm run --temp" "edgellm run smol"; do
            COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=(); _edgellm_completion edgellm
            echo "${COMPREPLY[@]}"
        done
    """
    lines = run(account, "bash", "-c", script).splitlines()
    assert "edgellm" in lines[0]
    assert set(lines[1].split()) == {"cache", "chats", "convert", "config", "completion"}
    assert lines[2] == "--temperature"
    assert "smollm2:135m" in lines[3].split()


@pytest.mark.skipif(not shutil.which("fish"), reason="no fish")
def test_fish_completes(account: dict[str, str]) -> None:
    run(account, "edgellm", "completion", "fish", "--install")

    def offered(line: str) -> list[str]:
        said = run(account, "fish", "-c", f"complete --do-complete '{line}'")
        return [each.split("\t")[0] for each in said.splitlines()]

    assert offered("edgellm c") == ["cache", "chats", "completion", "config", "convert"]
    assert offered("edgellm run --temp") == ["--temperature"]
    assert "smollm2:135m" in offered("edgellm run smol")


@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh")
def test_zsh_completes(account: dict[str, str]) -> None:
    pexpect = pytest.importorskip("pexpect")
    start = Path(account["HOME"]) / ".zshrc"
    start.write_text("PROMPT='READY '\n")
    run(account, "edgellm", "completion", "zsh", "--install")
    assert "completion.zsh" in start.read_text()
    typed = {"edgellm doc": "edgellm doctor", "edgellm run --tempe": "edgellm run --temperature"}
    shell = pexpect.spawn("zsh", ["-i"], env={**account, "TERM": "dumb"}, encoding="utf-8", timeout=60)
    try:
        shell.expect_exact("READY ")
        for line, whole in typed.items():
            shell.send(line + "\t")
            shell.expect_exact(whole)
            shell.sendcontrol("u")
        shell.sendline("exit")
        shell.expect(pexpect.EOF)
    finally:
        shell.close(force=True)


def test_other_shells(account: dict[str, str]) -> None:
    before = sorted(Path(account["HOME"]).rglob("*"))
    assert "compdef" in run(account, "edgellm", "completion", "zsh")
    assert sorted(Path(account["HOME"]).rglob("*")) == before  # nothing is written unless asked
    run(account, "edgellm", "completion", "zsh", "--install")
    assert "completion.zsh" in (Path(account["HOME"]) / ".zshrc").read_text()
    run(account, "edgellm", "completion", "fish", "--install")
    assert "complete" in (Path(account["HOME"]) / ".config/fish/completions/edgellm.fish").read_text()
