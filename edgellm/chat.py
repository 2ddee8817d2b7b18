"""Chat: the messages of a conversation, and one answer at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from edgellm import arguments
from edgellm.backends.base import ModelInfo
from edgellm.engine.control import LONG, Control, beside_loop, split
from edgellm.errors import Busy, InvalidParameter, Unsupported
from edgellm.events import Chunk, Completion
from edgellm.kv.archive import write_archive
from edgellm.kv.prefixes import PUBLIC
from edgellm.params import GenerateParams
from edgellm.prompter import Turn, title_of, turn_starts
from edgellm.prompts.functions import Tool
from edgellm.prompts.messages import Message, check, copied, flattened
from edgellm.reply import Ask, ChatOptions, Content, Reply, asked_last, asking, message
from edgellm.rounds import Rounds, RunOptions
from edgellm.said import Answer, packed
from edgellm.saved import VERSION, read_saved, switch

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgellm.model import Model

log = logging.getLogger("edgellm.chat")
LEFT = 8  # steps of an event loop in which a stream that was left is surely closed

MakesPrompt = Callable[[list[Message]], Turn]  # of the messages that are there
Asked = tuple[MakesPrompt, GenerateParams, Control]
"""What makes the prompt, how it is answered, and who may stop that and follow it."""


class Chat:
    """A conversation with a model. `messages` holds everything said; nothing is removed from it silently.

    One answer at a time: while one is being produced, from the first piece of a stream to its end, what would answer or
    change the conversation raises Busy, in every thread. Reading goes on, and `fork` talks beside it. What is put into
    `messages` meanwhile stays, behind the answer. Messages are copies: nothing in them is shared with what was given.
    """

    def __init__(
        self,
        model: Model,
        *,
        system: Content | None = None,
        messages: Sequence[Mapping[str, Any]] = (),
        thinking: bool | None = None,
        private: bool = False,
    ) -> None:
        if not isinstance(getattr(model, "info", None), ModelInfo):
            raise arguments.refuse("model", model, "an opened Model")
        self.model = model
        self.messages: list[Message] = copied(messages)
        self.dropped: list[Message] = []  # oldest turns that the context no longer holds, in order
        self.thinking = switch("thinking", thinking)
        model.prompter.switched(self.thinking)  # raises where it cannot be, or where there is no template
        self.private = switch("private", private) is True  # its state never touches the disk
        if system is not None:
            if self.messages and self.messages[0].get("role") == "system":
                raise InvalidParameter("system= is given, and the messages begin with a system message too; give one")
            self.messages.insert(0, message("system", system, "system"))
        self._own = model.prompter.new_said()  # what is private of it, here and in the engine
        self._answering = threading.Lock()
        self._tools: list[Tool] = []  # of the last answer
        self.unused_state = ""  # why the state of a restored conversation could not be used

    def __reduce__(self) -> NoReturn:
        raise Unsupported("a chat holds a model and cannot be copied or pickled; use fork(), or save() and load_chat()")

    @property
    def system(self) -> str | None:
        """The text of the system prompt; its parts with a line break between them."""
        return str(flattened(self._listed()[0])["content"]) if self._has_system() else None

    @system.setter
    def system(self, content: Content) -> None:
        said = message("system", content, "system")
        with self._alone():
            self.messages[: 1 if self._has_system() else 0] = [said]

    def send(
        self,
        content: Content,
        params: GenerateParams | None = None,
        *,
        at: int | None = None,
        **options: Unpack[ChatOptions],
    ) -> Completion:
        """Say `content` and wait for the answer. options: those of `Model.generate`, `cancel` and `progress` too; tools
        and tool_choice. The results of the calls in an answer are content, too.

        at: say it in place of the user's message `messages[at]`; what came after is forgotten once there is an answer.
        An answer that was stopped before its first token leaves the conversation as it was.

        Raises Busy, ContextOverflow, TemplateError, InvalidParameter and what generate() raises.
        """
        return self._send(*self._asked(asking(content, at), params, options))

    async def asend(
        self,
        content: Content,
        params: GenerateParams | None = None,
        *,
        at: int | None = None,
        **options: Unpack[ChatOptions],
    ) -> Completion:
        """`send` and its options for asyncio; cancelling the task cancels the answer."""
        prompt, chosen, control = self._asked(asking(content, at), params, options)
        await self._left_streams_end()
        with self._alone(), self._replying(held := self._held(), await self._made(prompt, held, content)) as reply:
            return reply.end(await self.model.agenerate(reply.turn, chosen, **control))

    def stream(
        self,
        content: Content,
        params: GenerateParams | None = None,
        *,
        at: int | None = None,
        **options: Unpack[ChatOptions],
    ) -> Iterator[Chunk]:
        """Say `content`, get the answer piece by piece. Close the iterator, or drop it, to cancel. at, options: `send`.

        What is wrong is raised here, as `send` does; the answer begins with the first piece that is asked for. The
        exchange is part of the conversation also when it was cancelled: with the answer as far as it came.
        """
        return self._stream(*self._begun(asking(content, at), params, options))

    def astream(
        self,
        content: Content,
        params: GenerateParams | None = None,
        *,
        at: int | None = None,
        **options: Unpack[ChatOptions],
    ) -> AsyncGenerator[Chunk]:
        """`stream` and its options for asyncio; cancelling the task cancels the answer.

        What is wrong is raised with the first piece in place of here where the event loop should not wait until it is
        known: in a conversation of more than 65,536 characters, and where a stream that was left is still to be closed.
        """
        begin = self._asked if self._answering.locked() or self._is_long(content) else self._begun
        return self._astream(content, *begin(asking(content, at), params, options))

    def run(self, content: Content, params: GenerateParams | None = None, **options: Unpack[RunOptions]) -> Completion:
        """`send`, and as long as the answer calls `tools`, which are functions, run them and give their results back.

        options: `send`'s, whose tool_choice is that of the first answer; approve: is asked before each call, and all
        but True is a reason why not; rounds: how often results are given (8), behind which the model must answer
        and call nothing. What a tool raises is told to the model. `messages` hold all that was said; the Completion is
        that of the last answer. Raises what `send` does.
        """
        loop = Rounds(options, self.model.prompter)
        done = self.send(content, params, **loop.options)
        while calls := loop.calls(done):
            done = self.send(loop.run(calls), params, **loop.options)
        return done

    async def arun(
        self, content: Content, params: GenerateParams | None = None, **options: Unpack[RunOptions]
    ) -> Completion:
        """`run` and its options for asyncio: tools and `approve` may be coroutine functions, other tools run in
        threads. Cancelling the task cancels the answer."""
        loop = Rounds(options, self.model.prompter)
        done = await self.asend(content, params, **loop.options)
        while calls := loop.calls(done):
            done = await self.asend(await loop.arun(calls), params, **loop.options)
        return done

    def regenerate(self, params: GenerateParams | None = None, **options: Unpack[ChatOptions]) -> Completion:
        """Answer the user's last message anew, in place of its answer; all before is reused. options: `send`'s."""
        return self._send(*self._asked(asked_last, params, options))

    def edit(
        self, index: int, content: Content, params: GenerateParams | None = None, **options: Unpack[ChatOptions]
    ) -> Completion:
        """Answer `content` in place of the user's message `messages[index]`, as `send` does with `at` and its options.

        What came after is forgotten, all before is reused. The conversation stays as it was when the answer fails.
        """
        if not arguments.is_int(index):
            raise arguments.refuse("index", index, "the position of a message")
        return self._send(*self._asked(asking(content, index), params, options))

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        with self._alone():
            self.messages = self.messages[: 1 if self._has_system() else 0]
            self.dropped = []

    def drop_oldest(self, turns: int = 1) -> list[Message]:
        """Leave out the oldest messages of the user and the answers to them; the last one and the system prompt stay.

        Returns what was left out, which `dropped` holds too. Raises InvalidParameter when there is nothing older, Busy.
        """
        arguments.whole("turns", turns, 1)
        with self._alone():
            messages = self._listed()
            starts = turn_starts(messages)
            start, stop = starts[0], starts[min(turns, len(starts) - 1)]
            if start == stop:
                raise InvalidParameter("there are no older turns than the last one")
            dropped = messages[start:stop]
            self.messages = messages[:start] + messages[stop:]
            self.dropped = self.dropped + dropped
            return deepcopy(dropped)

    def count_tokens(self) -> int:
        """Tokens of the context that the conversation takes by now. Raises TemplateError."""
        messages = self._listed()
        prompter, said = self.model.prompter, self._own if self.private else None
        return len(prompter.read(messages, said, tools=self._tools, **self._given()).tokens) if messages else 0

    @property
    def can_think(self) -> bool:
        """Whether `thinking` has an effect: the chat template reads it."""
        return self.model.prompter.can_switch

    def fork(self) -> Chat:
        """An independent conversation with the same past."""
        self.model.prompter.check_open()
        twin = Chat(self.model, messages=self._listed(), thinking=self.thinking, private=self.private)
        twin.dropped = deepcopy(self.dropped)
        twin._own = self._own
        return twin

    def save(self, path: str | Path, *, state: bool = False) -> None:
        """Write the conversation to a file, readable by its owner only, that appears whole or not at all.

        Without `state` it is JSON: messages and tokens. With it, a ZIP archive that also holds what the model knows of
        the conversation (`info.kv_bytes_per_token` bytes a token), so that another process or another machine with the
        same model and build goes on without reading it again. Raises CannotWrite, InvalidParameter.
        """
        file, messages = arguments.path("path", path), copied(self._listed())
        arguments.flag("state", state)
        answers = self._answers()
        content = {
            "edgellm_chat": VERSION,
            "model": self.model.info.name,
            "messages": messages,
            "dropped": self.dropped,
            "thinking": self.thinking,
            "private": self.private,
            "owner": self._own.owner.hex(),
            "said": packed(answers),
        }
        blocks = self.model.export_state(answers[-1].tokens, private=self._key) if state and answers else []
        write_archive(file, content, blocks, self.model.info.name)

    def restore(self, path: str | Path) -> None:
        """Take the conversation that `save` wrote in place of this one. Raises InvalidModelFile, ModelNotFound, Busy.

        `unused_state` says why the state in the file is of no use here, and is "" otherwise.
        """
        saved = read_saved(arguments.path("path", path), self.model.info)
        with self._alone():
            self.messages, self.dropped = saved.messages, saved.dropped
            self.thinking, self.private = saved.thinking, saved.private
            self._own = self.model.prompter.new_said(saved.owner)
            said = self._own if self.private else self.model.prompter.said
            for answer in saved.answers:
                said.add(answer, proven=False)
            self.unused_state = saved.damage
            if saved.blocks and not self.model.adopt_state(saved.blocks, private=self._key):
                self.unused_state = "the saved state is of another model, another engine build or another KV type"
        if self.unused_state:
            log.warning("%s: %s; the conversation will be read again", path, self.unused_state)

    # One answer at a time

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else answers or changes the conversation meanwhile. Raises Busy when somebody does."""
        if not self._answering.acquire(blocking=False):
            raise Busy(
                "this chat is producing an answer; wait for its end, close its stream, or talk beside it with fork()"
            )
        try:
            yield
        finally:
            self._answering.release()

    def _listed(self) -> list[Message]:
        """The messages. Raises InvalidParameter where somebody has put what is none among them, or into `dropped`."""
        for name in ("messages", "dropped"):
            held = getattr(self, name)
            if not isinstance(held, list) or not all(isinstance(message, dict) for message in held):
                raise InvalidParameter(f"chat.{name} is no longer a list of dictionaries")
            check(held)
        return self.messages

    @property
    def _key(self) -> bytes:
        """Whose the state of the conversation is: everybody's, or its own."""
        return self._own.owner if self.private else PUBLIC

    def _has_system(self) -> bool:
        messages = self._listed()
        return bool(messages) and messages[0].get("role") == "system"

    def _given(self) -> dict[str, Any]:
        """What the template is given beside the messages."""
        return {"thinking": switch("thinking", self.thinking)}

    def _answers(self) -> list[Answer]:
        """The answers in the conversation as the model produced them, as far as that is known."""
        said = self._own if self.private else None
        return self.model.prompter.answers(self._listed(), said, tools=self._tools, **self._given())

    def _asked(self, ask: Ask, params: GenerateParams | None, options: ChatOptions) -> Asked:
        """What a call asks for. The prompt is made of the messages that `ask` gives for those that are there: for a
        stream twice, once to say what is wrong, and, as something may have been said since, when it begins."""
        tools = self.model.prompter.tools(options.pop("tools", None) or ())
        choice = options.pop("tool_choice", None) or "auto"
        chosen, control = split(options, params)
        if self.private and chosen.cache:
            chosen = replace(chosen, cache="memory")
        made: list[tuple[Any, Turn]] = []

        def prompt(held: list[Message]) -> Turn:
            asked, given = ask(held), self._given()
            if not made or made[-1][0] != (asked, given):
                said = None if chosen.cache is True else self._own
                title, prepare = title_of(self.dropped), self.model.prompter.prepare
                turn = prepare(asked, chosen, said, title=title, tools=tools, tool_choice=choice, **given)
                known = sum(before is after for before, after in zip(held, asked, strict=False))
                made.append((deepcopy((asked, given)), replace(turn, fresh=len(asked) - known)))
                self._tools = tools
            return made[-1][1]

        return prompt, chosen, control

    def _begun(self, ask: Ask, params: GenerateParams | None, options: ChatOptions) -> Asked:
        """The same for a stream: what is wrong is raised here."""
        asked = self._asked(ask, params, options)
        with self._alone():
            asked[0](self._held())
        return asked

    @contextmanager
    def _replying(self, held: list[Message], turn: Turn) -> Iterator[Reply]:
        """An answer to a turn, made when the messages were `held`, is on its way."""
        reply = Reply(turn, partial(self._remember, held))
        try:
            yield reply
        finally:
            reply.cut()

    def _held(self) -> list[Message]:
        return list(self._listed())

    def _is_long(self, content: Content) -> bool:
        return len(str(content)) + len(str(self.messages)) > LONG

    async def _made(self, prompt: MakesPrompt, held: list[Message], content: Content) -> Turn:
        """The prompt that says `content`; a long one is made while the event loop goes on."""
        return await beside_loop(partial(prompt, held)) if self._is_long(content) else prompt(held)

    async def _left_streams_end(self) -> None:
        """Let the event loop close a stream that its reader left by `break`: it does so a few steps later."""
        from asyncio import sleep  # costs what only its users should pay

        for _ in range(LEFT):
            if self._answering.locked():
                await sleep(0)

    def _remember(self, held: list[Message], turn: Turn, answer: Message, tokens: list[int]) -> None:
        """The question and its answer, behind what the turn holds of the messages that were there when it was asked.

        Nobody can be kept from changing the list or a message of it meanwhile: what is new in it stays, behind them.
        """
        self.model.prompter.remember(turn, answer["content"], tokens)
        gone = len(turn.dropped)
        first, asked = turn_starts(turn.messages)[0], len(turn.messages) - turn.fresh
        past = [*held[:first], *held[first + gone : asked + gone], *turn.messages[asked:]]
        known = set(map(id, held))
        listed = self.messages if isinstance(self.messages, list) else []
        new = [message for message in listed if id(message) not in known]
        self.dropped = self.dropped + turn.dropped
        self.messages = [*past, answer, *new]

    def _send(self, prompt: MakesPrompt, chosen: GenerateParams, control: Control) -> Completion:
        with self._alone(), self._replying(held := self._held(), prompt(held)) as reply:
            return reply.end(self.model.generate(reply.turn, chosen, **control))

    def _stream(self, prompt: MakesPrompt, chosen: GenerateParams, control: Control) -> Generator[Chunk]:
        with self._alone(), self._replying(held := self._held(), prompt(held)) as reply:
            request = self.model.submit(reply.turn, chosen, stream=True, **control)
            try:
                for chunk in request:
                    yield reply.take(chunk)
            finally:
                request.cancel()

    async def _astream(
        self, content: Content, prompt: MakesPrompt, chosen: GenerateParams, control: Control
    ) -> AsyncGenerator[Chunk]:
        await self._left_streams_end()
        with self._alone(), self._replying(held := self._held(), await self._made(prompt, held, content)) as reply:
            async with aclosing(self.model.astream(reply.turn, chosen, **control)) as chunks:
                async for chunk in chunks:
                    yield reply.take(chunk)
