"""Ask: one answer that a client wants, in no dialect; and Answering, how it comes.

Answering.begin ──▶ the model is loaded, the prompt made ──▶ events: Waiting … Waiting, Chunk … Chunk
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from edgellm import CancelToken, Chunk, Completion, GenerateParams, Model
from edgellm.constrain.loose import loosened
from edgellm.errors import ContextOverflow, InvalidParameter, TemplateError
from edgellm.events import ToolCallDelta
from edgellm.params import FORMS
from edgellm.prompter import Turn
from edgellm.prompts.messages import REASONING
from edgellm.serve.models import Listed, Models
from edgellm.serve.refusal import TOO_LONG, Refusal

BEAT_SECONDS = 2.0  # at most between two signs of life while a prompt is read
HEADERS_SECONDS = 2.0  # after which the headers of a stream go out, though its prompt is not made yet
EFFORT = "reasoning_effort"  # a variable that clients set whatever the model; few templates read it
ROLES = ("system", "user", "assistant", "tool")
CHARACTERS = 8 << 20  # of a prompt: more than chat templates may write, and than any context holds
MAKERS = 8  # prompts that are made at once, beside the event loop

Message = dict[str, Any]
_makers = ThreadPoolExecutor(MAKERS, thread_name_prefix="edgellm-prompt")


@dataclass(frozen=True)
class Ask:
    """messages, or a prompt: a text or token ids, or `make`: what makes one for the model, whose answer no conversation
    shows. thinking: whether the model shall; where it cannot choose, as it does. variables: of the chat template.
    one_call: the answer ends behind its first call of a tool. keep: seconds that the model stays loaded behind it;
    None: the settings'."""

    messages: Sequence[Message] = ()
    prompt: str | list[int] | None = None
    params: GenerateParams = field(default_factory=GenerateParams)
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str = "auto"
    thinking: bool | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    one_call: bool = False
    keep: float | None = None
    make: Callable[[Model], list[int] | Turn] | None = None

    @property
    def forms_calls(self) -> bool:
        """Whether the arguments of calls have a form that must be kept: one must come, or the answer has a form."""
        formed = any(getattr(self.params, name) is not None for name in FORMS)
        return formed or self.tool_choice not in ("auto", "none")


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
    """An answer on its way. `begin` first, then `events` or `whole`; `prepare` alone for its prompt. Whoever holds it
    closes `stack`.

    followers: are told the completion. begun: seconds of the monotonic clock when it was asked for; loaded: when its
    model was there. news: how far its prompt is read.
    """

    def __init__(self, models: Models, listed: Listed, ask: Ask, stack: AsyncExitStack) -> None:
        self.listed = listed
        self.ask = ask
        self.begun = self.loaded = time.monotonic()
        self.followers: list[Follow] = []
        self.cancel = CancelToken()
        self.news = News()
        self._models = models
        self._stack = stack
        self._model: Model | None = None
        self._prompt: list[int] | Turn = []
        self._beginning: asyncio.Task[None] | None = None
        self._chunks: AsyncGenerator[Chunk] | None = None
        self._first: asyncio.Future[Chunk] | None = None

    @property
    def model(self) -> Model:
        """Once it has begun."""
        assert self._model is not None
        return self._model

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and the prompt submitted; `cancel` has an effect from then on."""
        return self._first is not None

    @property
    def tokens(self) -> list[int]:
        """Of the prompt, once it has begun."""
        return self._prompt.tokens if isinstance(self._prompt, Turn) else self._prompt

    async def begin(self, *, stream: bool = False) -> None:
        """Load the model, make the prompt and submit it. stream: after HEADERS_SECONDS what is left of that goes on in
        `events`, which then gives all pieces of the answer and not the last one alone.

        Raises what that raises: ModelError, ResourceError, InvalidParameter, Unsupported, TemplateError,
        ContextOverflow, Busy."""
        task = self._beginning = asyncio.get_running_loop().create_task(self._begin(stream))
        self._stack.push_async_callback(_ended, task)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), HEADERS_SECONDS if stream else None)

    async def prepare(self) -> None:
        """Load the model and make the prompt, no more. Raises what `begin` does, but Busy."""
        self._model = await self._stack.enter_async_context(self._models.use(self.listed, self.ask.keep))
        self.loaded = time.monotonic()
        self._prompt = await beside(lambda: prompt_of(self.model, self.ask))
        self._check_length()

    async def _begin(self, stream: bool) -> None:
        await self.prepare()
        self._chunks = self._answered(stream)
        await self._stack.enter_async_context(aclosing(self._chunks))
        self._first = asyncio.ensure_future(_next(self._chunks))
        self._stack.push_async_callback(_ended, self._first)
        if stream:  # what is wrong with it is known when it is read, or answered
            await self.news.come(self._first)

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
        async with aclosing(self.events()) as events:
            async for event in events:
                if isinstance(event, Chunk) and event.completion is not None:
                    return event.completion
        raise AssertionError("the last chunk carries the completion")

    async def events(self) -> AsyncGenerator[Event]:
        """Its pieces, and a Waiting at least every BEAT_SECONDS until the first one comes."""
        assert self._beginning is not None
        while not self._beginning.done():
            await asyncio.wait({self._beginning}, timeout=BEAT_SECONDS)
            yield Waiting()
        await self._beginning
        assert self._first is not None
        assert self._chunks is not None
        async with aclosing(self._chunks) as chunks:
            try:
                while not self._first.done():
                    waiting = await self.news.wait(self._first)
                    if waiting is not None:
                        yield waiting
                yield await self._first
            finally:
                await _ended(self._first)  # while it runs, what it waits for cannot be closed
            async for chunk in chunks:
                yield chunk

    async def _answered(self, stream: bool) -> AsyncGenerator[Chunk]:
        ask, params, told = self.ask, self.ask.params, self.news.tell
        one = _OneCall() if ask.one_call else None
        if stream or one is not None:
            source = self.model.astream(self._prompt, params, progress=told, cancel=self.cancel)
        else:
            source = _alone(self.model.agenerate(self._prompt, params, progress=told, cancel=self.cancel))
        async with aclosing(source):
            async for chunk in source:
                if one is not None:
                    chunk = one.passed(chunk)
                    if one.over:
                        self.cancel.cancel()
                if chunk.completion is not None:
                    self._remember(chunk.completion)
                    for follow in self.followers:
                        follow(self, chunk.completion)
                yield chunk

    def _remember(self, done: Completion) -> None:
        turn, ask = self._prompt, self.ask
        shown = ask.make is None and not ask.variables.get("continue_final_message")
        if isinstance(turn, Turn) and ask.params.cache and shown:
            self.model.prompter.remember(turn, done.text, done.tokens)


class _OneCall:
    """Lets an answer pass up to the end of its first call. over: it has come."""

    def __init__(self) -> None:
        self.over = False
        self._text = ""

    def passed(self, chunk: Chunk) -> Chunk:
        text, calls, done = "" if self.over else chunk.text, list[ToolCallDelta](), chunk.completion
        self._text += text
        for delta in chunk.tool_calls:
            calls += [] if self.over else [delta]
            self.over = self.over or delta.complete
        if self.over and done is not None:
            done = replace(done, text=self._text, tool_calls=done.tool_calls[:1], finish_reason="tool_calls")
        return replace(chunk, text=text, tool_calls=tuple(calls), completion=done)


class News:
    """How far a prompt is read. latest: from when its reading begins on, before anything is answered."""

    def __init__(self) -> None:
        self.latest = Waiting()
        self._told = asyncio.Event()

    def tell(self, done: int, total: int) -> None:
        """On the event loop."""
        known = self.latest.known if self.latest.total else done
        self.latest = Waiting(done, total, known)
        self._told.set()

    async def come(self, first: asyncio.Future[Any], timeout: float | None = None) -> None:
        """Until there are news, or `first` is done: raises what that raised."""
        told = asyncio.ensure_future(self._told.wait())
        try:
            await asyncio.wait({told, first}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
        if first.done():
            first.result()

    async def wait(self, first: asyncio.Future[Any]) -> Waiting | None:
        """Until there are news, `first` is done (None), or it is time for a sign of life."""
        await self.come(first, BEAT_SECONDS)
        self._told.clear()
        return None if first.done() else self.latest


async def _ended(task: asyncio.Future[Any]) -> None:
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
    """What the model is given. A template that refuses the order of the roles, or leaves out what a system says in the
    midst, is given the same words in one that it takes. Raises what `Prompter.prepare` raises."""
    size = sum(map(_characters, ask.messages)) + (len(ask.prompt) if isinstance(ask.prompt, str) else 0)
    if size > CHARACTERS:
        raise Refusal(400, f"the prompt has {size:,} characters; {CHARACTERS:,} is the most", TOO_LONG, "messages")
    if ask.make is not None:
        return ask.make(model)
    if ask.prompt is not None:
        return model.encode(ask.prompt) if isinstance(ask.prompt, str) else ask.prompt
    given: dict[str, Any] = dict(ask.variables)
    if EFFORT in given and EFFORT not in model.prompter.template.variables:
        del given[EFFORT]
    if ask.thinking is not None and can_switch(model, ask.thinking):
        given["thinking"] = ask.thinking

    tools = [_callable(tool) for tool in ask.tools] if ask.forms_calls else ask.tools

    def prepared(messages: Sequence[Message]) -> Turn:
        return model.prompter.prepare(list(messages), ask.params, tools=tools, tool_choice=ask.tool_choice, **given)

    messages = [_known_role(model, message, at) for at, message in enumerate(ask.messages)]
    if not messages:
        raise InvalidParameter("messages: the list is empty; give at least one message")
    refused, found = list[TemplateError](), list[Turn]()
    for form in _forms(messages):
        try:
            turn = prepared(form)
        except TemplateError as error:
            refused.append(error)
            continue
        told = [_text(message).strip() for message in turn.messages[1:] if message.get("role") == "system"]
        if all(text in turn.text for text in told):
            return turn
        found.append(turn)
    if not found:
        raise refused[0]
    return found[0]


def _forms(messages: list[Message]) -> Iterator[list[Message]]:
    """A conversation as it is, with roles that take turns behind the system prompt, and without a system prompt."""
    yield messages
    count = 1 if messages[0].get("role") == "system" else 0
    kept = [*messages[:count], *alternating(messages[count:])]
    if kept != messages:
        yield kept
    if count:
        yield alternating(messages)


def _callable(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool whose parameters can be enforced. One that is strict, as its client says, is refused if they cannot be."""
    function = tool.get("function", tool)
    parameters = function.get("parameters") if isinstance(function, Mapping) else None
    if not isinstance(parameters, dict) or function.get("strict") is True:
        return tool
    loose = {**function, "parameters": loosened(parameters)}
    return {**tool, "function": loose} if "function" in tool else loose


def _known_role(model: Model, message: Message, at: int) -> Message:
    """`developer` is what `system` is now called; few templates know it. Raises InvalidParameter for a role that is
    known to nobody: templates write down whatever they are given."""
    role = message.get("role")
    if role in ROLES:
        return message
    template = model.info.chat_template or ""
    if role == "developer":
        return message if role in template else {**message, "role": "system"}
    if isinstance(role, str) and (f"'{role}'" in template or f'"{role}"' in template):
        return message
    raise InvalidParameter(f"messages[{at}].role={str(role)[:50]!r}: must be one of {', '.join(ROLES)}, developer")


def can_switch(model: Model, thinking: bool) -> bool:
    """Whether a model can be told to think, or not to. Clients ask it of any."""
    from edgellm.errors import Unsupported

    try:
        model.prompter.switched(thinking)
    except Unsupported:
        return False
    return True


def alternating(messages: Sequence[Message]) -> list[Message]:
    """Messages whose roles take turns, the user's first: what a system says goes in front of what the user says next,
    and what one says in a row is one message, also behind the result of a tool. Where a model thought, spoke and called
    a tool at once, its thought is left out."""
    found: list[Message] = []
    said: dict[int, list[str]] = {}  # the texts of those that are several, by their places
    for message in messages:
        role = "user" if message.get("role") == "system" else message.get("role")
        last = found[-1] if found else {}
        calls = message.get("tool_calls")
        plain = role in ("user", "assistant") and not calls and not last.get("tool_calls")
        if plain and (last.get("role") == role or (role, last.get("role")) == ("user", "tool")):
            said.setdefault(len(found) - 1, [_text(last)]).append(_text(message))
        elif calls and _text(message):
            found.append({key: value for key, value in message.items() if key not in REASONING})
        else:
            found.append({**message, "role": role})
    for at, texts in said.items():
        found[at] = {**found[at], "content": "\n\n".join(texts)}
    return found


def _characters(message: Message) -> int:
    """Of what it says."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]  # others are refused later
    return sum(len(text) for text in texts if isinstance(text, str))


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content)
    return str(content or "")
