"""Once a model is here, nothing touches the network: a child process ends at once if any socket is made or asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

CHILD = """
import hashlib, os, sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from tiny_models import tiny
from edgellm.hub import ModelStore, StoredFile, catalog

store = ModelStore()
for model in catalog().values():
    with store.locked(model.name, lambda: None) as staging:
        path = tiny("llama").write(staging / "m")
        data = path.read_bytes()
        file = StoredFile("m.gguf", len(data), hashlib.sha256(data).hexdigest())
        store.install(replace(store.new(model.name), type="F32", source="test", files=(file,)), [path], staging)

def no_sockets(event, arguments):
    if event.startswith("socket."):
        sys.stderr.write(f"network use: {event} {arguments}")
        sys.stderr.flush()
        os._exit(97)

sys.addaudithook(no_sockets)
"""

COMMANDS = """
from edgellm.cli import main
from edgellm.hub import resolve

for name in catalog():
    assert resolve(name).is_file()
    assert resolve(name, offline=True).is_file()
for command in (
    ["list"], ["list", "--json"], ["show", "smollm3"], ["show", "gemma3:270m", "--json"], ["rm", "gemma3:270m"]
):
    try:
        main(command)
    except SystemExit as end:
        assert not end.code, (command, end.code)
print("done", len(catalog()) - len(store.list()))
"""


def child(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHILD + code, str(TESTS)],
        env={**os.environ, "EDGELLM_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_socket_is_opened(tmp_path: Path) -> None:
    done = child(COMMANDS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done 1"


@pytest.mark.parametrize(
    "use", ["import socket; socket.socket()", "from edgellm.hub import pull; pull('hf:org/repo', progress=print)"]
)
def test_the_guard_sees_network_use(tmp_path: Path, use: str) -> None:
    assert child(use, tmp_path).returncode == 97


def test_offline_errors_open_none_either(tmp_path: Path) -> None:
    code = """
from edgellm.errors import Offline
from edgellm.hub import pull, resolve
store.remove("gemma3:270m")
store.remove("smollm3:3b")
for call in (
    lambda: resolve("gemma3:270m", offline=True),
    lambda: resolve("smollm3", offline=True),
    lambda: pull("hf:org/repo", offline=True),
):
    try:
        call()
    except Offline as error:
        print(error)
"""
    done = child(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "edgellm pull gemma3:270m" in done.stdout
    assert "edgellm pull smollm3:3b" in done.stdout
    assert len(done.stdout.splitlines()) == 3
