"""Standard streams that are narrow, closed or full: the answer as far as it can be shown, one line, no traceback."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import pytest

EDGELLM = f"{shlex.quote(sys.executable)} -m edgellm"
ANSWER = f"{EDGELLM} run x 'é 😀 ok' --backend echo --temperature 0"
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX redirections")
COMMANDS = [
    ANSWER,
    f"{ANSWER} --json",
    *(f"{EDGELLM} {c}" for c in ("list", "cache ls", "config", "--help", "help run")),
]


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["sh", "-c", command],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("cp1252", b"\xe9 ? ok\n"),
        ("ascii", b"? ? ok\n"),
        ("ascii:strict", b"? ? ok\n"),
        ("utf-8", "é 😀 ok\n".encode()),
    ],
)
@POSIX
def test_what_cannot_be_shown_is_replaced(encoding: str, shown: bytes) -> None:
    done = shell(ANSWER, PYTHONIOENCODING=encoding)
    assert (done.stdout, done.stderr, done.returncode) == (shown, b"", 0)


@POSIX
def test_json_loses_nothing() -> None:
    done = shell(f"{ANSWER} --json", PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout)["text"] == "é 😀 ok"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("to", [">&-", ">/dev/full"])
@POSIX
def test_a_lost_stdout_is_one_line(command: str, to: str) -> None:
    if to == ">/dev/full" and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    done = shell(f"{command} {to}")
    assert done.returncode == 1
    assert done.stderr.startswith(b"edgellm: standard output cannot be written: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("to", ["2>&-", "2>/dev/full", "2>&- <&-"])
@POSIX
def test_a_lost_stderr_and_stdin_cost_nothing(to: str) -> None:
    done = shell(f"{ANSWER} --stats {to}")
    assert (done.stdout.decode(), done.returncode) == ("é 😀 ok\n", 0)


@POSIX
def test_closed_numbers_are_not_given_to_files() -> None:
    """A file that is opened later must not become file 1, where messages would go."""
    program = (
        "import os; from edgellm.cli import streams\n"
        "with streams.safe():\n    opened = os.open(os.devnull, os.O_RDWR)\n"
        "os._exit(10 * (opened > 2))"
    )
    assert shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} >&- 2>&- <&-").returncode == 10


def test_a_failure_nobody_expected_is_one_line_too() -> None:
    program = (
        "import sys; from edgellm.cli import cli, main; import click\n"
        "cli.get_command = lambda ctx, name: click.Command('boom', callback=lambda: 1 / 0)\n"
        "main(['boom'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "edgellm: this should not have happened: ZeroDivisionError: division by zero (--verbose shows where)\n"
    )
