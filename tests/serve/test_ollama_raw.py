"""Ollama's protocol as its clients send it: raw requests, and a model whose answers are known."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import httpx
import ollama
import pytest
from serving import Running, running
from test_tools_in_chats import CALL, THOUGHT, Saying

import edgellm.hub
from edgellm import LoadParams, Model
from edgellm.errors import DownloadError, ModelLoadError
from edgellm.hub import PullEvent
from edgellm.serve import ask
from edgellm.serve.app import create_app
from edgellm.serve.models import Models
from edgellm.serve.ollama import answer, pull
from edgellm.serve.settings import ServeParams, Serving

MODEL = "smollm2"
HELLO: Any = [{"role": "user", "content": "Say hello."}]
ADD: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as found:
        yield found


def lines(reply: httpx.Response) -> list[Any]:
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/x-ndjson"
    return list(map(json.loads, reply.text.splitlines()))


# What clients send


def test_zed_finds_every_field_that_it_decodes(client: httpx.Client) -> None:
    for each in client.get("/api/tags").json()["models"]:
        assert all(isinstance(each[name], str) for name in ("name", "model", "modified_at", "digest"))
        assert isinstance(each["size"], int)
        details = each["details"]
        assert all(
            isinstance(details[name], str) for name in ("format", "family", "parameter_size", "quantization_level")
        )
        assert all(isinstance(name, str) for name in details["families"])
    given = {
        "model": "smollm2:latest",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello.", "tool_calls": None, "thinking": None},
            {"role": "user", "content": "And you?"},
        ],
        "stream": True,
        "keep_alive": -1,
        "options": {"num_ctx": 4096, "num_predict": 6, "stop": [], "temperature": 1.0, "top_p": None},
        "tools": [],
        "think": None,
    }
    found = lines(client.post("/api/chat", json=given))
    assert all(isinstance(each["message"]["content"], str) and each["message"]["role"] == "assistant" for each in found)
    assert all(isinstance(each["created_at"], str) and each["model"] == "smollm2:latest" for each in found)
    assert 1 <= found[-1]["eval_count"] <= 6


def test_vs_code_finds_what_it_goes_by(client: httpx.Client) -> None:
    keyless = Request(f"{client.base_url}/api/version", headers={"Authorization": "Bearer "})
    with urlopen(keyless, timeout=60) as reply:
        said = json.load(reply)
    assert tuple(map(int, said["version"].split("."))) >= (0, 6, 4)
    shown = client.post("/api/show", json={"model": MODEL}).json()
    assert "tools" in shown["capabilities"]
    info = shown["model_info"]
    assert info["general.basename"]
    assert info[f"{info['general.architecture']}.context_length"] == 8192
    assert ".Suffix" not in shown["template"]  # or Continue would ask for what is between two texts
    assert client.post("/api/show", json={"name": MODEL}).json() == shown


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"options": {"num_ctx": 32768, "num_predict": 1}}, "num_ctx"),  # Cline
        ({"options": {"num_ctx": 8192, "num_predict": 1, "repeat_last_n": -1, "repeat_penalty": 1.1}}, ""),
        ({"options": {"num_gpu": 9, "tfs_z": 1, "num_predict": 1}, "format": "", "keep_alive": "5m"}, "num_gpu, tfs_z"),
        ({"options": {"mirostat": 0, "mirostat_tau": 5.0, "num_predict": 1, "stop": "x"}}, "mirostat_tau"),
        ({"options": {"num_predict": 1, "seed": -1}, "think": True, "keep_alive": -1}, "think"),
        ({"options": {"num_predict": 1, "seed": -7}, "think": False, "keep_alive": "300s"}, ""),  # Home Assistant
        ({"options": {"num_predict": 1, "min_p": 0.1}, "session": "a", "truncate": True, "shift": False}, "session"),
        ({"options": {"regex": "Yes\\."}, "max_tokens": 9}, "max_tokens"),  # in no dialect but OpenAI's
    ],
)
def test_what_has_no_effect_is_named(client: httpx.Client, more: dict[str, Any], named: str) -> None:
    for path, given in (("/api/chat", {"messages": HELLO}), ("/api/generate", {"prompt": "Hello"})):
        for stream in (True, False):
            reply = client.post(path, json={"model": MODEL, "stream": stream, **given, **more})
            assert reply.status_code == 200, reply.text
            assert reply.headers.get("x-edgellm-ignored", "") == named
    if "regex" in more["options"]:
        assert reply.json()["response"] == "Yes."


@pytest.mark.parametrize(
    ("path", "given", "said"),
    [
        ("chat", {"messages": HELLO, "options": {"mirostat": 2}}, "mirostat"),
        ("chat", {"messages": HELLO, "options": {"temperature": "hot"}}, "temperature"),
        ("chat", {"messages": HELLO, "options": {"top_p": 7}}, "top_p"),
        ("chat", {"messages": HELLO, "options": 7}, "options"),
        ("chat", {"messages": "hi"}, "messages"),
        ("chat", {"messages": [{"content": "x"}]}, "role"),
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, r"messages\[0\]\.images"),
        ("chat", {"messages": [{"role": "assistant", "tool_calls": [{}]}, *HELLO]}, "tool_calls"),
        ("chat", {"messages": [{"role": "assistant", "tool_calls": {"a": 1}}, *HELLO]}, "tool_calls"),
        ("chat", {"messages": HELLO, "format": "xml"}, "format"),
        ("chat", {"messages": HELLO, "format": 5}, "format"),
        ("chat", {"messages": HELLO, "think": "hard"}, "think"),
        ("chat", {"messages": HELLO, "keep_alive": "soon"}, "keep_alive"),
        ("chat", {"messages": HELLO, "top_logprobs": 2}, "logprobs"),
        ("chat", {"messages": HELLO, "tools": [{"type": "function"}]}, "tool"),
        ("chat", {"messages": [{"role": "user", "content": "word " * 20000}]}, "maximum context length is 8192"),
        ("generate", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("generate", {"prompt": "x", "template": "y"}, "template"),
        ("generate", {"prompt": "x", "images": ["aGk="]}, "images"),
        ("generate", {"prompt": "x", "raw": True, "system": "y"}, "raw"),
        ("generate", {"prompt": "x", "raw": True, "context": [1]}, "raw"),
        ("generate", {"prompt": "x", "context": [-1]}, "context"),
        ("generate", {"prompt": "x", "context": ["a"]}, "context"),
        ("embed", {"input": 5}, "input"),
        ("show", {}, "model"),
    ],
)
def test_what_is_wrong_is_told_by_its_name(client: httpx.Client, path: str, given: dict[str, Any], said: str) -> None:
    reply = client.post(f"/api/{path}", json={**({"model": MODEL} if given else {}), **given})
    assert reply.status_code == 400, reply.text
    assert set(reply.json()) == {"error"}
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(reply.json()["error"])


def test_what_cannot_be_had_is_said(client: httpx.Client) -> None:
    for method, path in (("POST", "create"), ("POST", "push"), ("POST", "blobs/sha256:0")):
        reply = client.request(method, f"/api/{path}", json={"model": "x"})
        assert reply.status_code == 501
        assert path.partition("/")[0] in reply.json()["error"]
    assert client.head("/api/blobs/sha256:0").status_code == 501
    assert client.head("/").status_code == 200
    assert client.get("/").text == "Ollama is running"
    assert client.head("/api/version").status_code == 200
    reply = client.post("/api/nothing", json={})
    assert (reply.status_code, set(reply.json())) == (404, {"error"})
    assert client.get("/api/chat").status_code == 405
    described = client.get("/openapi.json").json()["components"]["schemas"]
    assert {"options", "messages", "min_p"} <= set(described["OllamaChatRequest"]["properties"])
    assert "max_completion_tokens" in described["ChatRequest"]["properties"]


# A model whose answers are known


def asked(
    model: Path, doing: Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]], *answers: str, slow: float = 0.0
) -> Any:
    """What `doing` returns; the model of the server says `answers`, and takes so many seconds to load."""

    def load(_path: Path, _params: Any) -> Model:
        time.sleep(slow)
        if not answers:
            raise ModelLoadError("it is broken")
        return Model(Saying(*answers))

    async def ask_it() -> Any:
        serving = Serving(ServeParams(alias=(f"m={model}",)), (str(model),))
        models = Models(serving, load)
        transport = httpx.ASGITransport(app=create_app(serving, models))  # type: ignore[arg-type,unused-ignore]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            try:
                return await doing(client)
            finally:
                await models.close()

    return asyncio.run(ask_it())


async def both(client: httpx.AsyncClient, path: str, **given: Any) -> tuple[Any, list[Any]]:
    """The answer whole, and as a stream."""
    given = {"model": "m", "options": {"temperature": 0}, **given}
    whole = await client.post(path, json={**given, "stream": False})
    return whole.json(), lines(await client.post(path, json=given))


def test_thinking_and_calls_have_their_places(smollm2: Path) -> None:
    given: Any = {"messages": HELLO, "tools": [ADD]}
    whole, pieces = asked(smollm2, lambda client: both(client, "/api/chat", **given), f"{THOUGHT}I add.\n{CALL}")
    message = whole["message"]
    assert (message["content"], message["thinking"]) == ("I add.", "Hm, <tool_call> no.")
    [call] = message["tool_calls"]
    assert call["function"] == {"index": 0, "name": "add", "arguments": {"a": 1, "b": 2}}
    assert "".join(each["message"]["content"] for each in pieces) == "I add."
    assert "".join(each["message"].get("thinking", "") for each in pieces) == message["thinking"]
    assert [each["message"]["tool_calls"][0]["function"] for each in pieces if "tool_calls" in each["message"]] == [
        call["function"]
    ]
    assert all(ollama.ChatResponse(**each).done is (each is pieces[-1]) for each in pieces)
    whole, pieces = asked(smollm2, lambda client: both(client, "/api/generate", prompt="Go"), f"{THOUGHT}Yes.")
    assert (whole["response"], whole["thinking"]) == ("Yes.", "Hm, <tool_call> no.")
    assert "".join(each.get("thinking", "") for each in pieces) == whole["thinking"]
    assert "".join(each["response"] for each in pieces) == "Yes."


def test_a_call_that_takes_long_is_no_silence(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "BEAT_SECONDS", 0)
    _, pieces = asked(smollm2, lambda client: both(client, "/api/chat", messages=HELLO, tools=[ADD]), CALL)
    assert len(pieces) > 8  # without them a sign or two while the prompt is read, the call and the end
    assert all(each["message"]["content"] == "" for each in pieces)
    assert sum("tool_calls" in each["message"] for each in pieces) == 1


def test_reasoning_behind_a_context_is_told_from_the_text(smollm2: Path) -> None:
    async def ask_twice(client: httpx.AsyncClient) -> list[Any]:
        first = (await client.post("/api/generate", json={"model": "m", "prompt": "Go", "stream": False})).json()
        given = {"model": "m", "prompt": "On", "stream": False, "context": first["context"], "system": "ignored"}
        again = await client.post("/api/generate", json={**given, "options": {"temperature": 0}})
        assert again.headers["x-edgellm-ignored"] == "system"
        return [first, again.json()]

    first, again = asked(smollm2, ask_twice, f"{THOUGHT}One.", f"{THOUGHT}Two.")
    assert (first["response"], again["response"], again["thinking"]) == ("One.", "Two.", "Hm, <tool_call> no.")


def test_headers_and_signs_of_life_come_while_it_loads(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(ask, "HEADERS_SECONDS", 0.1)
    _, pieces = asked(smollm2, lambda client: both(client, "/api/chat", messages=HELLO), "Yes.")
    assert [each["message"]["content"] for each in pieces if each["message"]["content"]]

    async def stream(client: httpx.AsyncClient) -> list[Any]:
        return lines(await client.post("/api/chat", json={"model": "m", "messages": HELLO}))

    pieces = asked(smollm2, stream, "Yes.", slow=0.8)
    waiting = next(at for at, each in enumerate(pieces) if each["message"]["content"])
    assert waiting >= 3
    assert all(each["message"] == {"role": "assistant", "content": ""} for each in pieces[:waiting])
    assert pieces[-1]["load_duration"] >= 0.7e9
    pieces = asked(smollm2, stream, slow=0.8)  # what fails behind the headers is the last line
    assert pieces[-1] == {"error": "it is broken"}
    monkeypatch.setattr(ask, "HEADERS_SECONDS", 60)
    failed = asked(smollm2, lambda client: client.post("/api/chat", json={"model": "m", "messages": HELLO}))
    assert (failed.status_code, failed.json()) == (500, {"error": "it is broken"})


def test_a_model_in_use_is_unloaded_behind_that(smollm2: Path) -> None:
    with running(folder=(str(smollm2.parent),)) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        name = smollm2.stem
        given = {"model": name, "messages": HELLO, "options": {"num_predict": 80, "ignore_eos": True}}
        with client.stream("POST", "/api/chat", json=given) as reply:
            came = reply.iter_lines()
            next(came)
            assert client.post("/api/chat", json={"model": name, "keep_alive": 0}).json()["done_reason"] == "unload"
            last = [json.loads(each) for each in came][-1]
        assert (last["done_reason"], last["eval_count"]) == ("length", 80)
        until = time.monotonic() + 20
        while client.get("/api/ps").json()["models"]:
            assert time.monotonic() < until
            time.sleep(0.02)


# Pulling


@pytest.fixture
def stored(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A home with SmolLM2 in its store."""
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))

    def linked(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)

    shutil.copytree(smollm2.parent, tmp_path / "models" / smollm2.parent.name, copy_function=linked)
    return "smollm2:135m"


def test_a_model_that_is_here_is_pulled_copied_and_deleted(stored: str) -> None:
    with running() as server:
        client = ollama.Client(server.url)
        statuses = [each.status for each in client.pull(stored, stream=True)]
        assert statuses[0] == "pulling manifest"
        assert statuses[-1] == "success"
        assert any("is here already" in (each or "") for each in statuses)
        assert client.pull(stored).status == "success"
        with pytest.raises(ollama.ResponseError, match="neither a file nor a known model"):
            list(client.pull("nothing-like-this", stream=True))
        with pytest.raises(ollama.ResponseError, match="neither a file nor a known model") as none:
            client.pull("nothing-like-this")
        assert none.value.status_code == 404
        client.copy(stored, "mine:v1")
        assert {each.model for each in client.list().models} == {stored, "mine:v1"}
        assert client.show("mine:v1").license
        client.delete("mine:v1")
        assert [each.model for each in client.list().models] == [stored]
        [listed] = client.list().models
        assert listed.digest == edgellm.hub.catalog()[stored].sha256
        client.delete(stored)
        assert client.list().models == []
        client.close()  # type: ignore[no-untyped-call]


def test_an_offline_server_pulls_nothing(smollm2: Path) -> None:
    with running(load=LoadParams(offline=True)) as server:
        reply = httpx.post(f"{server.url}/api/pull", json={"model": "smollm2"})
        assert "forbidden" in json.loads(reply.text.splitlines()[-1])["error"]
        whole = httpx.post(f"{server.url}/api/pull", json={"model": "smollm2", "stream": False})
        assert whole.status_code == 403
        assert "forbidden" in whole.json()["error"]


def test_a_pull_whose_client_left_is_stopped(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(pull, "BEAT_SECONDS", 0.1)

    def endless(_name: str, *, offline: bool, progress: Callable[[PullEvent], None]) -> None:
        try:
            progress(PullEvent("pulling it"))
            for done in range(1, 10_000):
                time.sleep(0.02 if done != 5 else 0.5)
                progress(PullEvent("tiny", done, 10_000))
            raise DownloadError("nobody stopped it")
        finally:
            ended.set()

    monkeypatch.setattr(edgellm.hub, "pull", endless)
    seen: list[Any] = []
    with httpx.stream("POST", f"{server.url}/api/pull", json={"name": "tiny"}) as reply:
        for line in reply.iter_lines():
            seen.append(json.loads(line))
            if seen[-1].get("completed", 0) > 8:
                break
    assert ended.wait(20)
    assert [each["status"] for each in seen[:2]] == ["pulling manifest", "pulling it"]
    transfers = [each for each in seen if "digest" in each]
    assert all(each["total"] == 10_000 and each["digest"].startswith("sha256:") for each in transfers)
    completed = [each["completed"] for each in transfers]
    assert completed == sorted(completed)
    assert len(completed) > len(set(completed))  # said again while nothing came
