"""JSON lines over pipes: with the echo model, which answers with what was said last, and with real ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from piped import PATIENCE, Piped, piped
from serving import Running

ECHO = ("--backend", "echo", "--ctx", "32768")
HELLO: Any = [{"role": "user", "content": "Say hello."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
    },
}


def said(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0}


@pytest.fixture(scope="module")
def echo_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("echo") / "echo.gguf"
    path.write_bytes(b"any")
    return path


@pytest.fixture
def echo(echo_file: Path) -> Iterator[Piped]:
    with piped(echo_file, *ECHO, "--max-body", 300_000) as found:
        yield found
        assert found.stray == []


@pytest.fixture(scope="module")
def real(smollm2: Path, minilm: Path) -> Iterator[Piped]:
    with piped(smollm2, minilm, "--alias", f"smollm2={smollm2}") as found:
        yield found
        assert found.stray == []
        assert found.close() == 0


def test_the_first_line_says_who_speaks(real: Piped, smollm2: Path) -> None:
    import edgellm

    assert real.hello == {"protocol": 1, "edgellm": edgellm.__version__, "models": [smollm2.stem, "minilm"]}


def test_a_stream_is_that_of_http(real: Piped, server: Running) -> None:
    for more in ({}, {"tools": [WEATHER], "tool_choice": "required"}, {"logprobs": True, "top_logprobs": 2}):
        asked = {"model": "smollm2", "messages": HELLO, "max_tokens": 24, "temperature": 0, **more}
        over = httpx.post(f"{server.url}/v1/chat/completions", json=asked, timeout=PATIENCE).json()["choices"][0]
        real.send("1", "chat", **asked)
        *before, done = real.events("1")
        chunks = [each for each in before if each["event"] == "chunk"]
        assert "".join(each.get("text", "") for each in chunks) == done["text"] == (over["message"]["content"] or "")
        assert done["finish_reason"] == over["finish_reason"]
        names = [call["function"] for call in over["message"].get("tool_calls", ())]
        assert [call["function"] for call in done["tool_calls"]] == names
        pieces = [piece for each in chunks for piece in each.get("tool_calls", ())]
        assert "".join(piece["arguments"] for piece in pieces) == "".join(each["arguments"] for each in names)
        if "logprobs" in more:
            assert len(done["logprobs"]) == done["usage"]["completion_tokens"]
            assert [token for each in chunks for token in each.get("logprobs", ())] == done["logprobs"]
        whole = real.ask("chat", **asked, stream=False)
        assert whole["text"] == done["text"]
        assert whole["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        assert (
            whole["cache"]["computed"] + whole["usage"]["prompt_tokens_details"]["cached_tokens"]
            == (whole["usage"]["prompt_tokens"])
        )
    assert real.ask("chat", messages=HELLO, max_tokens=1, mirostat=2)["ignored"] == ["mirostat"]


def test_progress_is_told_while_a_prompt_is_read(real: Piped) -> None:
    real.send("long", "chat", messages=[{"role": "user", "content": "word " * 3000}], max_tokens=1)
    read = [(each["done"], each["total"]) for each in real.events("long") if each["event"] == "progress"]
    read = [each for each in read if each[1]]  # before that it is not known
    assert len(read) > 1
    assert read == sorted(read)
    assert {total for _, total in read} == {3031}
    assert read[-1][0] > 0


def test_texts_go_on_and_have_vectors(real: Piped, server: Running) -> None:
    asked = {"model": "smollm2", "prompt": "Once upon", "max_tokens": 5, "temperature": 0}
    over = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=PATIENCE).json()["choices"][0]
    assert real.ask("complete", **asked)["text"] == over["text"]
    vectors = {"model": "minilm", "input": ["a cat", "a kitten"]}
    over = httpx.post(f"{server.url}/v1/embeddings", json=vectors, timeout=PATIENCE).json()
    done = real.ask("embed", **vectors)
    assert done["event"] == "result"
    for one, other in zip(done["data"], over["data"], strict=True):
        assert one["embedding"] == pytest.approx(other["embedding"], abs=1e-5)
    for wrong, why in (
        ({"prompt": ["a", "b"]}, "asks for 2"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
    ):
        refused = real.ask("complete", **wrong)
        assert (refused["event"], refused["code"]) == ("error", "unsupported")
        assert why in refused["message"]
    assert "n=2" in real.ask("chat", messages=HELLO, n=2)["message"]


def test_documents_are_ranked(echo: Piped) -> None:
    done = echo.ask("rerank", query="abcde", documents=["x", "abcx", "abcde"], top_n=2)
    assert done["event"] == "result"
    assert done["results"] == [{"index": 2, "relevance_score": 1.0}, {"index": 1, "relevance_score": 0.5}]


def test_models_are_listed_loaded_and_unloaded(real: Piped) -> None:
    assert real.ask("load", model="minilm")["model"] == "minilm"
    by_name = {each["id"]: each for each in real.ask("models")["models"]}
    assert by_name["minilm"]["loaded"]
    assert "embedding" in by_name["minilm"]["capabilities"]
    assert real.ask("unload", model="minilm")["unloaded"]
    assert not real.ask("unload", model="minilm")["unloaded"]
    status = real.ask("status")
    assert [each["loaded"] for each in status["models"] if each["id"] == "minilm"] == [False]
    assert status["requests"] == {"running": 0, "waiting": 0}
    refused = real.ask("load", model="nothing")
    assert (refused["code"], refused["status"], refused["param"]) == ("model_not_found", 404, "model")
    long = real.ask("chat", model="smollm2", messages=[{"role": "user", "content": "word " * 20_000}])
    assert long["code"] == "context_length_exceeded"
    assert long["n_prompt_tokens"] > long["n_ctx"]


def test_twenty_at_once_get_their_own_answers(echo: Piped) -> None:
    for at in range(20):
        echo.send(str(at), "chat", **said(f"answer {at} " * 30))
    for at in range(20):
        done = echo.events(str(at))[-1]
        assert done["text"] == f"answer {at} " * 30
        assert done["finish_reason"] == "stop"
    changes = sum(one != other for one, other in zip(echo.order, echo.order[1:], strict=False))
    assert changes > 60  # they came side by side


WRONG = {
    b"{": "invalid_json",
    b"hello": "invalid_json",
    b"[1]": "invalid_json",
    b'{"id": "\xff"}': "invalid_json",
    b'{"id": "a", "method": "models", "params": {"a": NaN}}': "invalid_json",
    b'{"id": "\\ud800", "method": "models"}': "invalid_json",
    b"[" * 100_000: "invalid_json",
    b'{"id": "x", "params": ' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}": "invalid_json",
    b'{"id": "x", "method": "models", "a": "' + b"x" * 400_000 + b'"}': "too_large",
    b"x" * 1_000_000: "too_large",
    b'{"id": 5, "method": "models"}': "invalid_value",
    b'{"method": "models"}': "invalid_value",
}


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_a_line_that_is_none_is_told_and_it_goes_on(echo: Piped, wrong: bytes) -> None:
    echo.write(wrong + b"\n\r\n \n")
    assert echo.next(None)["code"] == WRONG[wrong]
    assert echo.ask("models")["event"] == "result"


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"method": "shout"}, "unknown_method"),
        ({"method": ["chat"]}, "unknown_method"),
        ({}, "unknown_method"),
        ({"method": "chat", "params": [1]}, "invalid_value"),
        ({"method": "chat", "params": {"messages": "hi"}}, "invalid_value"),
        ({"method": "chat"}, "invalid_value"),
        ({"method": "chat", "params": {"messages": HELLO, "temperature": "hot"}}, "invalid_value"),
        ({"method": "embed", "params": {"input": "a", "model": "/etc/passwd"}}, "model_not_found"),
        ({"method": "rerank", "params": {"query": "a", "documents": []}}, "invalid_value"),
    ],
)
def test_a_request_that_is_wrong_is_told_by_its_id(echo: Piped, asked: dict[str, Any], code: str) -> None:
    echo.write(json.dumps({"id": "a\U0001f600\n", **asked}).encode() + b"\n")
    found = echo.next("a\U0001f600\n")
    assert (found["event"], found["code"]) == ("error", code)
    assert echo.ask("models")["event"] == "result"


def test_an_id_is_one_requests_until_its_end(echo: Piped) -> None:
    echo.send("same", "chat", **said("text " * 400))
    echo.send("same", "chat", **said("other"))
    events = []
    while not events or events[-1]["event"] != "done":
        events.append(echo.next("same"))
    assert [each["code"] for each in events if each["event"] == "error"] == ["id_in_use"]
    assert events[-1]["text"] == "text " * 400
    echo.send("same", "chat", **said("other"))
    assert echo.events("same")[-1]["text"] == "other"


def test_more_than_the_queue_are_told_so(echo_file: Path) -> None:
    with piped(echo_file, *ECHO, "--queue", 2) as echo:
        for at in range(3):
            echo.send(str(at), "chat", **said("text " * 200))
        assert echo.events("2")[-1]["code"] == "rate_limit_exceeded"
        assert {echo.events(each)[-1]["finish_reason"] for each in "01"} == {"stop"}


def test_cancelling_ends_a_prompt_that_is_read(real: Piped) -> None:
    real.send("long", "chat", messages=[{"role": "user", "content": "other words " * 3500}], temperature=0)
    while real.next("long").get("total", 0) == 0:
        pass
    real.send("long", "cancel")
    *_, done = real.events("long")
    assert (done["event"], done["finish_reason"], done["text"]) == ("done", "cancelled", "")
    assert done["cache"]["computed"] < done["usage"]["prompt_tokens"]
    assert real.ask("status")["requests"] == {"running": 0, "waiting": 0}


def test_cancelling_ends_an_answer_with_what_there_is(echo: Piped) -> None:
    for id, other in (("one", "two"), ("two", "one")):
        echo.send(id, "chat", **said("text " * 3000))
        while echo.next(id)["event"] != "chunk":
            pass
        echo.write(json.dumps({"id": other, "method": "cancel"}).encode() + b"\n")  # of nothing that runs
        echo.write(json.dumps({"id": id, "method": "cancel"}).encode() + b"\n")
        echo.write(json.dumps({"id": id, "method": "cancel"}).encode() + b"\n")
        *_, done = echo.events(id)
        assert done["finish_reason"] == "cancelled"
        assert ("text " * 3000).startswith(done["text"])
        assert 0 < len(done["text"]) < 15_000
    assert echo.ask("chat", **said("hi"))["text"] == "hi"


SLOW = """
import ctypes, os, subprocess, sys, time
import edgellm
load = edgellm.load
def slowly(*arguments, **options):
    print("printed", flush=True)
    os.write(1, b"written\\n")
    ctypes.CDLL(None).puts(b"put")
    ctypes.CDLL(None).fflush(None)
    subprocess.run([sys.executable, "-c", "import sys; print('child', repr(sys.stdin.read()))"], check=True)
    time.sleep(float(os.environ.get("SLOW", "0")))
    return load(*arguments, **options)
edgellm.load = slowly
from edgellm.serve import pipes
pipes.UNREAD_SECONDS = 1.0
from edgellm.cli import main
main()
"""


def test_cancelling_ends_the_wait_for_a_model(echo_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOW", "5")
    with piped(echo_file, *ECHO, program=["-c", SLOW]) as echo:
        for id, method, params in (("chat", "chat", said("hi")), ("load", "load", {})):
            echo.send(id, method, **params)
            echo.send(id, "cancel")
            *_, done = echo.events(id)
            assert (done["event"], done["finish_reason"], done["usage"]) == ("done", "cancelled", None)
        assert echo.ask("chat", **said("hi"))["text"] == "hi"  # it was loaded all the same


@pytest.mark.skipif(sys.platform == "win32", reason="puts of the C library by ctypes.CDLL(None)")
def test_what_is_printed_does_not_get_in_between(echo_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with piped(echo_file, *ECHO, program=["-c", SLOW]) as echo:
        assert echo.ask("chat", **said("hi"))["text"] == "hi"
        assert echo.close() == 0
        assert echo.stray == []
    printed = capfd.readouterr().err
    assert [each in printed for each in ("printed\n", "written\n", "put\n", "child ''\n")] == [True] * 4


@pytest.mark.parametrize("rest", [b"", b'{"id": "half", "method": "cha'])
def test_the_end_of_the_input_ends_all(echo: Piped, rest: bytes) -> None:
    echo.send("long", "chat", **said("text " * 3000))
    while echo.next("long")["event"] != "chunk":
        pass
    if rest:
        echo.write(rest)
    assert echo.close() == 0


def test_shutdown_ends_what_runs_and_says_so(echo: Piped) -> None:
    echo.send("long", "chat", **said("text " * 3000))
    while echo.next("long")["event"] != "chunk":
        pass
    assert echo.ask("shutdown")["event"] == "result"
    assert echo.events("long")[-1]["finish_reason"] == "cancelled"
    assert echo.process.wait(PATIENCE) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_signals_end_it_cleanly(echo: Piped, number: str) -> None:
    if signal.getsignal(getattr(signal, number)) == signal.SIG_IGN:
        pytest.skip(f"{number} is ignored here, as nohup has it, and so it is by what is started")
    echo.send("long", "chat", **said("text " * 3000))
    while echo.next("long")["event"] != "chunk":
        pass
    echo.process.send_signal(getattr(signal, number))
    assert echo.process.wait(PATIENCE) == 128 + getattr(signal, number)


def test_an_output_that_nobody_can_read_ends_it(echo_file: Path) -> None:
    with piped(echo_file, *ECHO, reading=False) as echo:
        assert echo.process.stdout is not None
        echo.process.stdout.readline()
        echo.send("long", "chat", **said("text " * 6000))
        echo.process.stdout.close()
        assert echo.process.wait(PATIENCE) == 0


PARENT = """
import json, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-m", "edgellm", "serve", "--stdio", *sys.argv[1:]],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
asked = {"messages": [{"role": "user", "content": "text " * 6000}]}
child.stdin.write(json.dumps({"id": "a", "method": "chat", "params": asked}).encode() + b"\\n{half")
child.stdin.flush()
while b"chunk" not in child.stdout.readline():
    pass
print(child.pid, flush=True)
time.sleep(600)
"""


def test_the_death_of_the_parent_ends_it(echo_file: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(echo_file), *ECHO]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
        child.wait(PATIENCE)


def test_who_does_not_read_costs_no_memory_and_no_time(echo_file: Path) -> None:
    with piped(echo_file, *ECHO, program=["-c", SLOW], reading=False) as echo:
        process = psutil.Process(echo.process.pid)
        for at in range(40):
            echo.send(str(at), "chat", **said(f"{at} text " * 1000), ignore_eos=True, max_tokens=20_000)
        busy = sum(process.cpu_times()[:2])
        while True:  # until it computes nothing any more: all is cancelled, though nobody was told
            time.sleep(3)
            before, busy = busy, sum(process.cpu_times()[:2])
            if busy - before < 0.3:
                break
        assert process.memory_info().rss < 700 << 20
        echo.start_reading()
        reasons = {echo.events(str(at))[-1]["finish_reason"] for at in range(40)}
        assert "cancelled" in reasons
        assert echo.ask("chat", **said("hi"))["text"] == "hi"
        assert echo.stray == []
        assert echo.close() == 0


def test_what_only_a_port_has_is_refused(echo_file: Path) -> None:
    for more in (["--port", "0"], ["--host", "127.0.0.1"], ["--api-key", "k"], ["--origin", "app://a"]):
        command = [sys.executable, "-m", "edgellm", "serve", "--stdio", str(echo_file), *more]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=PATIENCE)
        assert done.returncode == 2
        assert more[0].encode() in done.stderr
        assert done.stdout == b""


def test_closed_streams_are_the_end(echo_file: Path) -> None:
    command = [sys.executable, "-m", "edgellm", "serve", "--stdio", str(echo_file), *ECHO]
    with open(os.devnull, "rb") as nothing:
        done = subprocess.run(command, stdin=nothing, capture_output=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
