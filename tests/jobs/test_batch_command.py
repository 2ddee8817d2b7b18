"""`edgellm batch`, as a user runs, kills and repeats it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ECHO = ["--model", "x", "--backend", "echo", "--temperature", "0"]
PATIENCE = 300


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "edgellm", "batch", *map(str, arguments)]


def batch(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*arguments), input=stdin, capture_output=True, check=False, timeout=PATIENCE)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Four plain lines, one of them wrong."""
    path = tmp_path / "in.jsonl"
    path.write_text(
        '{"prompt": "c", "id": "third letter"}\n{"prompt": "a"}\nnonsense\n{"prompt": "bé", "max_tokens": 9}\n',
        encoding="utf-8",
    )
    return path


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """800 lines of both formats."""
    path = tmp_path / "many.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for at in range(800):
            text = f"number {at % 40} is asked about {at}"
            body = {"messages": [{"role": "user", "content": text}], "temperature": 0}
            url = "/v1/chat/completions"
            row = {"prompt": text} if at % 2 else {"custom_id": str(at), "method": "POST", "url": url, "body": body}
            file.write(json.dumps(row) + "\n")
    return path


def texts(path: Path) -> dict[int, str]:
    """What every line was answered; none comes twice."""
    found: dict[int, str] = {}
    for each in read(path):
        if "line" in each:
            number, text = each["line"], each["text"]
        else:
            choice = each["response"]["body"]["choices"][0]
            number, text = int(each["custom_id"]) + 1, choice["message"]["content"]
        assert number not in found
        found[number] = text
    return found


def test_a_file_is_answered_into_another(given: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    done = batch(given, "-o", out, *ECHO, "--ordered")
    assert (done.returncode, done.stdout) == (0, "")
    assert "4 lines, 1 error;" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    found = read(out)
    assert [each.get("text") for each in found] == ["c", "a", None, "bé"]
    assert [each["line"] for each in found] == [1, 2, 3, 4]
    assert found[0]["id"] == "third letter"
    assert found[2]["error"]["code"] == "invalid_json_line"
    before = out.read_bytes()
    again = batch(given, "-o", out, *ECHO)
    assert "4 of 4 lines are answered already" in again.stderr
    assert out.read_bytes() == before


def test_the_first_lines_alone_and_then_the_rest(given: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    batch(given, "-o", out, *ECHO, "--limit", "2")
    assert {each["line"] for each in read(out)} == {1, 2}
    done = batch(given, "-o", out, *ECHO)
    assert "2 of 4 lines are answered already; going on with the rest" in done.stderr
    assert sorted(each["line"] for each in read(out)) == [1, 2, 3, 4]


def test_standard_streams_are_files_too(given: Path, tmp_path: Path) -> None:
    raw = given.read_bytes()
    done = batch("-", "-o", "-", *ECHO, "--ordered", stdin=raw)
    assert [json.loads(line).get("text") for line in done.stdout.splitlines()] == ["c", "a", None, "bé"]
    loose = batch(given, "-o", "-", *ECHO)
    assert sorted(loose.stdout.splitlines())[0] == sorted(done.stdout.splitlines())[0]
    out = tmp_path / "out.jsonl"
    batch("-", "-o", out, *ECHO, "--limit", "1", stdin=raw)
    assert batch("-", "-o", out, *ECHO, stdin=raw).returncode == 0
    assert len(read(out)) == 4
    assert batch("-", "-o", out, *ECHO, stdin=raw + b"\n").returncode == 2


def test_what_cannot_be_done_is_one_line(given: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    doubled = tmp_path / "doubled.jsonl"
    asked = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": "x"}}
    doubled.write_text(f"{json.dumps(asked)}\n" * 2, encoding="utf-8")
    cases: list[tuple[list[str | Path], int, str]] = [
        ([tmp_path / "nothing", "-o", out, *ECHO], 2, "cannot be read: No such file"),
        ([given, "-o", tmp_path / "nothing" / "out", *ECHO], 1, "cannot be written: No such file"),
        ([given, "-o", tmp_path, *ECHO], 2, "must be a file"),
        ([given, "-o", given, *ECHO], 2, "is the input"),
        ([doubled, "-o", out, *ECHO], 2, "'a' on lines 1, 2"),
        ([given, *ECHO], 2, "-o FILE"),
        ([given, "-o", "-", "--restart", *ECHO], 2, "--restart needs a file"),
        ([given, "-o", out, "--model", tmp_path / "no.gguf"], 1, "no.gguf"),
    ]
    for arguments, code, said in cases:
        done = batch(*arguments)
        assert said in done.stderr
        assert (done.returncode, done.stdout) == (code, "")
        assert "Traceback" not in done.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["doubled.jsonl", "in.jsonl"]


def test_other_options_are_refused_until_a_restart(given: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    batch(given, "-o", out, *ECHO)
    other = [given, "-o", out, *ECHO, "--max-tokens", "1"]
    done = batch(*other)
    assert done.returncode == 2
    assert "other options (max_tokens was unset, is 1)" in done.stderr
    assert batch(given, "-o", out, *ECHO, "--threads", "1").returncode == 0  # which changes no answer
    assert batch(*other, "--restart").returncode == 0
    assert sorted(each.get("text", "") for each in read(out)) == ["", "a", "bé", "c"]


def test_a_dry_run_answers_nothing(given: Path, tmp_path: Path) -> None:
    with given.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "x" * 9000}) + "\n")
        file.write(json.dumps({"custom_id": "1", "url": "/v1/embeddings", "body": {"input": ["ab", "cd"]}}) + "\n")
        asked = {"prompt": ["abc", "abd"], "n": 2, "max_tokens": 7}
        file.write(json.dumps({"custom_id": "2", "url": "/v1/completions", "body": asked}) + "\n")
    done = batch(given, "--dry-run", *ECHO, "--max-tokens", "2")
    assert done.returncode == 0
    facts = done.stdout
    assert "lines     7" in facts
    assert "errors    2" in facts
    assert "invalid_json_line: 1, first on line 3" in facts
    assert "context_length_exceeded: 1, first on line 5" in facts
    assert f"prompts   {21 + 21 + 23 + 3 + 3 + 4 * 4} tokens" in facts
    assert f"answers   {2 + 2 + 9 + 4 * 7} tokens at most" in facts
    assert "an estimate" in facts
    assert list(tmp_path.iterdir()) == [given]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_killed_at_any_moment_it_goes_on(many: Path, tmp_path: Path) -> None:
    calm, out = tmp_path / "calm.jsonl", tmp_path / "out.jsonl"
    assert batch(many, "-o", calm, *ECHO).returncode == 0
    chance = random.Random(7)
    size = calm.stat().st_size
    for kill in range(1, 7):
        with subprocess.Popen(command(many, "-o", out, *ECHO), stderr=subprocess.PIPE) as running:
            wanted = chance.uniform(kill - 1, kill) / 8 * size
            while running.poll() is None and (out.stat().st_size if out.exists() else 0) < wanted:
                time.sleep(0.002)
            assert running.poll() is None
            running.kill()
    partial = out.read_bytes()
    out.write_bytes(partial[:-5])
    done = batch(many, "-o", out, *ECHO, "--ordered")
    assert done.returncode == 0
    assert "going on with the rest" in done.stderr
    found = texts(out)
    assert list(found) == list(range(1, 801))
    assert found == texts(calm)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_and_keeps_what_is_done(many: Path, tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "out.jsonl"
    with subprocess.Popen(command(many, "-o", out, *ECHO), stderr=subprocess.PIPE) as running:
        while not out.exists() or not out.stat().st_size:
            assert running.poll() is None
            time.sleep(0.002)
        busy = batch(many, "-o", out, *ECHO)
        running.send_signal(number)
        _, said = running.communicate(timeout=PATIENCE)
    assert running.returncode == code
    done = len(texts(out))
    assert 0 < done < 800
    assert said.decode() == f"stopped: {done} of 800 lines are answered; the same command goes on with the rest\n"
    assert (busy.returncode, "another process is writing there" in busy.stderr) == (1, True)


def test_plain_lines_need_no_servers_packages(given: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('pydantic', 'pydantic_core', 'starlette', 'uvicorn', 'prometheus_client', 'httptools'):\n"
        "    sys.modules[name] = None\n"
        "from edgellm.cli import main\n"
        "main(['batch', *sys.argv[1:]])\n"
    )

    def without(path: Path) -> subprocess.CompletedProcess[bytes]:
        arguments = [sys.executable, "-c", program, str(path), "-o", "-", *ECHO]
        return subprocess.run(arguments, capture_output=True, check=False, timeout=PATIENCE)

    assert len(without(given).stdout.splitlines()) == 4
    with given.open("a", encoding="utf-8") as file:
        asked = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": "x"}}
        file.write(json.dumps(asked) + "\n")
    done = without(given)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"pip install 'edgellm[serve]'" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudoterminals")
def test_a_terminal_shows_how_far_it_is(many: Path, tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    arguments = command(many, "-o", tmp_path / "out.jsonl", *ECHO, "--limit", "200")
    with subprocess.Popen(arguments, stderr=theirs, env={**os.environ, "COLUMNS": "120"}) as running:
        os.close(theirs)
        seen = b""
        try:
            while piece := os.read(ours, 1 << 16):
                seen += piece
        except OSError:  # the other side is closed
            pass
    os.close(ours)
    assert running.returncode == 0
    said = seen.decode()
    assert "tokens/s: " in said
    assert "/200" in said
    assert "200 lines, no errors;" in said


def test_a_real_model_shares_what_lines_begin_with(smollm2: Path, tmp_path: Path) -> None:
    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    story = "The miller walked to the river and counted the boats that came down from the hills. " * 8
    with given.open("w", encoding="utf-8") as file:
        for at in range(12):
            messages = [{"role": "user", "content": f"{at % 2}: {story} What is {at}?"}]
            body = {"model": "any", "messages": messages, "max_tokens": 6, "temperature": 0}
            row = {"custom_id": str(at), "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(row) + "\n")
    assert batch(given, "-o", out, "--model", smollm2, "--ctx", "1024", "--limit", "4").returncode == 0
    done = batch(given, "-o", out, "--model", smollm2, "--ctx", "1024", "--ordered")
    assert done.returncode == 0
    found = read(out)
    assert [each["custom_id"] for each in found] == [str(at) for at in range(12)]
    bodies = [each["response"]["body"] for each in found]
    computed = [
        each["usage"]["prompt_tokens"] - each["usage"]["prompt_tokens_details"]["cached_tokens"] for each in bodies
    ]
    assert sum(each > 100 for each in computed) == 4  # each document once in both runs
    alone = tmp_path / "alone.jsonl"
    assert batch(given, "-o", alone, "--model", smollm2, "--ctx", "1024", "--ordered", "--no-cache").returncode == 0
    said = [each["response"]["body"]["choices"][0]["message"]["content"] for each in read(alone)]
    assert said == [each["choices"][0]["message"]["content"] for each in bodies]
