"""Listening: uvicorn with limits on how slowly a request may come, and how many may be on their way."""

from __future__ import annotations

import asyncio
import math
import socket
from collections import OrderedDict
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from edgellm.errors import ResourceError
from edgellm.serve.settings import ServeParams

try:
    import uvloop
except ImportError:  # Windows, for one
    uvloop = None  # type: ignore[assignment]

HEADER_SECONDS = 10.0  # from the beginning of a connection, or of a request, to the end of its headers
HEAD_BYTES = 64 << 10  # of the line and the headers of a request, and of what stands between pieces of its body
HEADERS = 256
UNREAD_SECONDS = 60.0  # in which a client must read some of an answer that is complete
HALF_OPEN = 128  # connections whose request has not come; beyond that the oldest are closed that have had
GRACE_SECONDS = 1.0  # to send it
BACKLOG = 512

_half_open: OrderedDict[PatientProtocol, float]  # and since when


class PatientProtocol(HttpToolsProtocol):
    """Closes connections on which no request comes, or one whose headers are large, or whose client reads nothing of an
    answer that is written; answers who offers another protocol in this one, and who speaks HTTP/1.0 in what that has.

    A request that is refused before its body has come stays where it is in the connection: what comes is skipped, as
    long as a client may take for headers, and no other request begins in its midst.

    A request that comes before the one in front of it is answered is not heard, and the connection ends behind that
    answer; the client asks again (RFC 9112, 9.3.2). To keep it for later would mean to read no further, and so not to
    see that the client goes.
    """

    _waiting: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None
    _in_head = False
    _deaf = False  # to all that comes
    _unused = 0  # bytes that came since something was made of any

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._unused += len(data)
        self._feed(data)
        if self.transport.is_closing():
            return
        if self._unused > HEAD_BYTES:
            self.send_400_response("The headers are too large.")
        elif (self.cycle is None or self.cycle.response_complete) and self._waiting is None:
            self._wait()  # what came is no request yet

    def _feed(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def on_message_begin(self) -> None:
        self._in_head = True
        self._wait()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Also called for what stands behind a body in pieces, which may not pass for a header."""
        if len(self.headers) >= HEADERS:
            raise ValueError("too many headers")
        if self._in_head:
            super().on_header(name, value)

    def _decline(self, body: bytes) -> None:
        """Read a request again without its offer to go on in another protocol, which the parser takes for its end:
        Java's client offers HTTP/2 with every one. body: what came of that. RFC 9110, section 7.8."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("No proxy.")
            return
        kept = [name + b": " + value + b"\r\n" for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self._feed(b"%s %s HTTP/1.1\r\n%s\r\n%s" % (method, self.url, b"".join(kept), body))

    def on_headers_complete(self) -> None:
        self._in_head, self._unused = False, 0
        self._stop_waiting()
        if self.parser.should_upgrade():
            return
        if self._deaf or (self.cycle is not None and not self.cycle.response_complete):
            self._deaf = True
            self.cycle.keep_alive = False
            return
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            self.cycle.__class__ = _EndedByClosing

    def on_body(self, body: bytes) -> None:
        self._unused = 0
        if not self._deaf:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._unused = 0
        if not self._deaf and not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self._stop_sending()
        self._look_at_sending(math.inf)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_sending()
        super().connection_lost(exc)

    def _look_at_sending(self, left: float) -> None:
        """left: bytes of an answer that were not read when this was looked at before."""
        size = self.transport.get_write_buffer_size()
        if size >= left and self.cycle.response_complete:
            self.transport.abort()
        elif size:
            self._sending = self.loop.call_later(UNREAD_SECONDS, self._look_at_sending, size)

    def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

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


def run(serving: Coroutine[Any, Any, None]) -> None:
    """What `asyncio.run` does, on the loop that takes least of the processor for many small pieces, where it is to be
    had: what answers take from the engine, on few cores, is what writing them costs."""
    if uvloop is None:
        asyncio.run(serving)
    else:
        uvloop.run(serving)
