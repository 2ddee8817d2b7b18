"""Endpoint: one route. It reads the request, has a handler answer it, and stops that when the client is gone.

What a handler returns is a Reply, or a Stream whose headers are sent at once. What it raises becomes the dialect's
error: as the reply, or as the last thing in a stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import parse_qsl

import pydantic_core
from pydantic import BaseModel, ValidationError

from edgellm.errors import EdgeLLMError
from edgellm.serve.ask import Answering, Ask
from edgellm.serve.models import Listed
from edgellm.serve.refusal import Refusal, refusal

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from edgellm.serve.state import State

log = logging.getLogger("edgellm.serve")
B = TypeVar("B", bound=BaseModel)

LARGE = 1 << 20  # bytes of a request that is parsed beside the event loop
VALUES = 1 << 19  # in a large request: commas and brackets, those in texts included
FIELDS = 1000  # beside those of a protocol
BODY_SECONDS = 30.0  # in which a request must have come, and one second more for
BODY_BYTES = 64 << 10  # every so many bytes of it
WRITE_SECONDS = 300.0  # that a client may leave an answer unread

JSON = "application/json"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"


@dataclass(frozen=True)
class Reply:
    """body: JSON's kinds, or bytes."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    media: str = JSON


@dataclass(frozen=True)
class Stream:
    """pieces: of the body, as they come. failed: what an error in the midst of them says, for a client to read."""

    pieces: AsyncGenerator[bytes]
    failed: Callable[[Refusal], bytes]
    media: str = EVENTS
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dialect:
    """How a protocol says that a request is refused: the body, and headers that repeat what is in it."""

    name: str
    error: Callable[[Refusal], Any]
    headers: Callable[[Any], Mapping[str, str]] = lambda _body: {}

    def refused(self, why: Refusal) -> Reply:
        body = self.error(why)
        return Reply(body, why.status, {**self.headers(body), **why.headers})


class Call(Generic[B]):
    """One request. body: as its model has it. stack: closed when it is answered, or its client is gone."""

    def __init__(self, state: State, scope: Scope, body: B, stack: AsyncExitStack) -> None:
        self.state = state
        self.body = body
        self.headers: dict[str, str] = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        self.path: Mapping[str, str] = scope.get("path_params", {})
        self.query: Mapping[str, str] = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
        self.method: str = scope["method"]
        self._stack = stack

    def answering(self, listed: Listed, ask: Ask) -> Answering:
        """An answer, whose model stays loaded until this call is over; its completion is counted."""
        answering = Answering(self.state.models, listed, ask, self._stack)
        answering.followers.append(self.state.metrics.answered)
        return answering


Handler = Callable[[Call[B]], Awaitable[Reply | Stream]]


class Empty(BaseModel):
    """The body of a request that has none."""


class Endpoint(Generic[B]):
    """An ASGI application for one route. path: as it is written there. dialect: how a request is refused. kind: what
    its body must be."""

    def __init__(
        self, state: State, path: str, dialect: Callable[[Scope], Dialect], kind: type[B], handler: Handler[B]
    ) -> None:
        self._state = state
        self.path = path
        self.dialect = dialect
        self.kind = kind
        self.handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client goes before."""
        response = _Response(send, scope["method"] == "HEAD")
        async with AsyncExitStack() as stack:
            try:
                with self._state.receiving() as hold:
                    body = await self._read(receive, hold)
                    with self._state.counted(scope["path"]):
                        call = Call(self._state, scope, body, stack)
                        await _unless_gone(self._answer(call, response), receive)
            except asyncio.CancelledError:  # the server ends; a stream that has begun is cut off
                if not response.status:
                    ending = Refusal(503, "the server is about to end", "unloaded")
                    await self._refuse(response, ending, self.dialect(scope))
            except Exception as error:
                await self._refuse(response, error, self.dialect(scope))
            finally:
                self._state.metrics.replied(self.path, response.status)

    async def _read(self, receive: Receive, hold: Callable[[int], None]) -> B:
        if self.kind is Empty:
            return self.kind()
        raw = await _body(receive, hold)
        if len(raw) > LARGE:
            return await asyncio.to_thread(parsed, self.kind, raw)
        return parsed(self.kind, raw)

    async def _answer(self, call: Call[B], response: _Response) -> None:
        answer = await self.handler(call)
        if isinstance(answer, Reply):
            await response.whole(answer)
            return
        async with aclosing(answer.pieces) as pieces:
            await response.start(200, {"Content-Type": answer.media, "X-Accel-Buffering": "no", **answer.headers})
            try:
                async for piece in pieces:
                    await response.write(piece)
            except Exception as error:
                _log(error)
                await response.write(answer.failed(refusal(error)))
            await response.end()

    async def _refuse(self, response: _Response, error: Exception, dialect: Dialect) -> None:
        if isinstance(error, _Gone):
            return
        if response.status:  # it has begun: the connection is closed, so that nobody takes this for all of it
            raise error
        why = refusal(error)
        if why.status >= 500:
            _log(error)
        with suppress(_Gone):
            await response.whole(dialect.refused(why))


def _log(error: Exception) -> None:
    if isinstance(error, EdgeLLMError):
        log.warning("a request failed: %s", error)
    elif not isinstance(error, Refusal):
        log.error("a request failed", exc_info=error)


class _Gone(Exception):
    """The client is."""


async def _body(receive: Receive, hold: Callable[[int], None]) -> bytes:
    """The request's body. Its size is the guard's to limit. hold: is told what comes. Raises Refusal for one that comes
    too slowly."""
    loop = asyncio.get_running_loop()
    parts, size, until = list[bytes](), 0, loop.time() + BODY_SECONDS
    while True:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, until + size / BODY_BYTES - loop.time()))
        except asyncio.TimeoutError:
            raise Refusal(408, "the request did not come in time", "timeout", headers={"Connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise _Gone
        parts.append(message.get("body", b""))
        hold(len(parts[-1]))
        size += len(parts[-1])
        if not message.get("more_body"):
            return b"".join(parts)


def parsed(kind: type[B], raw: bytes) -> B:
    """Raises Refusal, with the field that is wrong. What is nested too deep is refused by the parser; of many values,
    which nobody else gets to run beside and which take a hundred times their size, none are made."""
    if len(raw) > LARGE and sum(map(raw.count, (b",", b"[", b"{"))) > VALUES:
        raise Refusal(413, f"the request has more than {VALUES:,} values", "request_too_large")
    try:
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        raise invalid(error) from None
    if len(body.model_extra or ()) > FIELDS:
        raise Refusal(400, f"the request has more than {FIELDS:,} fields that nobody here knows", "invalid_value")
    return body


def invalid(error: ValidationError) -> Refusal:
    """What is wrong with a request, in words."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    said = f"{where}: {first['msg']}" if where else f"the request is not what it should be: {first['msg']}"
    code = "invalid_json" if first["type"] == "json_invalid" else "invalid_value"
    return Refusal(400, said[:500], code, where.split(".")[0] or None)


async def _unless_gone(work: Any, receive: Receive) -> None:
    """Wait for `work`; cancel it when the client goes. Raises _Gone then."""
    answer = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise _Gone
        await answer
    finally:
        for task in (answer, gone):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Response:
    """What goes back. status: once it has begun; 0 before."""

    def __init__(self, send: Send, bodyless: bool) -> None:
        self.status = 0
        self._loop = asyncio.get_running_loop()
        self._stuck = False  # nobody reads what is written
        self._send = send
        self._bodyless = bodyless

    async def whole(self, reply: Reply) -> None:
        body = reply.body if isinstance(reply.body, bytes) else dumped(reply.body)
        await self.start(reply.status, {"Content-Type": reply.media, "Content-Length": str(len(body)), **reply.headers})
        await self._put(b"" if self._bodyless else body, more=False)

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        listed = [(key.lower().encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": listed})

    async def write(self, piece: bytes) -> None:
        await self._put(piece, more=True)

    async def end(self) -> None:
        await self._put(b"", more=False)

    async def _put(self, body: bytes, *, more: bool) -> None:
        timer = self._loop.call_later(WRITE_SECONDS, self._give_up, asyncio.current_task())  # wait_for costs a task
        try:
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
        except (asyncio.CancelledError, OSError) as error:
            if self._stuck or isinstance(error, OSError):
                raise _Gone from None
            raise
        finally:
            timer.cancel()

    def _give_up(self, task: asyncio.Task[Any] | None) -> None:
        self._stuck = True
        if task is not None:
            task.cancel()


def dumped(value: Any) -> bytes:
    """JSON, as UTF-8. Numbers that JSON has not become null."""
    return pydantic_core.to_json(value, inf_nan_mode="null")


def event(data: Any, name: str = "") -> bytes:
    """A server-sent event. https://html.spec.whatwg.org/multipage/server-sent-events.html"""
    head = f"event: {name}\n".encode() if name else b""
    return b"%sdata: %s\n\n" % (head, data if isinstance(data, bytes) else dumped(data))


def comment(text: str) -> bytes:
    """A comment in a stream of events, which clients skip."""
    return f": {text}\n\n".encode()


def line(data: Any) -> bytes:
    """A line of JSON."""
    return dumped(data) + b"\n"
