"""Listening: uvicorn with limits on how slowly a request may come, and how many may be on their way."""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from edgellm.errors import ResourceError
from edgellm.serve.settings import ServeParams

HEADER_SECONDS = 10.0  # from the beginning of a connection, or of a request, to the end of its headers
HALF_OPEN = 128  # connections whose request has not come; beyond that the oldest are closed that have had
GRACE_SECONDS = 1.0  # to send it
BACKLOG = 512

_half_open: OrderedDict[PatientProtocol, float]  # and since when


class PatientProtocol(HttpToolsProtocol):
    """Closes connections on which no request comes; answers who offers another protocol in this one, and who speaks
    HTTP/1.0 in what that has."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def on_message_begin(self) -> None:
        self._wait()
        super().on_message_begin()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def _decline(self, body: bytes) -> None:
        """Read a request again without its offer to go on in another protocol, which the parser takes for its end:
        Java's client offers HTTP/2 with every one. body: what came of that. RFC 9110, section 7.8."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("No proxy.")
            return
        kept = [name + b": " + value + b"\r\n" for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"%s %s HTTP/1.1\r\n%s\r\n%s" % (method, self.url, b"".join(kept), body))

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        if self.parser.should_upgrade():
            return
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            self.cycle.__class__ = _EndedByClosing

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._stop_waiting()
        self._waiting = self.loop.call_later(HEADER_SECONDS, self._give_up)
        now = _half_open[self] = self.loop.time()
        while len(_half_open) > HALF_OPEN:
            oldest, since = next(iter(_half_open.items()))
            if now - since < GRACE_SECONDS:
                break
            oldest._give_up()

    def _stop_waiting(self) -> None:
        _half_open.pop(self, None)
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._stop_waiting()
        self.transport.close()


_half_open = OrderedDict()


class _EndedByClosing(RequestResponseCycle):
    """The answer to a request of HTTP/1.0, which knows no chunks: one that does not say its size ends with the
    connection. RFC 9112, section 6.3."""

    _unsized = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._unsized = not any(name.lower() == b"content-length" for name, _ in message["headers"])
            self.chunked_encoding = False if self._unsized else None
        elif self._unsized:
            self.expected_content_length = len(message.get("body", b""))  # as long as it is
        await super().send(message)


def bound(params: ServeParams) -> socket.socket:
    """A socket that listens. Raises ResourceError where it cannot."""
    family = socket.AF_INET6 if ":" in params.host else socket.AF_INET
    # With its protocol named: asyncio switches Nagle's algorithm off only where it is, and 40 ms a reply are saved.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((params.host, params.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        where = f"{params.host}:{params.port}"
        raise ResourceError(
            f"cannot listen on {where}: {error.strerror or error}; --port 0 takes a free port"
        ) from error
    return listener


def _many_files() -> None:
    """As many connections as the system allows; often no more than 1,024 are by default."""
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 16384 if hard == resource.RLIM_INFINITY else min(hard, 16384)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def server(app: ASGIApp) -> uvicorn.Server:
    """What runs the application on a socket: `await server.serve(sockets=[…])`."""
    _many_files()
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)
