"""What a hostile page, client or request may not do: over sockets, as it would come."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Running, running

from edgellm.serve import listen

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 2}


@pytest.fixture(scope="module")
def locked(smollm2: Path) -> Iterator[Running]:
    """A server with a key, and one origin that may ask."""
    with running(smollm2, alias=(f"smollm2={smollm2}",), api_key="right", origin=("app://obsidian.md",)) as found:
        yield found


def raw(server: Running, sent: bytes, *, wait: float = 10) -> bytes:
    """What comes back for bytes, until the server closes or nothing comes."""
    with closing(socket.create_connection(("127.0.0.1", server.port), wait)) as connection:
        connection.sendall(sent)
        found = b""
        try:
            while piece := connection.recv(1 << 16):
                found += piece
                if b"Connection: close" not in sent and found.count(b"\r\n0\r\n\r\n"):
                    break
        except (TimeoutError, ConnectionError):
            pass
        return found


def request(path: str, headers: dict[str, str], body: bytes = b"", method: str = "POST") -> bytes:
    head = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in {**head, "Connection": "close"}.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else 0


ASKED = json.dumps(BODY).encode()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:11435", "127.0.0.1.evil.example", "", "localhost@evil"])
def test_a_name_that_is_rebound_is_refused(locked: Running, host: str) -> None:
    key = {"Authorization": "Bearer right"}
    assert status(raw(locked, request(CHAT, {**key, "Host": host or "\t"}, ASKED))) in (400, 403)
    assert status(raw(locked, request("/v1/models", {**key, "Host": host or "\t"}, method="GET"))) in (400, 403)
    for mine in ("localhost", "127.0.0.1:1", "[::1]:99", "LOCALHOST:11435"):
        assert status(raw(locked, request("/v1/models", {**key, "Host": mine}, method="GET"))) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "app://obsidian.md.evil"},
    ],
)
def test_pages_of_others_may_not_ask(locked: Running, headers: dict[str, str]) -> None:
    key = {"Authorization": "Bearer right"}
    for path, method in ((CHAT, "POST"), ("/v1/models", "GET"), ("/api/tags", "GET"), ("/", "GET"), (CHAT, "OPTIONS")):
        answer = raw(locked, request(path, {**key, **headers}, ASKED if method == "POST" else b"", method))
        assert status(answer) == 403
        assert b"access-control-allow-origin" not in answer.lower()


def test_a_page_that_was_allowed_by_name_may_ask(locked: Running) -> None:
    origin = {"Origin": "app://obsidian.md", "Sec-Fetch-Site": "cross-site"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    answer = raw(locked, request(CHAT, {**origin, **asked}, method="OPTIONS")).lower()
    assert status(answer.upper()) == 204
    assert b"access-control-allow-origin: app://obsidian.md" in answer
    assert b"access-control-allow-headers: authorization,content-type" in answer
    assert status(raw(locked, request(CHAT, {**origin, "Authorization": "Bearer right"}, ASKED))) == 200
    assert status(raw(locked, request(CHAT, origin, ASKED))) == 401


def test_the_own_page_may_ask_and_can_be_visited(locked: Running) -> None:
    own = {"Origin": f"http://localhost:{locked.port}", "Host": f"localhost:{locked.port}"}
    assert status(raw(locked, request(CHAT, {**own, "Authorization": "Bearer right"}, ASKED))) == 200
    visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert status(raw(locked, request("/", visit, method="GET"))) == 200


@pytest.mark.parametrize("media", ["text/plain", "multipart/form-data", "application/xml"])
def test_what_a_form_can_send_is_refused(locked: Running, media: str) -> None:
    headers = {"Authorization": "Bearer right", "Content-Type": media}
    assert status(raw(locked, request(CHAT, headers, ASKED))) == 415


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer ", "Bearer wrong", "Bearer right2", "Basic right", "right"])
def test_a_wrong_key_opens_nothing(locked: Running, key: str) -> None:
    for path in ("/v1/models", "/openapi.json", "/docs", "/metrics", "/v1/edgellm/status", "/api/tags"):
        answer = raw(locked, request(path, {"Authorization": key}, method="GET"))
        assert status(answer) == 401
        assert b"smollm2" not in answer.lower()
    assert status(raw(locked, request("/v1/models", {"Authorization": key, "x-api-key": "right"}, method="GET"))) == 200
    assert status(raw(locked, request("/health", {}, method="GET"))) == 200


def test_answers_are_harmless_in_a_browser(server: Running) -> None:
    for path in ("/v1/models", "/docs", "/nothing", "/"):
        headers = httpx.get(server.url + path, headers={"Accept": "text/html"}).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"


def test_a_size_beyond_the_limit_is_refused_at_the_header(server: Running) -> None:
    sent = request(CHAT, {"Content-Length": str(1 << 30)})
    started = time.monotonic()
    assert status(raw(server, sent)) == 413
    assert time.monotonic() - started < 8  # nothing was waited for


def test_pieces_beyond_the_limit_are_refused_too(smollm2: Path) -> None:
    with running(smollm2, max_body=4096) as small:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        pieces = b"400\r\n" + b"x" * 1024 + b"\r\n"
        sent = head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + pieces * 8 + b"0\r\n\r\n"
        assert status(raw(small, sent)) == 413


@pytest.mark.parametrize(
    "wrong",
    [
        b"[" * 100_000,
        b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages":[{"role":"user","content":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}]}",
        b'{"model": "smollm2"',
        b"\xff\xfe",
        b"null",
        b'{"messages": 1e999}',
    ],
)
def test_json_that_is_none_is_refused(server: Running, wrong: bytes) -> None:
    assert status(raw(server, request(CHAT, {}, wrong))) == 400
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_request_inside_of_another_is_none(server: Running) -> None:
    inner = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for lengths in (
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Content-Length: +5\r\n",
    ):
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{lengths}\r\n"
        answer = raw(server, f"{head}0\r\n\r\n{inner}".encode(), wait=3)
        assert answer.count(b"HTTP/1.1 ") <= 1
        assert b"smollm2" not in answer.lower()
        assert status(answer) in (0, 400, 411, 501)


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "..", "file:///etc/passwd", "http://169.254.169.254/x", "\\\\host\\share"],
)
def test_names_of_models_reach_no_file_and_no_network(server: Running, name: str) -> None:
    answer = httpx.post(server.url + CHAT, json={**BODY, "model": name})
    assert answer.status_code == 404
    assert "there are:" in answer.json()["error"]["message"]
    assert "root:" not in answer.text


def test_links_lead_to_no_model_outside_of_a_folder(smollm2: Path, tmp_path: Path) -> None:
    folder, secret = tmp_path / "models", tmp_path / "secret"
    folder.mkdir()
    secret.mkdir()
    (secret / "mine.gguf").write_bytes(b"GGUF")
    (folder / "link.gguf").symlink_to(secret / "mine.gguf")
    (folder / "here.gguf").symlink_to(folder / "gone.gguf")
    with running(smollm2, folder=(str(folder),)) as found:
        names = [each["id"] for each in httpx.get(f"{found.url}/v1/models").json()["data"]]
        assert names == [smollm2.stem]
        for name in ("link", "../secret/mine", str(secret / "mine.gguf"), str(folder / ".." / "secret" / "mine.gguf")):
            assert httpx.post(found.url + CHAT, json={**BODY, "model": name}).status_code == 404


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/x.png", "file:///etc/passwd", "data:image/png;base64,AAAA"])
def test_pictures_are_not_fetched(server: Running, address: str) -> None:
    content = [{"type": "image_url", "image_url": {"url": address}}]
    answer = httpx.post(server.url + CHAT, json={**BODY, "messages": [{"role": "user", "content": content}]})
    assert answer.status_code == 400
    assert "image_url" in answer.json()["error"]["message"]


def test_half_open_connections_hold_nobody_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "HEADER_SECONDS", 2.0)
    with ExitStack() as stack:
        opened = [
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", server.port)))) for _ in range(200)
        ]
        for at, each in enumerate(opened):
            if at % 2:
                each.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: local")
        assert httpx.post(server.url + CHAT, json=BODY, timeout=30).status_code == 200
        for each in opened:  # all are closed by the server
            each.settimeout(20)
            with suppress(ConnectionError):
                assert each.recv(1000) == b""


def test_a_body_that_trickles_is_given_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgellm.serve import endpoint

    monkeypatch.setattr(endpoint, "BODY_SECONDS", 0.5)
    with closing(socket.create_connection(("127.0.0.1", server.port), 20)) as connection:
        connection.sendall(request(CHAT, {"Content-Length": "1000"}))
        for _ in range(3):
            connection.sendall(b"{")
            time.sleep(0.2)
        assert status(connection.recv(1000)) == 408


BOMBS: dict[str, dict[str, Any]] = {
    "enum": {"enum": [f"value {n}" for n in range(100_000)]},
    "oneOf": {"oneOf": [{"type": "object", "properties": {f"a{n}": {"minLength": n}}} for n in range(3000)]},
    "deep": {"$ref": "#/$defs/a0", "$defs": {f"a{n}": {"items": {"$ref": f"#/$defs/a{n + 1}"}} for n in range(5000)}},
    "repeat": {"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"},
    "product": {"allOf": [{"anyOf": [{"minLength": n}, {"minimum": n}, {"minItems": n}]} for n in range(12)]},
}


@pytest.mark.parametrize("name", [*BOMBS, "regex", "grammar"])
def test_forms_that_explode_stall_nobody_else(server: Running, name: str) -> None:
    form: dict[str, Any] = {
        "regex": {"regex": "(((x+)+)+)+" + "(a|aa|aaa){1,500}" * 20},
        "grammar": {"grammar": "start: " + " ".join("(a|b)" for _ in range(3000)) + '\na: "a"+\nb: "b"+\n'},
    }.get(name, {"response_format": {"type": "json_schema", "json_schema": {"schema": BOMBS.get(name)}}})
    ended: list[int] = []

    def bomb() -> None:
        ended.append(httpx.post(server.url + CHAT, json={**BODY, **form}, timeout=120).status_code)

    threads = [threading.Thread(target=bomb) for _ in range(3)]
    for thread in threads:
        thread.start()
    answered = 0
    while any(thread.is_alive() for thread in threads) or not answered:
        assert httpx.post(server.url + CHAT, json=BODY, timeout=10).status_code == 200
        answered += 1
    assert set(ended) <= {200, 400, 422}
    assert len(ended) == 3


def test_a_refusal_leaves_no_request_behind(server: Running, locked: Running) -> None:
    """What was sent with a request that is refused at its headers is its body, not the next request."""
    inner = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    refused: list[tuple[Running, str, dict[str, str]]] = [
        (locked, CHAT, {}),
        (server, CHAT, {"Host": "evil.example"}),
        (server, CHAT, {"Origin": "https://evil.example"}),
        (server, CHAT, {"Content-Type": "text/plain"}),
        (server, "/nothing", {}),
        (server, "/v1/models", {}),
        (server, "/v1/edgellm/unload/nothing", {}),
    ]
    for where, path, headers in refused:
        sent = request(path, headers, inner * 3).replace(b"Connection: close\r\n", b"", 1)
        with closing(socket.create_connection(("127.0.0.1", where.port), 10)) as connection:
            connection.sendall(sent)
            answer = connection.recv(1 << 16)
            connection.sendall(inner)
            while piece := connection.recv(1 << 16):
                answer += piece
        assert answer.count(b"HTTP/1.1 ") == 2
        assert answer.count(b"HTTP/1.1 200") == 1


def test_a_refused_request_that_never_ends_is_given_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "HEADER_SECONDS", 1.0)
    get = request("/health", {}, method="GET").replace(b"Connection: close\r\n", b"")
    beginnings = {
        b"x": request("/nothing", {"Content-Length": "100000"}).replace(b"Connection: close\r\n", b""),
        b"\r\n": get,  # no request begins with it
    }
    for trickle, sent in beginnings.items():
        with closing(socket.create_connection(("127.0.0.1", server.port), 20)) as connection:
            connection.sendall(sent)
            assert connection.recv(1 << 16)
            with suppress(ConnectionError):
                for _ in range(100):
                    connection.sendall(trickle)
                    time.sleep(0.1)
                pytest.fail("it is still open")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1_000_000,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 300 + b"\r\n",
        b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"a" * 1_000_000,
        b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 200_000,
    ],
)
def test_headers_are_of_a_limited_size(server: Running, sent: bytes) -> None:
    with closing(socket.create_connection(("127.0.0.1", server.port), 10)) as connection, suppress(ConnectionError):
        connection.sendall(sent)
        while connection.recv(1 << 16):
            pass
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_what_stands_behind_a_body_is_no_header(locked: Running) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    body = b"%x\r\n%s\r\n0\r\nAuthorization: Bearer right\r\n\r\n" % (len(ASKED), ASKED)
    assert status(raw(locked, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + body)) == 401


def test_headers_that_come_twice_are_none_of_what_is_allowed(server: Running) -> None:
    for twice in (
        f"Origin: https://evil.example\r\nOrigin: {server.url}",
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Site: none",
    ):
        head = f"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nConnection: close\r\n{twice}\r\n\r\n"
        assert status(raw(server, head.encode())) == 403


def test_without_the_key_nothing_is_told(locked: Running) -> None:
    assert httpx.get(f"{locked.url}/health").json() == {"status": "ok"}


@pytest.mark.parametrize("close", [b"Connection: close\r\n", b""])
def test_an_answer_that_nobody_reads_is_given_up(
    server: Running, monkeypatch: pytest.MonkeyPatch, close: bytes
) -> None:
    monkeypatch.setattr(listen, "UNREAD_SECONDS", 0.5)
    body = json.dumps({"model": "minilm", "input": ["x"] * 1500}).encode()
    sent = request("/v1/embeddings", {}, body).replace(b"Connection: close\r\n", close)
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.settimeout(60)
        connection.sendall(sent)
        head = connection.recv(600)
        time.sleep(2)
        whole, got = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]), len(head)
        with suppress(ConnectionError):
            while piece := connection.recv(1 << 20):
                got += len(piece)
    assert got < whole  # what was on its way; then the connection is reset


def test_bodies_together_are_of_a_limited_size(smollm2: Path) -> None:
    with running(smollm2, max_body=1 << 20, alias=(f"smollm2={smollm2}",)) as small, ExitStack() as stack:
        for _ in range(4):
            each = stack.enter_context(closing(socket.create_connection(("127.0.0.1", small.port), 20)))
            each.sendall(request(CHAT, {"Content-Length": str(1 << 20)}) + b" " * ((1 << 20) - 1))
        deadline = time.monotonic() + 20
        while httpx.post(small.url + CHAT, json=BODY).status_code != 429:
            assert time.monotonic() < deadline
        stack.close()
        while httpx.post(small.url + CHAT, json=BODY).status_code != 200:
            assert time.monotonic() < deadline


def test_requests_on_their_way_take_nobodys_turn(smollm2: Path) -> None:
    with running(smollm2, queue=2, alias=(f"smollm2={smollm2}",)) as small, ExitStack() as stack:
        for _ in range(20):
            each = stack.enter_context(closing(socket.create_connection(("127.0.0.1", small.port), 20)))
            each.sendall(request(CHAT, {"Content-Length": "1000"}) + b"{")
        assert httpx.post(small.url + CHAT, json=BODY, timeout=30).status_code == 200


TEXT = {"type": "text", "text": "y" * 50}
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}] * 20_000}
QUADRATIC: dict[str, tuple[str, dict[str, Any]]] = {
    "durations": ("/api/chat", {**BODY, "keep_alive": "1" * 1_000_000 + "x"}),
    "stop": (CHAT, {**BODY, "stop": ["a" * 8_000_000]}),
    "fields": (CHAT, {**BODY, **{f"f{n}": 0 for n in range(100_000)}}),
    "values": (CHAT, {**BODY, "messages": [{}] * 1_000_000}),
    "blocks": ("/v1/messages", {**BODY, "messages": [{"role": "user", "content": [TEXT] * 100_000}]}),
    "roles": (CHAT, {**BODY, "messages": [{"role": "user", "content": "y" * 300}] * 60_000}),
    "calls": (
        "/api/chat",
        {"messages": [BODY["messages"][0], CALLED, *[{"role": "tool", "tool_name": "z", "content": ""}] * 20_000]},
    ),
    "items": (
        "/v1/responses",
        {
            "input": [
                {"role": "user", "content": "x"},
                {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
                *[{"role": "assistant", "content": "y" * 50}] * 50_000,
            ]
        },
    ),
}


@pytest.mark.parametrize("name", QUADRATIC)
def test_nothing_takes_the_square_of_its_size(server: Running, name: str) -> None:
    """Each of them held the event loop or a thread of those that make prompts for a minute and longer."""
    path, body = QUADRATIC[name]
    asked = {"model": "smollm2", "stream": False, **body}
    assert httpx.post(server.url + path, json=asked, timeout=30).status_code in (400, 413)


def test_one_item_is_referred_to_once(server: Running) -> None:
    asked = {"model": "smollm2", "input": "word " * 500, "max_output_tokens": 1}
    response = httpx.post(f"{server.url}/v1/responses", json=asked, timeout=60).json()
    item = response["output"][0]["id"]
    for path in ("/v1/responses", "/v1/responses/input_tokens"):
        for count, expected in ((1, 200), (2, 400)):
            references = [{"role": "user", "content": "x"}, *[{"type": "item_reference", "id": item}] * count]
            body = {"model": "smollm2", "input": references, "max_output_tokens": 1}
            assert httpx.post(server.url + path, json=body, timeout=60).status_code == expected


def test_names_given_to_models_are_few_and_plain(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgellm.serve import models

    monkeypatch.setattr(models, "COPIES", 3)
    with running(smollm2) as found:
        for name, expected in (("a", 200), ("b", 200), ("\x1b[2J", 400), ("c", 200), ("d", 400), ("a", 200)):
            copy = {"source": smollm2.stem, "destination": name}
            assert httpx.post(f"{found.url}/api/copy", json=copy).status_code == expected


@pytest.mark.parametrize("keep", ["NaN", "Infinity", "1e308", '"nan"', '"1e300h"', "-1e308", "0"])
def test_any_keep_alive_leaves_the_list_of_models_whole(minilm: Path, keep: str) -> None:
    with running(folder=(str(minilm.parent),)) as found:
        for path in ("/api/embed", "/v1/embeddings"):
            body = f'{{"model": "{minilm.stem}", "input": "x", "keep_alive": {keep}}}'.encode()
            answer = httpx.post(found.url + path, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code in (200, 400)
        assert httpx.get(f"{found.url}/api/ps").status_code == 200
        assert httpx.get(f"{found.url}/v1/edgellm/status").status_code == 200


def test_the_end_of_the_server_is_an_answer(smollm2: Path, caplog: pytest.LogCaptureFixture) -> None:
    found: list[int] = []
    asked = {"messages": BODY["messages"], "max_tokens": 8000, "logit_bias": {"2": -1000}, "n": 8}
    with running(smollm2) as ending:

        def ask() -> None:
            found.append(httpx.post(ending.url + CHAT, json=asked, timeout=120).status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        deadline = time.monotonic() + 30
        while not httpx.get(f"{ending.url}/v1/edgellm/status").json()["requests"]["running"]:
            assert time.monotonic() < deadline
    thread.join(30)
    assert found == [503]
    assert not [each for each in caplog.records if each.exc_info]


def test_a_client_that_asks_on_and_goes_is_seen_to_go(server: Running) -> None:
    asked = {"model": "smollm2", "messages": BODY["messages"], "max_tokens": 8000, "logit_bias": {"2": -1000}}
    sent = request(CHAT, {}, json.dumps(asked).encode()).replace(b"Connection: close\r\n", b"")

    def running_now() -> int:
        return int(httpx.get(f"{server.url}/v1/edgellm/status").json()["requests"]["running"])

    deadline = time.monotonic() + 60
    with closing(socket.create_connection(("127.0.0.1", server.port), 10)) as connection:
        connection.sendall(sent)
        while not running_now():
            assert time.monotonic() < deadline
        connection.sendall(sent)
        time.sleep(0.3)
    ended = time.monotonic() + 8  # all of it takes far longer
    while running_now():
        assert time.monotonic() < ended


def test_of_two_requests_at_once_the_first_is_answered(server: Running) -> None:
    sent = request("/health", {}, method="GET").replace(b"Connection: close\r\n", b"")
    assert raw(server, sent * 3).count(b"HTTP/1.1 200") == 1
