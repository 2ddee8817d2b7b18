"""The socket that is listened on."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest
from serving import Running

from edgellm.serve import listen
from edgellm.serve.listen import bound
from edgellm.serve.settings import ServeParams


def test_small_pieces_are_sent_at_once() -> None:
    async def without_delay() -> int:
        found = asyncio.get_running_loop().create_future()

        def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with bound(ServeParams(port=0)) as listener:
            server = await asyncio.start_server(connected, sock=listener)
            _, writer = await asyncio.open_connection(*listener.getsockname())
            nodelay: int = await found
            writer.close()
            await writer.wait_closed()
            server.close()
            await server.wait_closed()
        return nodelay

    assert asyncio.run(without_delay())


def answered(server: Running, sent: bytes, *more: bytes) -> bytes:
    """All that comes back until the server closes, for a request that comes in pieces."""
    with closing(socket.create_connection(("127.0.0.1", server.port), 30)) as connection:
        connection.sendall(sent)
        for piece in more:
            time.sleep(0.05)
            connection.sendall(piece)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def request(headers: str, *, version: str = "1.1", **more: Any) -> tuple[bytes, bytes]:
    """A request for an answer: its head and its body."""
    asked = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 2, **more}
    body = json.dumps(asked).encode()
    about = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return f"POST /v1/chat/completions HTTP/{version}\r\n{about}".encode(), body


@pytest.mark.parametrize("stream", [False, True])
def test_in_http_1_0_an_answer_ends_with_the_connection(server: Running, stream: bool) -> None:
    head, _, body = answered(server, b"".join(request("", version="1.0", stream=stream))).partition(b"\r\n\r\n")
    assert b" 200 " in head
    assert b"chunked" not in head
    if stream:
        assert body.startswith(b"data: ")
        assert body.endswith(b"data: [DONE]\n\n")
    else:
        assert json.loads(body)["object"] == "chat.completion"


OFFER = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"


@pytest.mark.parametrize("apart", [False, True])
def test_who_offers_another_protocol_is_answered_in_this_one(server: Running, apart: bool) -> None:
    """As Java's client does with its first request; the next one comes on the same connection."""
    head, body = request(OFFER)
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.connect()
        assert connection.sock is not None
        socket_of = connection.sock
        for piece in (head, body[:9], body[9:]) if apart else (head + body,):
            connection.sock.sendall(piece)
            time.sleep(0.05 * apart)
        answer = HTTPResponse(connection.sock, method="POST")
        answer.begin()
        assert answer.status == 200
        assert json.loads(answer.read())["object"] == "chat.completion"
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        assert connection.sock is socket_of


def test_the_server_is_no_proxy(server: Running) -> None:
    assert b" 400 " in answered(server, b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n")


def test_the_event_loop_is_the_one_that_takes_least(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    async def look() -> None:
        seen.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])

    listen.run(look())
    monkeypatch.setattr(listen, "uvloop", None)
    listen.run(look())
    assert seen == ["asyncio" if sys.platform == "win32" else "uvloop", "asyncio"]
