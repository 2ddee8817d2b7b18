"""answers: lines and a model in, answers out, as many at once as pay.

    for answer in answers(lines, model, Defaults(GenerateParams(temperature=0))):
        file.write(answer.text)

Nothing here knows of files, so whoever spreads a job over machines calls it on each, with a part of the lines.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sys
import threading
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from edgellm import Model, threads
from edgellm.errors import Busy, Closed, EdgeLLMError, Unsupported
from edgellm.jobs.line import Answer, Flaw, Line, Plain, Request, beginning, parsed
from edgellm.jobs.only import Only
from edgellm.jobs.plain import Defaults, answer_of, ask_of, error_of
from edgellm.serve.ask import Answering
from edgellm.serve.refusal import Refusal, refusal

if TYPE_CHECKING:
    from edgellm.serve.state import State

log = logging.getLogger("edgellm.jobs")

AT_ONCE = 128  # lines, at most: an engine's queue holds 256 requests, and a line may be several
AHEAD = 2  # lines that are asked for, for each that the engine runs, so that it never waits for one
AGAIN_SECONDS = 0.5  # after the engine's queue was full
ALIKE = 512  # bytes: beginnings that have more in common are read once
LEADERS = 2  # lines of a group that are answered before the others where a model needs it


def answers(lines: Iterable[Line], model: Model, defaults: Defaults | None = None) -> Generator[Answer]:
    """The answer to each line, in order of completion. Lines whose prompts begin alike should follow one another: then
    that part is read once. `lines` is read on this thread, little by little, as answers are taken from here.

    A line that cannot be answered has an answer that says why. Raises Closed where the model was closed meanwhile,
    Unsupported where a line is OpenAI's and its packages are missing. Close the iterator to stop.
    """
    desk = _Desk(Only(model), defaults or Defaults())
    at_once = min(AT_ONCE, AHEAD * model.max_sequences)
    groups = None if model.info.can_truncate else _Groups()
    done: queue.SimpleQueue[Future[Answer]] = queue.SimpleQueue()
    waiting, unanswered = iter(lines), 0
    with _loop() as loop:
        while True:
            while unanswered < at_once and (line := next(waiting, None)) is not None:
                asked = _asked(line)
                after = None if groups is None else groups.before(asked)
                future = asyncio.run_coroutine_threadsafe(desk.answer(line.number, asked, after), loop)
                if groups is not None:
                    groups.add(future)
                unanswered += 1
                future.add_done_callback(done.put)
            if not unanswered:
                return
            answer = _next(done).result()
            unanswered -= 1
            yield answer


def _asked(line: Line) -> Plain | Request | Flaw:
    try:
        return parsed(line.text)
    except Flaw as flaw:
        return flaw


def _next(done: queue.SimpleQueue[Future[Answer]]) -> Future[Answer]:
    limit = 0.1 if sys.platform == "win32" else None  # where a wait without one cannot be interrupted by Ctrl-C
    while True:
        with suppress(queue.Empty):
            return done.get(timeout=limit)


class _Groups:
    """Lines whose prompts begin alike, for a model that can go on from checkpoints alone. Where a prompt leaves what is
    known such a model keeps its state from the second one on: so the first two are read one by one, before the rest."""

    def __init__(self) -> None:
        self._last = b""
        self._shared = 0  # bytes that the lines of the group have in common; 0 while it has one
        self._first: list[Future[Answer]] = []  # of the group, at most LEADERS

    def before(self, asked: Plain | Request | Flaw) -> Future[Answer] | None:
        """What must have been answered before a line is."""
        begins = b"" if isinstance(asked, Flaw) else beginning(asked)
        shared = common(begins, self._last)
        if shared < max(ALIKE, self._shared - ALIKE):
            self._first, shared = [], 0
        self._last, self._shared = begins, shared
        return self._first[-1] if self._first else None

    def add(self, future: Future[Answer]) -> None:
        """The line that `before` was asked for last is on its way."""
        if len(self._first) < LEADERS:
            self._first.append(future)


def common(one: bytes, other: bytes) -> int:
    """Bytes that both begin with."""
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if one.startswith(other[:middle]) else (least, middle - 1)
    return least


class _Desk:
    """Where lines are answered, on the loop. Raises Closed where the model is."""

    def __init__(self, only: Only, defaults: Defaults) -> None:
        self._only = only
        self._defaults = defaults
        self._state: State | None = None  # of the server's routes, once a line needs them

    async def answer(self, number: int, asked: Plain | Request | Flaw, after: Future[Answer] | None) -> Answer:
        if after is not None:
            done, _ = await asyncio.wait({asyncio.wrap_future(after)})
            done.pop().exception()  # is its own line's; here it counts as seen
        if isinstance(asked, Flaw):
            error = {"code": asked.code, "message": f"line {number}: {asked}"}
            about = {"id": f"batch_req_{number}", "custom_id": asked.custom_id, "response": None, "error": error}
            more = {} if asked.custom_id is not None else {"line": number}  # which may have been meant as a plain one
            return Answer(number, {**about, **more}, failed=True)
        while True:
            try:
                if isinstance(asked, Plain):
                    return await self._plain(number, asked)
                return await self._request(number, asked)
            except Busy:  # a line may be many answers
                await asyncio.sleep(AGAIN_SECONDS)

    async def _plain(self, number: int, asked: Plain) -> Answer:
        try:
            ask = ask_of(asked.body, self._defaults, self._only.model)
            async with AsyncExitStack() as stack:
                answering = Answering(self._only, self._only.find(), ask, stack)
                await answering.begin()
                done = await answering.whole()
        except Exception as error:
            why = _refused(error)
            return Answer(number, error_of(number, asked.body, why.code, why.message), failed=True)
        return Answer(number, answer_of(number, asked.body, done), done.usage)

    async def _request(self, number: int, asked: Request) -> Answer:
        requests = requests_module()
        if self._state is None:
            self._state = requests.state_of(self._only)
        try:
            reply = await requests.replied(self._state, asked)
        except Exception as error:
            reply = requests.refused(_refused(error))
        answer: Answer = requests.answer_of(number, asked, reply)
        return answer


def requests_module() -> Any:
    """What reads lines in OpenAI's format. Raises Unsupported where the server's packages are missing."""
    try:
        from edgellm.jobs import requests
    except ImportError as error:
        raise Unsupported(
            f"lines in OpenAI's format are read as the server reads them, which needs {error.name}: "
            "pip install 'edgellm[serve]'; lines such as {\"prompt\": …} need nothing"
        ) from error
    return requests


def _refused(error: Exception) -> Refusal:
    """Why a line is not answered. Raises what says nothing of the line: Busy, Closed."""
    if isinstance(error, (Busy, Closed)):
        raise error
    if not isinstance(error, (EdgeLLMError, Refusal)):
        log.error("a line failed", exc_info=error)
    return refusal(error)


@contextmanager
def _loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own; what runs there at the end is cancelled, and waited for."""
    begun: Future[asyncio.AbstractEventLoop] = Future()
    over: list[asyncio.Event] = []

    async def run() -> None:
        over.append(asyncio.Event())
        begun.set_result(asyncio.get_running_loop())
        await over[0].wait()

    thread = threads.start(threading.Thread(target=asyncio.run, args=[run()], name="edgellm-job", daemon=True))
    loop = begun.result()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(over[0].set)
        thread.join()
