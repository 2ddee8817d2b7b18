"""/api/pull: bring a model here."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

from edgellm import hub
from edgellm.serve.ask import BEAT_SECONDS
from edgellm.serve.endpoint import LINES, Call, Reply, Stream, line
from edgellm.serve.models import Models
from edgellm.serve.ollama import wire
from edgellm.serve.ollama.models import Named

AT_ONCE = 4  # pulls; more wait
_pullers = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="edgellm-pull")


class PullRequest(Named):
    """https://github.com/ollama/ollama/blob/main/docs/api.md#pull-a-model"""

    stream: bool | None = None
    insecure: bool | None = None


async def pull(call: Call[PullRequest]) -> Reply | Stream:
    models, name = call.state.models, call.body.wanted().removesuffix(":latest")
    if call.body.stream is not False:
        return Stream(_lines(models, name), wire.failed, LINES)
    async with aclosing(_statuses(models, name)) as statuses:
        async for status in statuses:
            last = status
    return Reply(last)


async def _lines(models: Models, name: str) -> AsyncGenerator[bytes]:
    async with aclosing(_statuses(models, name)) as statuses:
        async for status in statuses:
            yield line(status)


class _Stopped(Exception):
    """Nobody waits for a pull any more."""


async def _statuses(models: Models, name: str) -> AsyncGenerator[dict[str, Any]]:
    """What happens, the last of it again at least every BEAT_SECONDS. Closing it stops the pull; what had come is kept
    for the next one."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    gone = threading.Event()

    def tell(event: hub.PullEvent) -> None:
        if gone.is_set():
            raise _Stopped
        loop.call_soon_threadsafe(arrived.put_nowait, _status(event))

    last: dict[str, Any] = {"status": "pulling manifest"}
    yield last
    offline = models.serving.load.offline
    pulling = loop.run_in_executor(_pullers, lambda: hub.pull(name, offline=offline, progress=tell))
    pulling.add_done_callback(lambda _: arrived.put_nowait(None))
    try:
        while True:
            try:
                status = await asyncio.wait_for(arrived.get(), BEAT_SECONDS)
            except asyncio.TimeoutError:
                status = last
            if status is None:
                break
            last = status
            yield last
        await pulling
    finally:
        gone.set()
        pulling.cancel()
        models.look_again()
    yield {"status": "success"}


def _status(event: hub.PullEvent) -> dict[str, Any]:
    if not event.total:
        return {"status": event.text}
    known = hub.catalog().get(event.text)
    digest = known.sha256 if known is not None else None
    digest = digest or hashlib.sha256(event.text.encode()).hexdigest()  # what tells several transfers apart
    about = {"status": f"pulling {event.text}", "digest": f"sha256:{digest}"}
    return {**about, "total": event.total, "completed": event.done}
