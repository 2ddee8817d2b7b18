"""The state folder: where it is, and what goes on without one that can be written."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_models import tiny

import edgellm
from edgellm.backends.llamacpp import verdicts
from edgellm.cli.cache import cache
from edgellm.cli.list import list_models
from edgellm.cli.show import show
from edgellm.errors import ResourceError
from edgellm.home import home, make_folder, unkept
from edgellm.hub import ModelStore, StoredFile, resolve
from edgellm.hub.transfer import sha256_of
from edgellm.kv.store import BlockStore, store_path

posix = pytest.mark.skipif(sys.platform == "win32", reason="folders and links of POSIX")
PROMPT = "hello " * 40  # long enough for the disk


def test_naming_it_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "a" / "b"))
    assert home("kv") == tmp_path / "a" / "b" / "kv"
    ModelStore().list()
    resolve(__file__)
    for command in (["path"], ["--help"]):
        CliRunner().invoke(cache, command, catch_exceptions=False)
    assert not (tmp_path / "a").exists()


@posix
def test_what_is_made_is_its_owners_alone(tmp_path: Path) -> None:
    made = make_folder(tmp_path / "a" / "b")
    assert [path.stat().st_mode & 0o777 for path in (made, made.parent)] == [0o700, 0o700]
    assert make_folder(made) == made


def test_blank_is_as_good_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGELLM_HOME")
    usual = home()
    for blank in ("", " "):
        monkeypatch.setenv("EDGELLM_HOME", blank)
        assert home() == usual


def test_a_relative_folder_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGELLM_HOME", f"relative-{tmp_path.name}")
    first = home()
    assert first == tmp_path / f"relative-{tmp_path.name}"
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert home() == first


@posix
def test_a_user_without_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    def unknown(_uid: int) -> None:
        raise KeyError("uid not found")

    for name in ("EDGELLM_HOME", "HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="null"):
        make_folder(home())
    assert list(tmp_path.iterdir()) == []  # no folder that is called "~"


@posix
def test_a_folder_whose_name_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_HOME", os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    file = tiny("llama").write(tmp_path / "m.gguf")
    with edgellm.load(file) as model:
        model.generate(PROMPT, max_tokens=1)
    with edgellm.load(file) as model:
        assert model.generate(PROMPT, max_tokens=1).cache.from_disk


# Without one


def _file(folder: Path) -> str:
    (folder / "file").touch()
    return str(folder / "file")


def _dangling(folder: Path) -> str:
    (folder / "link").symlink_to(folder / "gone")
    return str(folder / "link")


def _loop(folder: Path) -> str:
    (folder / "link").symlink_to(folder / "link")
    return str(folder / "link")


UNUSABLE = {
    "a file": _file,
    "below a file": lambda folder: f"{_file(folder)}/state",
    "a link to nothing": _dangling,
    "a link to itself": _loop,
    "a file system that makes no folders": lambda folder: f"/proc/{folder.name}",
    "another user's that is not known": lambda folder: f"~nobody-of-that-name/{folder.name}",
}


@pytest.fixture(params=UNUSABLE)
def unusable(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if sys.platform == "win32" and request.param in list(UNUSABLE)[2:5]:
        pytest.skip("links and file systems of POSIX")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGELLM_HOME", UNUSABLE[request.param](tmp_path))
    return home()


def test_models_run_and_one_line_says_what_is_missing(
    unusable: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tiny("llama").write(tmp_path / "m.gguf")
    for _ in range(2):
        with edgellm.load(file) as model:
            first = model.generate(PROMPT, max_tokens=2, seed=1)
            again = model.generate(PROMPT, max_tokens=2, seed=1)
    assert (first.text, first.cache.from_disk) == (again.text, 0)
    assert "is known; " in first.cache.reason
    assert "cannot be written" in first.cache.reason
    assert again.cache.computed < first.cache.computed  # from memory
    verdicts.keep("verdicts.json", "key", "")
    [line] = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert "EDGELLM_HOME" in line
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("file", "link")) == ["m.gguf"]


def test_a_disk_tier_that_is_off_warns_of_nothing(
    unusable: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tiny("llama").write(tmp_path / "m.gguf")
    with edgellm.load(file, trust=True, cache=edgellm.CacheParams(disk=0)) as model:
        model.generate(PROMPT, max_tokens=1)
    assert not caplog.records


def test_commands_that_only_look(unusable: Path, tmp_path: Path) -> None:
    file = tiny("llama").write(tmp_path / "m.gguf")
    assert "No models here yet." in CliRunner().invoke(list_models, catch_exceptions=False).output
    assert "llama" in CliRunner().invoke(show, [str(file)], catch_exceptions=False).output
    assert CliRunner().invoke(cache, ["path"], catch_exceptions=False).output == f"{home('kv')}\n"
    told = json.loads(CliRunner().invoke(cache, ["ls", "--json"], catch_exceptions=False).stdout)
    assert "cannot be written" in told["problem"]
    assert told["conversations"] == []


def test_what_must_write_says_so(unusable: Path) -> None:
    with pytest.raises(ResourceError, match="EDGELLM_HOME"), ModelStore().locked("name", lambda: None):
        pass
    store = BlockStore(store_path())
    try:
        with pytest.raises(ResourceError, match="EDGELLM_HOME"):
            store.clear()
    finally:
        store.close()


def test_a_store_that_cannot_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "models")

    store = ModelStore(tmp_path)
    monkeypatch.setattr(Path, "is_dir", refuse)
    for look in (store.list, lambda: store.find("x"), lambda: store.remove("x"), lambda: store.staged("x")):
        with pytest.raises(ResourceError, match="cannot read"):
            look()


def test_a_conversation_goes_on_without_a_history(unusable: Path, caplog: pytest.LogCaptureFixture) -> None:
    from edgellm.cli.conversation import _history

    history = _history()
    history.append_string("a question")
    assert history.get_strings() == ["a question"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_each_folder_is_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "a", "b"):
        monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / name))
        unkept(f"why {name}")
    assert [record.args for record in caplog.records] == [("why a",), ("why b",)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs")
def test_a_disk_that_has_become_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is there is used: models by name, and prompts."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount")
    monkeypatch.setenv("EDGELLM_HOME", str(mount))
    try:
        store = ModelStore()
        with store.locked("one", lambda: None) as staging:
            file = tiny("llama").write(staging / "m.gguf")
            stored = StoredFile("m.gguf", file.stat().st_size, sha256_of(file))
            entry = replace(store.new("one"), type="F32", files=(stored,))
            store.install(entry, [file], staging)
        with edgellm.load("one") as model:
            model.generate(PROMPT, max_tokens=1)
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        with edgellm.load("one") as model:
            assert model.generate(PROMPT, max_tokens=1).cache.from_disk
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
        with pytest.raises(ResourceError, match="Read-only"):
            ModelStore().remove("one")
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)
