"""Ask: one answer that a client wants, in no dialect; and Answering, how it comes.

Answering.begin ──▶ the model is loaded, the prompt made ──▶ events: Waiting … Waiting, Chunk … Chunk
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from edgellm import CancelToken, Chunk, Completion, GenerateParams, Model
from edgellm.errors import ContextOverflow, InvalidParameter, TemplateError
from edgellm.prompter import Turn
from edgellm.serve.models import Listed, Models

BEAT_SECONDS = 2.0  # at most between two signs of life while a prompt is read
HEADERS_SECONDS = 2.0  # after which the headers of a stream go out, though its prompt is not made yet
MAKERS = 8  # prompts that are made at once, beside the event loop

Message = dict[str, Any]
_makers = ThreadPoolExecutor(MAKERS, thread_name_prefix="edgellm-prompt")


@dataclass(frozen=True)
class Ask:
    """messages, or a prompt: a text or token ids. thinking: whether the model shall; where it cannot choose, as it
    does. variables: of the chat template. one_call: the answer ends behind its first call of a tool. keep: seconds that
    the model stays loaded behind it; None: the settings'."""

    messages: Sequence[Message] = ()
    prompt: str | list[int] | None = None
    params: GenerateParams = field(default_factory=GenerateParams)
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str = "auto"
    thinking: bool | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    one_call: bool = False
    keep: float | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing new but that it goes on: tokens of the prompt that are known or read, and all; 0 before it is made.
    known: those that did not have to be read."""

    done: int = 0
    total: int = 0
    known: int = 0


Event = Waiting | Chunk
Follow = Callable[["Answering", Completion], object]


class Answering:
    """An answer on its way. `begin` first, then `events` or `whole`. Whoever holds it closes `stack`.

    followers: are told the completion. begun: seconds of the monotonic clock when it was asked for.
    """

    def __init__(self, models: Models, listed: Listed, ask: Ask, stack: AsyncExitStack) -> None:
        self.listed = listed
        self.ask = ask
        self.begun = time.monotonic()
        self.followers: list[Follow] = []
        self.cancel = CancelToken()
        self._models = models
        self._stack = stack
        self._model: Model | None = None
        self._prompt: list[int] | Turn = []
        self._beginning: asyncio.Task[None] | None = None

    @property
    def model(self) -> Model:
        """Once it has begun."""
        assert self._model is not None
        return self._model

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and the prompt made; `cancel` has an effect from then on."""
        return self._beginning is not None and self._beginning.done()

    @property
    def tokens(self) -> list[int]:
        """Of the prompt, once it has begun."""
        return self._prompt.tokens if isinstance(self._prompt, Turn) else self._prompt

    async def begin(self, *, patience: float | None = None) -> None:
        """Load the model and make the prompt; after so many seconds the rest of it is left to `events`.

        Raises what that raises: ModelError, ResourceError, InvalidParameter, Unsupported, TemplateError,
        ContextOverflow."""
        task = self._beginning = asyncio.get_running_loop().create_task(self._begin())
        self._stack.push_async_callback(_ended, task)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), patience)

    async def _begin(self) -> None:
        self._model = await self._stack.enter_async_context(self._models.use(self.listed, self.ask.keep))
        self._prompt = await beside(lambda: prompt_of(self.model, self.ask))
        self._check_length()

    def _check_length(self) -> None:
        """What `submit` would raise later: said before the headers are."""
        tokens, n_ctx = len(self.tokens), self.model.n_ctx
        if tokens >= n_ctx:
            raise ContextOverflow(
                f"shorten it, or start the server with a larger --ctx (trained for {self.model.info.n_ctx_train})",
                needed=tokens + 1,
                n_ctx=n_ctx,
            )

    async def whole(self) -> Completion:
        """The answer, when it is done."""
        async with aclosing(self.events(stream=False)) as events:
            async for event in events:
                if isinstance(event, Chunk) and event.completion is not None:
                    return event.completion
        raise AssertionError("the last chunk carries the completion")

    async def events(self, *, stream: bool = True) -> AsyncGenerator[Event]:
        """Its pieces, and a Waiting at least every BEAT_SECONDS until the first one comes. stream: not of all pieces
        but the last one."""
        assert self._beginning is not None
        while not self._beginning.done():
            await asyncio.wait({self._beginning}, timeout=BEAT_SECONDS)
            yield Waiting()
        await self._beginning
        news = _News()
        chunks = self._chunks(stream, news)
        async with aclosing(chunks):
            first = asyncio.ensure_future(_next(chunks))
            try:
                while not first.done():
                    waiting = await news.wait(first)
                    if waiting is not None:
                        yield waiting
                yield await first
            finally:
                if not first.done():
                    first.cancel()
                    with suppress(asyncio.CancelledError, Exception):
                        await first
            async for chunk in chunks:
                yield chunk

    async def _chunks(self, stream: bool, news: _News) -> AsyncGenerator[Chunk]:
        ask, params = self.ask, self.ask.params
        every = stream or ask.one_call
        if every:
            source = self.model.astream(self._prompt, params, progress=news.tell, cancel=self.cancel)
        else:
            source = _alone(self.model.agenerate(self._prompt, params, progress=news.tell, cancel=self.cancel))
        async with aclosing(source):
            async for chunk in source:
                if ask.one_call and any(delta.complete for delta in chunk.tool_calls):
                    self.cancel.cancel()
                if ask.one_call and any(delta.index for delta in chunk.tool_calls):
                    first = tuple(delta for delta in chunk.tool_calls if not delta.index)
                    chunk = replace(chunk, tool_calls=first)
                if chunk.completion is not None:
                    done = self._finished(chunk.completion)
                    chunk = replace(chunk, completion=done)
                    for follow in self.followers:
                        follow(self, done)
                yield chunk

    def _finished(self, done: Completion) -> Completion:
        """The answer as it counts: with one call where there is to be one, and remembered."""
        if self.ask.one_call and done.tool_calls:
            done = replace(done, tool_calls=done.tool_calls[:1], finish_reason="tool_calls")
        turn = self._prompt
        if isinstance(turn, Turn) and self.ask.params.cache and not self.ask.variables.get("continue_final_message"):
            self.model.prompter.remember(turn, done.text, done.tokens)
        return done


class _News:
    """How far a prompt is read."""

    def __init__(self) -> None:
        self._latest = Waiting()
        self._told = asyncio.Event()

    def tell(self, done: int, total: int) -> None:
        """On the event loop."""
        known = self._latest.known if self._latest.total else done
        self._latest = Waiting(done, total, known)
        self._told.set()

    async def wait(self, first: asyncio.Future[Any]) -> Waiting | None:
        """Until there are news, `first` is done (None), or it is time for a sign of life."""
        told = asyncio.ensure_future(self._told.wait())
        try:
            await asyncio.wait({told, first}, timeout=BEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
        self._told.clear()
        return None if first.done() else self._latest


async def _ended(task: asyncio.Task[None]) -> None:
    """What has begun is over."""
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task


async def _next(chunks: AsyncGenerator[Chunk]) -> Chunk:
    return await chunks.__anext__()


async def _alone(answer: Coroutine[Any, Any, Completion]) -> AsyncGenerator[Chunk]:
    """An answer as its last chunk."""
    try:
        done = await answer
    finally:
        answer.close()
    yield Chunk(done.text, done.tokens, done.logprobs, done, done.reasoning)


async def beside(function: Callable[[], Any]) -> Any:
    """What `function` returns or raises, on a thread of those that make prompts."""
    return await asyncio.get_running_loop().run_in_executor(_makers, function)


def prompt_of(model: Model, ask: Ask) -> list[int] | Turn:
    """What the model is given. A template that refuses the order of the roles is given the same words in one that all
    take. Raises what `Prompter.prepare` raises."""
    if ask.prompt is not None:
        return model.encode(ask.prompt) if isinstance(ask.prompt, str) else ask.prompt
    given: dict[str, Any] = dict(ask.variables)
    if ask.thinking is not None and _can_switch(model, ask.thinking):
        given["thinking"] = ask.thinking

    def prepared(messages: Sequence[Message]) -> Turn:
        return model.prompter.prepare(list(messages), ask.params, tools=ask.tools, tool_choice=ask.tool_choice, **given)

    messages = [_known_role(model, message) for message in ask.messages]
    if not messages:
        raise InvalidParameter("messages: the list is empty; give at least one message")
    try:
        return prepared(messages)
    except TemplateError:
        plainer = alternating(messages)
        if plainer == messages:
            raise
        return prepared(plainer)


def _known_role(model: Model, message: Message) -> Message:
    """`developer` is what `system` is now called; few templates know it."""
    if message.get("role") == "developer" and "developer" not in (model.info.chat_template or ""):
        return {**message, "role": "system"}
    return message


def _can_switch(model: Model, thinking: bool) -> bool:
    """Whether a model can be told to think, or not to. Clients ask it of any."""
    from edgellm.errors import Unsupported

    try:
        model.prompter.switched(thinking)
    except Unsupported:
        return False
    return True


def alternating(messages: Sequence[Message]) -> list[Message]:
    """Messages whose roles take turns, the user's first: what a system says goes in front of what the user says next,
    and what one says in a row is one message."""
    found: list[Message] = []
    for message in messages:
        role = "user" if message.get("role") == "system" else message.get("role")
        last = found[-1] if found else {}
        plain = role in ("user", "assistant") and not message.get("tool_calls") and not last.get("tool_calls")
        if plain and last.get("role") == role:
            found[-1] = {**last, "content": f"{_text(last)}\n\n{_text(message)}"}
        else:
            found.append({**message, "role": role})
    return found


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content)
    return str(content or "")
