"""What clients send that no other protocol's page speaks of: nulls, odd addresses, schemas of other programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import Running

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Say hello."}],
    "max_tokens": 8,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as found:
        yield found


def chunks(reply: httpx.Response) -> list[Any]:
    assert reply.status_code == 200, reply.text
    data = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return list(map(json.loads, data[:-1]))


def tool(**parameter: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": parameter}, "required": ["a"]}
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


@pytest.mark.parametrize(
    "more",
    [
        {"seed": -7},
        {"seed": -(2**63)},
        {"logprobs": False, "top_logprobs": 0},
        {"keep_alive": "5m"},
        {"keep_alive": -1},
        {"tools": [tool(type="string")], "tool_choice": {"type": "auto"}},
        {"tools": [{"type": "function", "function": {"name": "f", "description": None}}]},
        {
            "tools": [
                {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "required": None}}}
            ]
        },
        {"tools": [{"type": "function", "function": {"name": "3d_" + "x" * 100}}]},
    ],
)
def test_what_other_servers_take_is_taken(client: httpx.Client, more: dict[str, Any]) -> None:
    reply = client.post(CHAT, json={**BODY, **more})
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": "x"}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0]"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
    ],
)
def test_an_error_names_its_field(client: httpx.Client, wrong: dict[str, Any], field: str) -> None:
    assert client.post(CHAT, json={**BODY, **wrong}).json()["error"]["param"] == field


@pytest.mark.parametrize("path", [CHAT, "/api/chat", "/v1/messages"])
def test_a_role_that_nobody_knows_is_refused(client: httpx.Client, path: str) -> None:
    given = {**BODY, "messages": [*BODY["messages"], {"role": "robot", "content": "Hi."}]}
    reply = client.post(path, json=given)
    assert reply.status_code == 400
    assert "messages[1]" in reply.text
    assert "robot" in reply.text


@pytest.mark.parametrize("path", [CHAT, "/api/chat", "/api/generate", "/api/pull", "/v1/messages", "/v1/responses"])
def test_a_request_without_a_body_is_none(client: httpx.Client, path: str) -> None:
    assert client.post(path).status_code == 400


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_chunks_before_the_usage_say_that_there_is_none_yet(client: httpx.Client, path: str) -> None:
    asked = {**BODY, "prompt": "One", "stream": True}
    told = chunks(client.post(path, json={**asked, "stream_options": {"include_usage": True}}))
    assert all(each["usage"] is None for each in told[:-1])
    assert told[-1]["usage"]["total_tokens"] > 0
    assert all("usage" not in each for each in chunks(client.post(path, json=asked)))


@pytest.mark.parametrize(
    "parameter",
    [
        {"type": "integer", "format": "int32"},
        {"type": "string", "nullable": True},
        {"type": "string", "pattern": "^(?!x).*$"},
        {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        {"type": "any", "x-vendor": 1},
        {"$ref": "#/$defs/other"},
    ],
)
def test_tools_of_other_programs_can_be_demanded(client: httpx.Client, parameter: dict[str, Any]) -> None:
    """All of their schema is enforced that can be; a tool that says it is strict is refused instead."""
    asked = tool(**parameter)
    asked["function"]["parameters"]["$defs"] = {"other": {"type": "integer", "x-vendor": 1}}
    given = {**BODY, "max_tokens": 300, "tools": [asked], "tool_choice": "required"}
    choice = client.post(CHAT, json=given).json()["choices"][0]
    if choice["finish_reason"] == "tool_calls":  # a small model may find no end
        assert "a" in json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])
    else:
        assert choice["finish_reason"] == "length"
    asked["function"]["strict"] = True
    reply = client.post(CHAT, json=given)
    assert reply.status_code == 400
    assert "tools: f: schema" in reply.text


def test_functions_are_called_as_before_there_were_tools(client: httpx.Client) -> None:
    parameters = {**tool(enum=[1])["function"]["parameters"], "additionalProperties": False}
    function = {"name": "f", "parameters": parameters}
    asked = {**BODY, "max_tokens": 100, "functions": [function], "function_call": {"name": "f"}}
    choice = client.post(CHAT, json=asked).json()["choices"][0]
    call = choice["message"]["function_call"]
    assert (choice["finish_reason"], call["name"], json.loads(call["arguments"])) == ("function_call", "f", {"a": 1})
    told = chunks(client.post(CHAT, json={**asked, "stream": True}))
    deltas = [each["choices"][0]["delta"] for each in told]
    parts = [delta["function_call"] for delta in deltas if "function_call" in delta]
    assert {name: "".join(part.get(name, "") for part in parts) for name in ("name", "arguments")} == call
    assert told[-1]["choices"][0]["finish_reason"] == "function_call"
    assert not [delta for delta in deltas if "tool_calls" in delta]


def test_a_model_answers_by_the_name_that_it_was_asked_by(client: httpx.Client) -> None:
    assert client.post(CHAT, json=BODY).json()["model"] == "smollm2"
    assert all(each["model"] == "smollm2" for each in chunks(client.post(CHAT, json={**BODY, "stream": True})))
    for path, field in ((CHAT, "messages"), ("/v1/messages", "messages"), ("/v1/responses", "input")):
        asked = {"model": "claude-any", field: BODY["messages"], "max_tokens": 2}
        assert client.post(path, json=asked).json()["model"] == "claude-any"
    assert client.post("/v1/completions", json={**BODY, "prompt": "One"}).json()["model"] == "smollm2"
    embedded = client.post("/v1/embeddings", json={"model": "minilm:latest", "input": "a"}).json()
    assert embedded["model"] == "minilm:latest"


def test_models_are_listed_with_their_other_names(client: httpx.Client) -> None:
    ids = [each["id"] for each in client.get("/v1/models").json()["data"]]
    assert "smollm2" in ids
    assert not [each for each in ids if "*" in each]
    assert client.get("/v1/models/smollm2").json()["id"] == "smollm2"


def test_models_come_in_pages_where_anthropic_has_them_so(client: httpx.Client) -> None:
    headers = {"anthropic-version": "2023-06-01"}
    whole = client.get("/v1/models", headers=headers).json()["data"]
    found, query = [], "limit=1"
    while True:
        page = client.get(f"/v1/models?{query}", headers=headers).json()
        found += page["data"]
        if not page["has_more"]:
            break
        query = f"limit=1&after_id={page['last_id']}"
    assert found == whole
    assert len(whole) > 1
    last = client.get(f"/v1/models?limit=1&before_id={whole[-1]['id']}", headers=headers).json()
    assert last["data"] == [whole[-2]]
    assert last["has_more"] is (len(whole) > 2)
    for wrong in ("limit=0", "limit=x", "after_id=nobody"):
        assert client.get(f"/v1/models?{wrong}", headers=headers).json()["error"]["type"] == "invalid_request_error"
    reply = client.get("/v1/models/nobody", headers=headers)
    assert reply.status_code == 404
    assert reply.json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize("path", ["/v1/models/", "//v1/models", "/api/tags/", "//api/tags", "/v1/models/smollm2/"])
def test_a_slash_too_much_is_none(client: httpx.Client, server: Running, path: str) -> None:
    assert client.get(server.url + path).json() == client.get("/" + path.strip("/")).json()


def test_a_route_says_how_it_can_be_asked(client: httpx.Client) -> None:
    for method, status in (("GET", 405), ("OPTIONS", 204)):
        reply = client.request(method, CHAT)
        assert (reply.status_code, reply.headers["allow"]) == (status, "POST")
    assert client.put("/v1/responses/resp_1").headers["allow"] == "DELETE, GET, HEAD"
    assert client.options("/v1/nothing").status_code == 404


def test_what_is_packed_is_refused(client: httpx.Client) -> None:
    reply = client.post(CHAT, json=BODY, headers={"Content-Encoding": "gzip"})
    assert reply.status_code == 415
    assert "gzip" in reply.text
    assert client.post(CHAT, json=BODY, headers={"Content-Encoding": "identity"}).status_code == 200
