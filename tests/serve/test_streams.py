"""How answers come, and what happens when nobody waits for them any more."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Running, running

import edgellm
from edgellm import LoadParams
from edgellm.serve import ask

CHAT = "/v1/chat/completions"
LONG: Any = [{"role": "user", "content": "Some words of a long text. " * 600}]
HELLO: Any = [{"role": "user", "content": "Say hello."}]


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def working(server: Running) -> int:
    requests = httpx.get(f"{server.url}/v1/edgellm/status").json()["requests"]
    return int(requests["running"] + requests["waiting"])


def metric(server: Running, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_a_client_that_goes_stops_its_answer(server: Running) -> None:
    before = metric(server, 'edgellm_tokens_total{model="SmolLM2-135M-Instruct.Q4_1",source="answer"')
    body = {"model": "smollm2", "messages": HELLO, "stream": True, "ignore_eos": True, "cache": False}
    with httpx.stream("POST", server.url + CHAT, json=body) as answer:
        for number, _ in enumerate(answer.iter_lines()):
            if number > 20:
                break
    eventually(lambda: working(server) == 0)
    said = metric(server, 'edgellm_tokens_total{model="SmolLM2-135M-Instruct.Q4_1",source="answer"') - before
    assert said < 2000  # of the 8,000 that it would have had


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_while_its_prompt_is_read(server: Running, stream: bool) -> None:
    def read() -> float:
        return metric(server, 'edgellm_pass_tokens_total{kind="prefill",model="SmolLM2')

    messages = [{"role": "user", "content": f"{stream} " + "All these words are new here. " * 1000}]
    body = {"model": "smollm2", "messages": messages, "stream": stream, "cache": False}
    before = read()
    with pytest.raises(httpx.ReadTimeout), httpx.stream("POST", server.url + CHAT, json=body, timeout=0.25) as answer:
        answer.read()
    eventually(lambda: working(server) == 0)
    assert read() - before < 5000  # of some 6,000


def test_there_are_signs_of_life_while_a_prompt_is_read(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "BEAT_SECONDS", 0.02)
    body = {"model": "smollm2", "messages": LONG, "stream": True, "max_tokens": 1, "cache": False}
    with httpx.stream("POST", server.url + CHAT, json={**body, "return_progress": True}) as answer:
        lines = list(answer.iter_lines())
    told = [json.loads(line[6:])["prompt_progress"] for line in lines if "prompt_progress" in line]
    assert len(told) > 2
    assert [each["processed"] for each in told] == sorted(each["processed"] for each in told)
    assert told[0]["total"] > 2000
    with httpx.stream("POST", server.url + CHAT, json=body) as answer:
        lines = list(answer.iter_lines())
    first = next(at for at, line in enumerate(lines) if "finish_reason" in line and '"content":""' not in line)
    assert sum(line.startswith(":") for line in lines[:first]) > 1


def test_headers_go_out_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.serve.ask.HEADERS_SECONDS", 0.05)
    monkeypatch.setattr(ask, "BEAT_SECONDS", 0.05)
    (tmp_path / "slow.gguf").write_bytes(b"GGUF")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    gate = threading.Event()

    def load(path: Path, params: LoadParams) -> edgellm.Model:
        assert gate.wait(30)
        if path.stem == "bad":
            raise edgellm.errors.InvalidModelFile("it is damaged")
        return edgellm.load(path, params)

    with running(folder=(str(tmp_path),), load=LoadParams(backend="echo")) as server:
        server.models._load = load
        for name, last in (("slow", "data: [DONE]"), ("bad", "damaged")):
            gate.clear()
            body = {"model": name, "messages": HELLO, "stream": True}
            with httpx.stream("POST", server.url + CHAT, json=body) as answer:
                assert answer.status_code == 200
                lines = answer.iter_lines()
                assert '"role":"assistant"' in next(lines)
                assert [next(each for each in lines if each) for _ in range(2)] == [": loading"] * 2
                gate.set()
                assert last in [each for each in lines if each][-1]


def test_too_much_at_once_is_told_to_come_again(smollm2: Path) -> None:
    with running(smollm2, queue=2) as server:
        body = {"messages": HELLO, "stream": True, "ignore_eos": True, "max_tokens": 3000}
        with (
            httpx.stream("POST", server.url + CHAT, json=body) as one,
            httpx.stream("POST", server.url + CHAT, json=body) as two,
        ):
            assert one.status_code == two.status_code == 200
            refused = httpx.post(server.url + CHAT, json={"messages": HELLO})
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) > 0
            assert httpx.get(f"{server.url}/health").status_code == 200
        eventually(lambda: working(server) == 0 if httpx.get(f"{server.url}/v1/models").status_code == 200 else False)
        assert httpx.post(server.url + CHAT, json={"messages": HELLO, "max_tokens": 1}).status_code == 200


def test_a_report_of_an_answer_is_kept_by_its_id(server: Running) -> None:
    body = {"model": "smollm2", "messages": HELLO, "max_tokens": 3, "report": True}
    answer = httpx.post(server.url + CHAT, json=body).json()
    report = httpx.get(f"{server.url}/v1/edgellm/reports/{answer['id']}").json()
    assert report["cache"] == answer["edgellm"]["cache"]
    sources = ("from_live", "from_memory", "from_disk", "computed")
    assert sum(report["cache"][name] for name in sources) == answer["usage"]["prompt_tokens"]
    assert httpx.get(f"{server.url}/v1/edgellm/reports/nothing").status_code == 404


def test_what_there_is_is_described(server: Running) -> None:
    description = httpx.get(f"{server.url}/openapi.json").json()
    chat = description["components"]["schemas"]["ChatRequest"]["properties"]
    assert "likeliest" in chat["temperature"]["description"]
    assert chat["min_p"]["anyOf"][0]["type"] == "number"
    assert "/v1/chat/completions" in httpx.get(f"{server.url}/docs").text
    assert "edgellm_requests_total" in httpx.get(f"{server.url}/metrics").text
    assert httpx.head(server.url).status_code == 200
    assert httpx.get(server.url).text == "Ollama is running"
    lost = httpx.get(f"{server.url}/v1/nothing")
    assert lost.status_code == 404
    assert lost.json()["error"]["code"] == "not_found"
    assert httpx.get(server.url + CHAT).status_code == 405


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_refused_is_refused_before_a_stream(server: Running, stream: bool) -> None:
    schema = {"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "("}}}
    wrong: list[dict[str, Any]] = [{"response_format": schema}, {"grammar": "nothing"}, {"logit_bias": {"9999999": 1}}]
    for each in wrong:
        body = {"model": "smollm2", "messages": HELLO, "stream": stream, **each}
        answer = httpx.post(server.url + CHAT, json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
