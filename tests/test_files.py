"""What is read are regular files: a pipe nobody writes to, or a device without an end, holds nothing up."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny

import edgellm
from edgellm.converters import ConvertParams, convert
from edgellm.errors import EdgeLLMError, InvalidModelFile, InvalidParameter
from edgellm.files import new_file, read_file, regular
from edgellm.home import home, make_folder

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no pipes with names")


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe.gguf")
    return tmp_path / "pipe.gguf"


def within(action: Callable[[], Any]) -> Any:
    """What `action` gives or raises; a failure where it would wait for ever."""
    ends: list[Any] = []

    def run() -> None:
        try:
            ends.append(action())
        except BaseException as error:
            ends.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert ends, "it waits"
    if isinstance(ends[0], BaseException):
        raise ends[0]
    return ends[0]


def test_a_regular_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_000)
    assert read_file(path) == read_file(path, 3_000_000) == path.read_bytes()
    with pytest.raises(OSError, match="more than"):
        read_file(path, 2_999_999)


def test_a_new_file_leaves_the_umask_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the process's: what other threads make meanwhile would have its permissions from it."""
    names = ("file", "own", "\u732b" * 80)  # the last one of 240 bytes, of which 255 are allowed
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", None)
            for name in names:
                with new_file(tmp_path / name, 0o604 if name == "own" else None) as file:
                    file.write(b"x")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in names] == [0o640, 0o604, 0o640]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_pipe_is_not_replaced_by_a_file(pipe: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not a regular file"), new_file(pipe):
        pass
    source = tiny().write(tmp_path / "source.gguf")
    with pytest.raises(InvalidParameter, match="a device or a pipe"):
        convert(source, pipe, ConvertParams(force=True, verify=False))
    assert pipe.is_fifo()


def test_what_is_no_file_is_refused(pipe: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/dev/zero")
    for path in (pipe, link, Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            within(lambda path=path: read_file(path))
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "missing")
    with pytest.raises(OSError, match=r"No such device|not a regular"):
        within(lambda: regular(str(pipe), os.O_WRONLY))
    with pytest.raises(OSError, match="not a regular file"):
        within(lambda: read_file(Path("/dev/zero"), pipe=True))


def test_a_pipe_is_read_where_it_is_meant(pipe: Path) -> None:
    writer = threading.Thread(target=lambda: pipe.write_bytes(b"text"))
    writer.start()
    assert within(lambda: read_file(pipe, pipe=True)) == b"text"
    writer.join()


def test_models_and_conversations_are_files(pipe: Path) -> None:
    with pytest.raises(InvalidModelFile, match="not a regular file"):
        within(lambda: edgellm.load(pipe))
    with edgellm.load("echo", backend="echo") as model:
        for path in (pipe, Path("/dev/zero")):
            with pytest.raises(InvalidModelFile, match="not a regular file"):
                within(lambda path=path: model.load_chat(path))


def test_files_of_a_checkpoint_are_files(tmp_path: Path) -> None:
    from edgellm import arguments
    from edgellm.converters.quant.imatrix import ImportanceMatrix
    from edgellm.converters.tokens.huggingface import _templates, _there
    from edgellm.converters.tokens.sentencepiece import read_sentencepiece
    from edgellm.formats.strict_json import read_object
    from edgellm.tokenizers.text import open_tokenizer

    folder = tmp_path / "additional_chat_templates"
    folder.mkdir()
    os.mkfifo(folder / "x.jinja")
    reads: list[Callable[[], object]] = [
        lambda: ImportanceMatrix.read(folder / "x.jinja"),
        lambda: read_object(folder / "x.jinja", 100),
        lambda: read_sentencepiece(folder / "x.jinja"),
        lambda: _templates(tmp_path, {}),
        lambda: _there(folder / "x.jinja"),
        lambda: open_tokenizer(folder / "x.jinja", {}),
        lambda: arguments.utf8_file("the text", Path("/dev/zero")),
    ]
    for read in reads:
        with pytest.raises(EdgeLLMError, match="not a regular file"):
            within(read)


def test_state_that_is_no_file_is_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgellm.backends.llamacpp import amx, proof, verdicts
    from edgellm.cli import chats, conversation
    from edgellm.config import read_config
    from edgellm.hub import store

    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "state"))
    names = [proof.VERDICTS, amx.VERDICTS, "history", "config.toml", "7.about", store.MANIFEST]
    for name in names:
        os.mkfifo(make_folder(home()) / name)
    assert within(lambda: verdicts.known(proof.VERDICTS)) == {}
    assert within(lambda: verdicts.known(amx.VERDICTS)) == {}
    assert within(lambda: chats._read(home("7.about"))) is None
    assert type(within(conversation._history)).__name__ == "InMemoryHistory"
    assert "not a regular file" in within(lambda: store._read(home())).problem
    with pytest.raises(InvalidParameter, match=r"config\.toml: cannot be read: not a regular file"):
        within(read_config)
