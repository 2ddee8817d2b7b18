"""Listening: uvicorn with limits on how slowly a request may come, and how many may be on their way."""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edgellm.errors import ResourceError
from edgellm.serve.settings import ServeParams

HEADER_SECONDS = 10.0  # from the beginning of a connection, or of a request, to the end of its headers
HALF_OPEN = 128  # connections whose request has not come; beyond that the oldest are closed that have had
GRACE_SECONDS = 1.0  # to send it
BACKLOG = 512

_half_open: OrderedDict[PatientProtocol, float]  # and since when


class PatientProtocol(HttpToolsProtocol):
    """Closes connections on which no request comes."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def on_message_begin(self) -> None:
        self._wait()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

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
