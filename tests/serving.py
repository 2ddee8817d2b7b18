"""A server that runs in a thread of the test, on a port of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgellm
from edgellm import LoadParams, Model
from edgellm.serve.app import create_app, load_named
from edgellm.serve.listen import bound, server
from edgellm.serve.models import Models
from edgellm.serve.settings import ServeParams, Serving


@dataclass
class Running:
    """url: without a path behind it. models: those of the server, for its event loop."""

    url: str
    models: Models
    loop: asyncio.AbstractEventLoop

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def running(
    *named: str | Path, load: LoadParams | None = None, opens: Callable[..., Model] = edgellm.load, **params: Any
) -> Iterator[Running]:
    """A server with these models; params: those of ServeParams. opens: what loads a file."""
    serving = Serving(ServeParams(**{"port": 0, **params}), tuple(map(str, named)), load or LoadParams())
    started: list[Running] = []
    ready, ended = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    async def serve() -> None:
        models = Models(serving, opens)
        with bound(serving.params) as listener:
            listening = server(create_app(serving, models))
            task = asyncio.ensure_future(listening.serve(sockets=[listener]))
            while not listening.started and not task.done():
                await asyncio.sleep(0.01)
            await load_named(models)
            port = listener.getsockname()[1]
            started.append(Running(f"http://127.0.0.1:{port}", models, asyncio.get_running_loop()))
            ready.set()
            while not ended.is_set() and not task.done():
                await asyncio.sleep(0.02)
            listening.should_exit = True
            await task

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="server")
    thread.start()
    try:
        assert ready.wait(120)
        if failed:
            raise failed[0]
        yield started[0]
    finally:
        ended.set()
        thread.join(60)
    if failed:
        raise failed[0]
