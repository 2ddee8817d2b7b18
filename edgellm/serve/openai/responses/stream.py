"""Events: an answer as a stream of events, numbered from 0 on.

While there is nothing to tell, `response.in_progress` comes again and again: Codex takes comments for silence.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from edgellm import Chunk, Completion
from edgellm.errors import ContextOverflow
from edgellm.serve.ask import Answering
from edgellm.serve.endpoint import dumped, event
from edgellm.serve.openai.responses.answer import Answer, cut
from edgellm.serve.openai.responses.output import Output
from edgellm.serve.refusal import Refusal

QUIET_SECONDS = 0.5  # at least between two signs of life, which come as often as a prompt goes on


class Events:
    """See above. finished: makes the Response of what is done."""

    def __init__(
        self,
        answering: Answering,
        output: Output,
        answer: Answer,
        finished: Callable[[Completion], dict[str, Any]],
    ) -> None:
        self._answering = answering
        self._output = output
        self._answer = answer
        self._finished = finished
        self._too_long: ContextOverflow | None = None
        self._begun = dumped(answer.begun())
        self._number = -1
        self._told = 0.0

    async def begin(self) -> None:
        """What is refused at once is refused with a status; but clients look in the stream for a prompt that is too
        long. Raises what answering does."""
        try:
            await self._answering.begin(stream=True)
        except ContextOverflow as error:
            self._too_long = error

    async def pieces(self) -> AsyncGenerator[bytes]:
        yield self._lifecycle("created", self._begun)
        yield self._lifecycle("in_progress", self._begun)
        done: Completion | None = None
        if self._too_long is not None:
            raise self._too_long
        async with aclosing(self._answering.events()) as signs:
            async for item in signs:
                if isinstance(item, Chunk):
                    for each in self._output.heard(item):
                        yield self._event(each)
                    done = item.completion or done
                if done is None and time.monotonic() - self._told >= QUIET_SECONDS:
                    yield self._lifecycle("in_progress", self._begun)
        assert done is not None
        for each in self._output.ended(cut=cut(done)):
            yield self._event(each)
        response = self._finished(done)
        yield self._lifecycle(response["status"], dumped(response))

    def failed(self, why: Refusal) -> bytes:
        """The end of what went wrong in the midst of it."""
        told = [self._event(each) for each in self._output.broken()]
        response = dumped(self._answer.failed(self._output.items, why))
        return b"".join([*told, self._lifecycle("failed", response)])

    def _event(self, data: dict[str, Any]) -> bytes:
        return event({**data, "sequence_number": self._next()}, data["type"])

    def _lifecycle(self, status: str, response: bytes) -> bytes:
        name = f"response.{status}"
        return event(
            b'{"type":"%s","sequence_number":%d,"response":%s}' % (name.encode(), self._next(), response), name
        )

    def _next(self) -> int:
        self._told = time.monotonic()
        self._number += 1
        return self._number
