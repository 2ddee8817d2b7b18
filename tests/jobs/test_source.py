"""Source: lines by their places, whatever the file is like."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from edgellm.errors import CannotWrite, InvalidParameter
from edgellm.jobs import line as lines
from edgellm.jobs import source
from edgellm.jobs.order import Order
from edgellm.jobs.source import InputChanged, Source, opened


def none() -> BinaryIO:
    raise AssertionError("nothing is piped")


def chat(custom_id: str) -> bytes:
    return json.dumps({"custom_id": custom_id, "url": "/v1/embeddings", "body": {"input": "x"}}).encode()


def test_lines_come_sorted_and_blank_ones_count_as_none(tmp_path: Path) -> None:
    raw = b'{"prompt": "b"}\n\n{"prompt": "a"}\r\n   \nnonsense\n' + chat("x") + b'\n{"prompt": "aa"}'
    path = tmp_path / "in"
    path.write_bytes(raw)
    told: list[tuple[int, int]] = []
    with opened(str(path), none) as file:
        found = Source(file, "in", progress=lambda *each: told.append(each))
        assert (found.total, found.todo, found.requests) == (5, 5, 1)
        assert found.digest == hashlib.sha256(raw).hexdigest()
        read = [(each.number, each.text.strip()) for each in found.lines()]
        assert read == [
            (5, b"nonsense"),
            (3, b'{"prompt": "a"}'),
            (7, b'{"prompt": "aa"}'),
            (1, b'{"prompt": "b"}'),
            (6, chat("x")),
        ]
        assert next(found.lines()).number == 5  # they can be read again
        assert told[-1] == (len(raw), len(raw))
        some = Source(file, "in", limit=3, done={3})
        assert (some.total, some.todo, some.digest) == (3, 2, found.digest)
        assert [each.number for each in some.lines()] == [5, 1]
        path.write_bytes(raw + b"\n")
        with pytest.raises(InputChanged, match="was changed"):
            list(found.lines())


def test_nothing_is_a_job_too(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"")
    with opened(str(tmp_path / "in"), none) as file:
        assert Source(file, "in").total == 0


def test_a_line_that_is_too_long_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LARGEST", 100)
    monkeypatch.setattr(lines, "LARGEST", 100)
    path = tmp_path / "in"
    path.write_bytes(b'{"prompt": "' + b"a" * 5000 + b'"}\n{"prompt": "b"}\n' + b"c" * 150)
    with opened(str(path), none) as file:
        assert [(each.number, len(each.text)) for each in Source(file, "in").lines()] == [(1, 101), (3, 101), (2, 16)]


def test_an_id_that_comes_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in"

    def read(*raw: bytes, limit: int | None = None) -> int:
        path.write_bytes(b"\n".join(raw))
        with opened(str(path), none) as file:
            return Source(file, "in", limit=limit).total

    twice = [chat(each) for each in "abcadeab"]
    with pytest.raises(InvalidParameter, match=r"in: .*'a' on lines 1, 4, 7.*'b' on lines 2, 8") as refused:
        read(*twice)
    assert "'c'" not in str(refused.value)
    assert read(*twice, limit=3) == 3
    with pytest.raises(InvalidParameter, match="and others"):
        read(*(chat(f"{each}") for each in [*range(9), *range(9)]))
    bad = {"custom_id": "3", "url": "/v1/nothing", "body": {}}
    with pytest.raises(InvalidParameter, match="'3' on lines 4, 5"):
        read(*(chat(f"{each}") for each in range(4)), json.dumps(bad).encode())

    class Alike:
        def digest(self) -> bytes:
            return bytes(8)

    monkeypatch.setattr(source.hashlib, "blake2b", lambda *_, **__: Alike())  # hashes that agree by chance
    assert read(*(chat(f"{each}") for each in range(9))) == 9
    with pytest.raises(InvalidParameter, match="'0' on lines 1, 3"):
        read(*(chat(each) for each in "010"))


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for name in (str(tmp_path), str(tmp_path / "nothing"), "\0"):
        with pytest.raises(InvalidParameter, match="cannot be read"):
            opened(name, none)


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_a_pipe_is_copied(tmp_path: Path) -> None:
    with opened("-", lambda: io.BytesIO(b"1\n2\n")) as file:
        assert Source(file, "-").total == 2
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[b"1\n2\n3"])
    writer.start()
    with opened(str(pipe), none) as file:
        assert Source(file, "-").total == 3
    writer.join()


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(source.tempfile, "TemporaryFile", Full)
    with pytest.raises(CannotWrite, match=r"copied in .*No space left"):
        opened("-", lambda: io.BytesIO(b"1\n"))
    monkeypatch.setattr(source, "Order", lambda: Order(1))
    (tmp_path / "in").write_bytes(b"1\n2\n")
    with (
        opened(str(tmp_path / "in"), none) as file,
        pytest.raises(CannotWrite, match=r"sorted in .*No space left.*TMPDIR"),
    ):
        Source(file, "in")
