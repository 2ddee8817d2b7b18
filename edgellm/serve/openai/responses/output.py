"""Output: the items of an answer as they come, and the events that tell of them; one item is open at a time.

A call is told when it is whole. Until then it may be none: what the model wrote is text then, and an item that was told
of could not be taken back. White space is held back likewise, until text or the end of the answer follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgellm import Chunk, Completion
from edgellm.events import TokenLogprob, ToolCallDelta
from edgellm.serve.openai import wire
from edgellm.serve.openai.responses.ids import Ids
from edgellm.serve.openai.responses.items import Item

Event = dict[str, Any]


class Output:
    """items: those that are whole, in their order. named: what a call of a function says it is."""

    def __init__(self, ids: Ids, named: Callable[[str], dict[str, str]]) -> None:
        self.items: list[Item] = []
        self._ids = ids
        self._named = named
        self._open: Item | None = None
        self._texts: list[str] = []  # of the open item
        self._logprobs: list[dict[str, Any]] = []  # of the open item
        self._blank = ""
        self._early: list[dict[str, Any]] = []  # of tokens whose text is held back
        self._calls: dict[int, tuple[str, str]] = {}  # ids and names of those that are not whole
        self._arguments: list[str] = []

    def heard(self, chunk: Chunk) -> list[Event]:
        """What is told with the next piece of an answer."""
        found: list[Event] = []
        if chunk.reasoning:
            found += self._think(chunk.reasoning)
        elif chunk.logprobs and not chunk.tool_calls:
            self._early += _logprobs(chunk.logprobs)
        if chunk.text:
            found += self._say(chunk.text)
        for delta in chunk.tool_calls:
            found += self._hear(delta)
        return found

    def whole(self, done: Completion) -> None:
        """An answer that comes at once."""
        if done.reasoning:
            self._think(done.reasoning)
        if done.text:
            self._say(done.text)
        for call in done.tool_calls:
            written = wire.call_of(call)
            self._call(call.id, call.name, written["function"]["arguments"])

    def ended(self, *, cut: bool) -> list[Event]:
        """The end. cut: the last item is not all that was to come."""
        found: list[Event] = []
        kinds = {self._kind, *(item["type"] for item in self.items)}
        silent = kinds.isdisjoint(("message", "function_call"))
        if silent and (self._blank or not cut or self._open is None):  # an answer of nothing, too, is one
            found += self._begin("message")
            found += self._piece(self._blank)
        return found + self._close("incomplete" if cut else "completed")

    def broken(self) -> list[Event]:
        """Nothing comes any more, and nobody knows what would have."""
        return self._close("incomplete")

    def _think(self, text: str) -> list[Event]:
        self._early = []
        found = self._begin("reasoning")
        at = self._at
        self._texts.append(text)
        return [*found, {"type": "response.reasoning_text.delta", **at, "content_index": 0, "delta": text}]

    def _say(self, text: str) -> list[Event]:
        text, self._blank = self._blank + text, ""
        if self._kind != "message" and not text.strip():
            self._blank = text
            return []
        return [*self._begin("message"), *self._piece(text)]

    def _piece(self, text: str) -> list[Event]:
        if not text:
            return []
        logprobs, self._early, self._blank = self._early, [], ""
        self._texts.append(text)
        self._logprobs += logprobs
        about = {**self._at, "content_index": 0, "delta": text, "logprobs": logprobs}
        return [{"type": "response.output_text.delta", **about}]

    def _hear(self, delta: ToolCallDelta) -> list[Event]:
        if delta.id:
            self._calls[delta.index] = (delta.id, delta.name)
            self._arguments = []
            self._early = []  # of the mark in front of it
        self._arguments.append(delta.arguments)
        if not delta.complete:
            return []
        return self._call(*self._calls.pop(delta.index), "".join(self._arguments))

    def _call(self, id: str, name: str, arguments: str) -> list[Event]:
        found = self._close("completed")
        self._blank = ""
        item: Item = {"id": self._ids.new("fc"), "type": "function_call", "call_id": id, **self._named(name)}
        begun = {**item, "arguments": "", "status": "in_progress"}
        at = {"item_id": item["id"], "output_index": len(self.items)}
        found.append({"type": "response.output_item.added", "output_index": len(self.items), "item": begun})
        found.append({"type": "response.function_call_arguments.delta", **at, "delta": arguments})
        found.append(
            {"type": "response.function_call_arguments.done", **at, "arguments": arguments, "name": item["name"]}
        )
        return [*found, self._done({**item, "arguments": arguments, "status": "completed"})]

    @property
    def _kind(self) -> str:
        return "" if self._open is None else str(self._open["type"])

    @property
    def _at(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self.items)}

    def _begin(self, kind: str) -> list[Event]:
        """An item of text or reasoning is open from now on."""
        if self._kind == kind:
            return []
        found = self._close("completed")
        self._texts, self._logprobs = [], []
        if kind == "message":
            self._open = {"id": self._ids.new("msg"), "type": kind, "role": "assistant"}
        else:
            self._open = {"id": self._ids.new("rs"), "type": kind, "summary": []}
        begun = {**self._open, "content": [], "status": "in_progress"}
        found.append({"type": "response.output_item.added", "output_index": len(self.items), "item": begun})
        return [*found, {"type": "response.content_part.added", **self._at, "content_index": 0, "part": self._part()}]

    def _part(self) -> dict[str, Any]:
        text = "".join(self._texts)
        if self._kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs}

    def _close(self, status: str) -> list[Event]:
        """The open item is whole."""
        if self._open is None:
            return []
        at, part = {**self._at, "content_index": 0}, self._part()
        if self._kind == "reasoning":
            told = {"type": "response.reasoning_text.done", **at, "text": part["text"]}
        else:
            told = {"type": "response.output_text.done", **at, "text": part["text"], "logprobs": part["logprobs"]}
        item, self._open = {**self._open, "content": [part], "status": status}, None
        return [told, {"type": "response.content_part.done", **at, "part": part}, self._done(item)]

    def _done(self, item: Item) -> Event:
        self.items.append(item)
        return {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}


def _logprobs(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    return [wire.logprob(each) for each in tokens]
