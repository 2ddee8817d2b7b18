"""The events of a Message that comes in pieces. https://platform.claude.com/docs/en/build-with-claude/streaming

message_start ─▶ ping ─▶ for each block: content_block_start, content_block_delta …, content_block_stop
              ─▶ message_delta ─▶ message_stop

A call of a tool comes whole, when it is complete: a block that has begun cannot be taken back, and what begins like a
call may turn out to be text.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from edgellm import Chunk, Completion
from edgellm.serve.anthropic.answer import Answer, usage
from edgellm.serve.anthropic.history import CALL, signature_of
from edgellm.serve.ask import BEAT_SECONDS, Answering, Waiting
from edgellm.serve.endpoint import event

PING = event({"type": "ping"}, "ping")


def named(kind: str, **data: Any) -> bytes:
    """An event, whose data repeat its name."""
    return event({"type": kind, **data}, kind)


class Events:
    """See above."""

    def __init__(self, answer: Answer, answering: Answering) -> None:
        self._answer = answer
        self._answering = answering
        self._index = -1  # of the block
        self._open = ""  # its type, while it is
        self._thought = ""  # in the block
        self._calls: dict[int, list[str]] = {}  # ids, names and arguments of those that are not complete
        self._last = time.monotonic()  # something was sent

    async def pieces(self) -> AsyncGenerator[bytes]:
        begun = False
        async with aclosing(self._answering.events()) as events:
            async for item in events:
                if not begun and (isinstance(item, Chunk) or item.total):
                    begun = True
                    yield named("message_start", message=self._answer.begun()) + PING
                for piece in self._beat(b"" if isinstance(item, Waiting) else b"".join(self._pieces(item))):
                    yield piece
                if isinstance(item, Chunk) and item.completion is not None:
                    yield b"".join(self._last_pieces(item.completion))

    def _beat(self, piece: bytes) -> Iterator[bytes]:
        """What there is to send; a sign of life where that is nothing for long."""
        now = time.monotonic()
        if piece or now - self._last >= BEAT_SECONDS / 2:
            self._last = now
            yield piece or PING

    def _pieces(self, item: Chunk) -> Iterator[bytes]:
        if item.reasoning:
            yield from self._into("thinking")
            self._thought += item.reasoning
            if not self._answer.omits:
                yield self._delta("thinking_delta", thinking=item.reasoning)
        if item.text:
            yield from self._into("text")
            yield self._delta("text_delta", text=item.text)
        for delta in item.tool_calls:
            call = self._calls.setdefault(delta.index, ["", "", ""])
            for at, text in enumerate((delta.id, delta.name, delta.arguments)):
                call[at] += text
            if delta.complete:
                yield from self._call(*self._calls.pop(delta.index))

    def _call(self, id: str, name: str, arguments: str) -> Iterator[bytes]:
        yield from self._close()
        yield self._begin({"type": "tool_use", "id": CALL + id, "name": name, "input": {}})
        yield self._delta("input_json_delta", partial_json=arguments)
        yield from self._close()

    def _into(self, kind: str) -> Iterator[bytes]:
        """A block of this type is open."""
        if self._open != kind:
            yield from self._close()
            more = {"text": ""} if kind == "text" else {"thinking": "", "signature": ""}
            yield self._begin({"type": kind, **more})

    def _begin(self, block: dict[str, Any]) -> bytes:
        self._index += 1
        self._open = block["type"]
        return named("content_block_start", index=self._index, content_block=block)

    def _delta(self, kind: str, **data: Any) -> bytes:
        return named("content_block_delta", index=self._index, delta={"type": kind, **data})

    def _close(self) -> Iterator[bytes]:
        if self._open == "thinking":
            yield self._delta("signature_delta", signature=signature_of(self._thought, self._answer.omits))
            self._thought = ""
        if self._open:
            self._open = ""
            yield named("content_block_stop", index=self._index)

    def _last_pieces(self, done: Completion) -> Iterator[bytes]:
        yield from self._close()
        reason, sequence = self._answer.reason(done)
        delta = {"stop_reason": reason, "stop_sequence": sequence, "stop_details": None, "container": None}
        yield named("message_delta", delta=delta, usage=usage(done))
        yield named("message_stop")
