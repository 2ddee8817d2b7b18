"""JSON lines with the process that started this one, in place of a port: docs/stdio.md is the protocol.

stdin ──▶ pipes ──▶ Session.take ──▶ a task for each request ──▶ Answering ──▶ Model
stdout ◀── pipes ◀── events: progress, chunk, done, result, error ◀──┘
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import pydantic_core
from pydantic import ValidationError

from edgellm import Chunk, Completion, __version__
from edgellm.errors import EdgeLLMError, Unsupported
from edgellm.serve.ask import Answering, Ask, Waiting
from edgellm.serve.endpoint import LARGE, invalid, line
from edgellm.serve.models import Listed, Models, load_named
from edgellm.serve.openai import wire
from edgellm.serve.openai.chat import ChatRequest, ask_of
from edgellm.serve.openai.completions import CompletionRequest, asks_of
from edgellm.serve.openai.embeddings import EmbeddingRequest, embedded
from edgellm.serve.openai.rerank import RerankRequest, reranked
from edgellm.serve.options import Request
from edgellm.serve.ours import models_of, status_of
from edgellm.serve.pipes import Output, read
from edgellm.serve.refusal import Refusal, busy, refusal
from edgellm.serve.settings import Serving

log = logging.getLogger("edgellm.serve")
R = TypeVar("R", bound=Request)

PROTOCOL = 1
GRACE_SECONDS = 10.0  # for what runs to end when all does; then the process ends with it
WRITE_SECONDS = 2.0  # for the last lines to be read

Last = tuple[str, dict[str, Any]]
"""The event that ends a request, and what it carries."""


class ModelRequest(Request):
    """Of load and unload."""

    model: str | None = None
    keep_alive: float | None = None


class Empty(Request):
    """Of what takes no parameters."""


@dataclass(eq=False)
class Running:
    """A request that is being answered. cancelled: by the other side. ending: its last event is on its way."""

    id: str
    task: asyncio.Task[None] | None = None
    answering: Answering | None = None
    cancelled: bool = False
    ending: bool = False

    def cancel(self) -> None:
        """End it, with what there is of it by now."""
        if self.ending or self.task is None:
            return
        self.cancelled = True
        if self.answering is not None:
            self.answering.cancel.cancel()
        if self.answering is None or not self.answering.ready:
            self.task.cancel()


class Session:
    """What one process asks another. end: is called when it wants no more."""

    def __init__(self, models: Models, output: Output, end: Callable[[], None]) -> None:
        self._models = models
        self._output = output
        self._end = end
        self._running: dict[str, Running] = {}
        self._methods = {
            "chat": self._chat,
            "complete": self._complete,
            "embed": self._embed,
            "rerank": self._rerank,
            "models": self._list,
            "status": self._status,
            "load": self._load,
            "unload": self._unload,
            "shutdown": self._shutdown,
        }

    async def hello(self) -> None:
        """The first line."""
        names = [each.name for each in self._models.listed()]
        await self._output.put(line({"protocol": PROTOCOL, "edgellm": __version__, "models": names}))

    async def take(self, text: bytes | None) -> None:
        """Begin what a line asks for; None: one that is too long."""
        id: str | None = None
        try:
            if text is None:
                most = self._models.serving.params.max_body
                raise Refusal(
                    413, f"the line is longer than {most} bytes, the most that --max-body allows", "too_large"
                )
            if not text.strip():
                return
            asked = await asyncio.to_thread(_parsed, text) if len(text) > LARGE else _parsed(text)
            if not isinstance(asked.get("id"), str):
                raise Refusal(400, "id: must be a string", "invalid_value", "id")
            id = asked["id"]
            self._begin(id, asked.get("method"), asked.get("params", {}))
        except Refusal as why:
            await self._tell(id, "error", _said(why))

    def _begin(self, id: str, method: Any, params: Any) -> None:
        if method == "cancel":  # of what has ended meanwhile there is nothing to say
            if id in self._running:
                self._running[id].cancel()
            return
        if id in self._running:
            raise Refusal(409, f"a request with the id {id[:100]!r} is running; it goes on", "id_in_use", "id")
        work = self._methods.get(method) if isinstance(method, str) else None
        if work is None:
            there = ", ".join([*self._methods, "cancel"])
            raise Refusal(
                404, f"there is no method {str(method)[:100]!r}; there are: {there}", "unknown_method", "method"
            )
        if not isinstance(params, dict):
            raise Refusal(400, "params: must be an object", "invalid_value", "params")
        if len(self._running) >= self._models.serving.params.queue and method != "shutdown":
            raise busy(f"{len(self._running)} requests are being answered; try again later")
        running = self._running[id] = Running(id)
        running.task = asyncio.create_task(self._run(running, work(running, params)))

    async def _run(self, running: Running, work: Any) -> None:
        try:
            last: Last = await work
        except asyncio.CancelledError:
            if not running.cancelled:
                raise
            last = "done", _nothing()
        except Exception as error:
            if not isinstance(error, (EdgeLLMError, Refusal)):
                log.error("a request failed", exc_info=error)
            last = "error", _said(refusal(error))
        running.ending = True
        await self._tell(running.id, *last)
        del self._running[running.id]

    async def _tell(self, id: str | None, event: str, about: dict[str, Any]) -> None:
        await self._output.put(line({"id": id, "event": event, **about}))

    def cancel_all(self) -> None:
        """End every request, each with its last event."""
        for each in list(self._running.values()):
            each.cancel()

    async def close(self) -> None:
        """End every request without a word."""
        tasks = [each.task for each in self._running.values() if each.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # The methods

    async def _chat(self, running: Running, params: dict[str, Any]) -> Last:
        body = _checked(ChatRequest, params)
        if body.n not in (None, 1):
            raise Unsupported(f"n={body.n}: a request has one answer; send more of them, with seeds of their own")
        return await self._answer(running, body, self._models.find(body.model), ask_of(body))

    async def _complete(self, running: Running, params: dict[str, Any]) -> Last:
        body = _checked(CompletionRequest, params)
        asks = asks_of(body)
        if len(asks) != 1:
            raise Unsupported(f"a request has one answer, and this asks for {len(asks)}; send more of them")
        if body.echo:
            raise Unsupported("echo: the prompt is not repeated here; leave it out")
        return await self._answer(running, body, self._models.find(body.model), asks[0])

    async def _answer(self, running: Running, body: ChatRequest | CompletionRequest, listed: Listed, ask: Ask) -> Last:
        stream = body.stream is not False
        async with AsyncExitStack() as stack:
            answering = running.answering = Answering(self._models, listed, ask, stack)
            await answering.begin(stream=True)  # for signs of life, whoever wants the pieces
            async with aclosing(answering.events()) as events:
                async for event in events:
                    if isinstance(event, Waiting):
                        await self._tell(running.id, "progress", {"done": event.done, "total": event.total})
                        continue
                    if stream and (piece := _piece(event)):
                        await self._tell(running.id, "chunk", piece)
                    if event.completion is not None:
                        about = {"model": listed.name, **_done(event.completion)}
                        return "done", {**about, "ignored": wire.unused(body)}
        raise AssertionError("the last chunk carries the completion")

    async def _embed(self, _running: Running, params: dict[str, Any]) -> Last:
        return "result", await embedded(self._models, _checked(EmbeddingRequest, params))

    async def _rerank(self, _running: Running, params: dict[str, Any]) -> Last:
        return "result", await reranked(self._models, _checked(RerankRequest, params))

    async def _list(self, _running: Running, params: dict[str, Any]) -> Last:
        _checked(Empty, params)
        return "result", {"models": await models_of(self._models)}

    async def _status(self, _running: Running, params: dict[str, Any]) -> Last:
        _checked(Empty, params)
        return "result", await status_of(self._models)

    async def _load(self, _running: Running, params: dict[str, Any]) -> Last:
        body = _checked(ModelRequest, params)
        listed = self._models.find(body.model)
        async with self._models.use(listed, body.keep_alive) as model:
            return "result", {"model": listed.name, "context_length": model.n_ctx, "engine": model.backend}

    async def _unload(self, _running: Running, params: dict[str, Any]) -> Last:
        listed = self._models.find(_checked(ModelRequest, params).model)
        return "result", {"model": listed.name, "unloaded": await self._models.unload(listed)}

    async def _shutdown(self, running: Running, params: dict[str, Any]) -> Last:
        _checked(Empty, params)
        others = [each for each in self._running.values() if each is not running]
        for each in others:
            each.cancel()
        tasks = [each.task for each in others if each.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=GRACE_SECONDS)
        asyncio.get_running_loop().call_soon(self._end)  # behind the line that says so
        return "result", {}


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        found = pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, f"the line is no JSON: {error}"[:500], "invalid_json") from None
    if not isinstance(found, dict):
        raise Refusal(400, "the line must be an object", "invalid_json")
    return found


def _checked(kind: type[R], params: dict[str, Any]) -> R:
    try:
        return kind.model_validate(params)
    except ValidationError as error:
        raise invalid(error) from None


def _said(why: Refusal) -> dict[str, Any]:
    """A refusal; status is what HTTP would say."""
    about: dict[str, Any] = {"code": why.code, "message": why.message, "status": why.status, "param": why.param}
    if why.tokens is not None:
        about["n_prompt_tokens"], about["n_ctx"] = why.tokens[0], why.tokens[1] + 1
    return about


def _piece(chunk: Chunk) -> dict[str, Any]:
    """What a chunk brings; nothing where it is empty."""
    calls = [asdict(each) for each in chunk.tool_calls]
    logprobs = [wire.logprob(each) for each in chunk.logprobs or ()]
    about = {"text": chunk.text, "reasoning": chunk.reasoning, "tool_calls": calls, "logprobs": logprobs}
    return {name: value for name, value in about.items() if value}


def _done(done: Completion) -> dict[str, Any]:
    about = {
        "text": done.text,
        "reasoning": done.reasoning,
        "tool_calls": [wire.call_of(each) for each in done.tool_calls],
        "finish_reason": done.finish_reason,
        "usage": wire.usage([done]),
        **wire.report(done),
        "timings": wire.timings(done),
    }
    return about if done.logprobs is None else {**about, "logprobs": [wire.logprob(each) for each in done.logprobs]}


def _nothing() -> dict[str, Any]:
    """An answer that was cancelled before it began."""
    about = {"text": "", "reasoning": "", "tool_calls": [], "finish_reason": "cancelled"}
    return {**about, "usage": None, "cache": None, "timings": None}


async def _serve(serving: Serving, reading: int, writing: int) -> int:
    loop = asyncio.get_running_loop()
    over: asyncio.Future[int] = loop.create_future()

    def end(code: int = 0) -> None:
        if not over.done():
            over.set_result(code)

    models = Models(serving)
    output = Output(writing, end, lambda: session.cancel_all())
    session = Session(models, output, end)
    with _signals(lambda number: loop.call_soon_threadsafe(end, 128 + number)):
        await session.hello()
        loading = asyncio.create_task(load_named(models))
        read(reading, serving.params.max_body, session.take, end)
        code = await over
        last = threading.Timer(GRACE_SECONDS, os._exit, (code,))  # what native code does cannot always be stopped
        last.daemon = True
        last.start()
        loading.cancel()
        await session.close()
        await output.written(WRITE_SECONDS)
        await models.close()
    return code


def run(serving: Serving, reading: int, writing: int) -> int:
    """Answer what comes, until it ends; the descriptors are those of `pipes.taken`. Returns the exit code: 0, or 128
    and the number of the signal that ended it."""
    return asyncio.run(_serve(serving, reading, writing))


@contextmanager
def _signals(told: Callable[[int], Any]) -> Iterator[None]:
    """Signals that end a program are told; a second one ends it at once. Those that are ignored stay so."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    taken = [number for number in numbers if before[number] not in (signal.SIG_IGN, None)]

    def handle(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        told(number)

    for number in taken:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])
