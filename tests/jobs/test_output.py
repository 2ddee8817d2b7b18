"""Output: appended whole, gone on with, locked, refused to whom it does not belong."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edgellm.errors import Busy, CannotWrite, InvalidParameter
from edgellm.jobs import output as outputs
from edgellm.jobs.job import content, run
from edgellm.jobs.line import Answer
from edgellm.jobs.output import Numbers, Output
from edgellm.jobs.source import Source, opened

JOB = {"input": "digest", "model": "print", "options": {"temperature": 0.0}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def answer(number: int) -> Answer:
    return Answer(number, {"line": number, "text": "é" * number})


def written(path: Path, *numbers: int, job: Any = JOB, restart: bool = False) -> None:
    with closing(Output(path, restart=restart)) as output:
        output.belong(job)
        for number in numbers:
            output.write(answer(number))


def written_up_to(output: Output, most: int) -> None:
    for number in range(1, most):
        output.write(answer(number))


def numbers_in(path: Path) -> list[int]:
    return [json.loads(line)["line"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_are_appended_and_known_again(path: Path) -> None:
    written(path, 3, 1)
    with closing(Output(path)) as output:
        assert 3 in output.done
        assert 2 not in output.done
        assert len(output.done) == 2
        output.belong(JOB)
        output.write(answer(2))
    assert numbers_in(path) == [3, 1, 2]
    assert {each.name for each in path.parent.iterdir()} == {"out.jsonl", "out.jsonl.job"}


def test_whatever_is_cut_off_is_done_again(path: Path) -> None:
    written(path, 1, 2, 3)
    raw = path.read_bytes()
    second = raw.index(b"\n") + 1
    for size in range(len(raw)):
        path.write_bytes(raw[:size])
        with closing(Output(path)) as output:
            whole = raw[:size].count(b"\n")
            assert [each in output.done for each in (1, 2, 3)] == [whole > 0, whole > 1, whole > 2]
            output.belong(JOB)
            for number in range(whole + 1, 4):
                output.write(answer(number))
        assert path.read_bytes() == raw
    path.write_bytes(raw[:second] + bytes(50))  # what a file system may leave when the power fails
    written(path, 2, 3)
    assert path.read_bytes() == raw


def test_a_record_that_was_cut_off_is_made_anew(path: Path) -> None:
    path.with_name("out.jsonl.job").write_bytes(b'{"job": 1, "inp')
    written(path, 1)
    assert numbers_in(path) == [1]
    with closing(Output(path)) as output:
        output.belong(JOB)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"input": "other"}, "answers to another input; choose another -o; --restart"),
        ({"model": "other"}, "answers to another model"),
        ({"options": {"temperature": 1.0}}, r"other options \(temperature was 0.0, is 1.0\)"),
        ({"options": {}, "model": "m"}, r"another model and other options \(temperature was 0.0, is unset\)"),
    ],
)
def test_another_jobs_answers_are_refused(path: Path, change: dict[str, Any], said: str) -> None:
    written(path, 1)
    with pytest.raises(InvalidParameter, match=said):
        written(path, 2, job={**JOB, **change})
    assert numbers_in(path) == [1]
    written(path, 2, job={**JOB, **change}, restart=True)
    assert numbers_in(path) == [2]


def test_files_that_no_job_wrote_are_refused(path: Path) -> None:
    path.write_text("precious\n", encoding="utf-8")
    with pytest.raises(InvalidParameter, match="does not say which job wrote it"):
        Output(path)
    assert path.read_text(encoding="utf-8") == "precious\n"
    assert not path.with_name("out.jsonl.job").exists()
    path.unlink()
    written(path, 1)
    with path.open("a", encoding="utf-8") as file:
        file.write("mine\n")
    with pytest.raises(InvalidParameter, match="line 2 was written by no job"):
        Output(path)
    with pytest.raises(InvalidParameter, match="must be a file"):
        Output(path.parent)
    with pytest.raises(CannotWrite, match="No such file"):
        Output(path.parent / "nothing" / "out")


def test_one_process_writes_at_a_time(path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from edgellm.jobs.output import Output\n"
        f"output = Output(pathlib.Path({str(path)!r}))\n"
        f"output.belong({JOB!r})\n"
        "print('ready', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready" + os.linesep.encode()
        for restart in (False, True):
            with pytest.raises(Busy, match="another process is writing there"):
                Output(path, restart=restart)
        other.kill()
    written(path, 1)
    assert numbers_in(path) == [1]


def test_an_answer_that_comes_twice_is_written_once(path: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"1\n2\n3\n")

    def found() -> Generator[Answer]:
        yield from map(answer, (2, 1, 2, 3, 1))

    with opened(str(tmp_path / "in"), lambda: io.BytesIO()) as file, closing(Output(path)) as output:
        source = Source(file, "in")
        output.belong(JOB)
        assert [tally.done for tally in run(source, output, found())] == [1, 2, 3]
    assert numbers_in(path) == [2, 1, 3]


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_a_link_stays_one(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    written(link, 2, 1)
    with closing(Output(link)) as output:
        output.belong(JOB)
        output.order()
    assert link.is_symlink()
    assert numbers_in(path) == [1, 2]


def test_what_a_killed_process_left_is_removed(path: Path) -> None:
    written(path, 2, 1)
    program = (
        "import os, pathlib, signal\n"
        "from edgellm.jobs.output import Output\n"
        f"output = Output(pathlib.Path({str(path)!r}))\n"
        f"output.belong({JOB!r})\n"
        "os.replace = lambda *_: os.kill(os.getpid(), 9) if hasattr(signal, 'SIGKILL') else os._exit(9)\n"
        "output.order()\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode != 0
    other = path.with_name("out.jsonl.part")
    other.touch()
    assert len(list(path.parent.glob("*.part"))) == 2
    assert numbers_in(path) == [2, 1]
    with closing(Output(path)) as output:
        output.belong(JOB)
        output.order()
    assert numbers_in(path) == [1, 2]
    assert list(path.parent.glob("*.part")) == [other]


def test_nothing_is_left_of_a_job_that_never_was(path: Path) -> None:
    Output(path).close()
    assert list(path.parent.iterdir()) == []


def test_the_order_of_the_lines_is_made_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(path, 5, 300, 2, 1, 7)
    before = path.read_bytes()
    with closing(Output(path)) as output:
        output.belong(JOB)
        with monkeypatch.context() as patch:

            def full(*_: object) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr("edgellm.files.os.replace", full)
            with pytest.raises(CannotWrite, match="No space left"):
                output.order()
        assert path.read_bytes() == before
    with closing(Output(path)) as output:
        output.belong(JOB)
        output.order()
    assert numbers_in(path) == [1, 2, 5, 7, 300]
    assert sorted(path.read_bytes().splitlines()) == sorted(before.splitlines())
    stamp = path.stat().st_ino
    with closing(Output(path)) as output:
        output.belong(JOB)
        output.order()  # nothing is to be done
    assert path.stat().st_ino == stamp
    written(path, 6)
    assert numbers_in(path)[-1] == 6


def test_a_full_disk_leaves_whole_lines(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with closing(Output(path)) as output:
        output.belong(JOB)
        output.write(answer(1))

        def part(descriptor: int, data: Any) -> int:
            if len(data) < 20:
                raise OSError(28, "No space left on device")
            return write(descriptor, data[:19])

        with monkeypatch.context() as patch:
            patch.setattr(outputs.os, "write", part)
            with pytest.raises(CannotWrite, match=r"No space left.*the same command goes on"):
                output.write(answer(20))
        assert numbers_in(path) == [1]
        output.write(answer(3))
    assert numbers_in(path) == [1, 3]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs")
def test_a_really_full_disk(tmp_path: Path) -> None:
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount")
    path = mount / "out.jsonl"
    try:
        with closing(Output(path)) as output:
            output.belong(JOB)
            with pytest.raises(CannotWrite, match="No space left"):
                written_up_to(output, 1000)
            done = len(output.done)
        assert 10 < done < 1000
        assert numbers_in(path) == list(range(1, done + 1))
        subprocess.run(["mount", "-o", "remount,size=4m", str(mount)], check=True)
        written(path, *range(done + 1, 1000))
        assert numbers_in(path) == list(range(1, 1000))
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def test_numbers_are_counted_once() -> None:
    numbers = Numbers()
    for number in (5, 2, 5, 0, 1000):
        numbers.add(number)
    assert len(numbers) == 4
    assert [each for each in range(-3, 1003) if each in numbers] == [0, 2, 5, 1000]
    assert "5" not in numbers


def test_files_that_no_job_wrote_stay(tmp_path: Path) -> None:
    out, record = tmp_path / "out", tmp_path / "out.job"
    record.write_bytes(b"somebody's\n")
    for restart in (False, True):
        with pytest.raises(InvalidParameter, match="no job wrote it"):
            Output(out, restart=restart)
    assert record.read_bytes() == b"somebody's\n"
    record.unlink()
    out.write_bytes(b"GGUF and so on")
    for restart in (False, True):
        with pytest.raises(InvalidParameter, match=r"no job wrote it|does not say which job"):
            Output(out, restart=restart)
    assert out.read_bytes() == b"GGUF and so on"
    assert not record.exists()


def test_a_restart_deletes_nothing_before_the_job_begins(tmp_path: Path) -> None:
    out = tmp_path / "out"
    written(out, 1, 2)
    before, record = out.read_bytes(), (tmp_path / "out.job").read_bytes()
    with closing(Output(out, restart=True)) as output:
        assert len(output.done) == 0
    assert (out.read_bytes(), (tmp_path / "out.job").read_bytes()) == (before, record)
    written(out, 2, restart=True)
    assert len(out.read_bytes().splitlines()) == 1


def test_a_record_may_be_large(tmp_path: Path) -> None:
    out, job = tmp_path / "out", {**JOB, "options": {"schema": "x" * 3_000_000}}
    written(out, 1, job=job)
    written(out, 2, job=job)
    assert len(out.read_bytes().splitlines()) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_no_record(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out.job")
    with pytest.raises(InvalidParameter, match="is no file"):
        Output(tmp_path / "out")


def test_what_is_in_a_folder_names_it(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "weights").write_bytes(b"same")
    assert content(one) == content(other)
    (other / "weights").write_bytes(b"trained again")
    assert content(one) != content(other)
    with pytest.raises(InvalidParameter, match="cannot be read"):
        content(tmp_path / ("long" * 100))
