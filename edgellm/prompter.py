"""Prompter: from the messages of a conversation to the prompt that a model is given, and back to what it said.

messages ── chat template ──▶ text ── what the model said before (said.py) ──▶ tokens ── what fits ──▶ Turn
                                                  ▲──────────────── remember ◀── answer ◀──────────────┘
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary, finalize

from edgellm.backends.base import Backend, text_of
from edgellm.engine.quotes import QUOTE, Quotes, unquoted
from edgellm.errors import ContextOverflow, TemplateError, Unsupported
from edgellm.params import GenerateParams
from edgellm.prompts.messages import Message, check, flattened, plain
from edgellm.said import Answer, Messages, Said

if TYPE_CHECKING:
    from edgellm.prompts.dialect import Dialect
    from edgellm.prompts.functions import Tool
    from edgellm.prompts.reasoning import Thinking
    from edgellm.prompts.template import ChatTemplate
    from edgellm.prompts.tool_prompt import ToolPrompt
    from edgellm.reading import AnswerReading, Marks

TRUSTED = ("system", "developer", "assistant")
"""Roles whose messages may hold control tokens: they are from who made the program, or from the model."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A prompt made of messages: what may be given to a model in place of a text.

    messages: those in it. dropped: those left out to make it fit. written: its text, with QUOTE in what only looks like
    a control token (engine/quotes.py). title: what people are shown of the conversation. said: where its answer is
    remembered, and whose its state is where that is private. reading: how its answer is read, and what form it must
    have; None where all of it is text. fresh: how many messages at its end were said just now.
    """

    messages: list[Message]
    dropped: list[Message]
    written: str
    tokens: list[int]
    title: str
    said: Said
    reading: AnswerReading | None = None
    fresh: int = 1

    @property
    def text(self) -> str:
        """What its tokens say."""
        return unquoted(self.written)

    @property
    def formed(self) -> bool:
        """Whether its answer has a form whatever its options say."""
        return self.reading is not None and bool(self.reading.must)


class Prompter:
    """Makes the prompts of one model, for every chat and every request that brings its messages along.

    said: the model's answers in its own tokens; nothing private is among them, and none of it reaches the disk.
    quotes: what of other people's texts the model would take for its marks; there from when the template is.
    check_open: raises Closed where the backend is. forget: told the key of each private conversation that nobody can go
    on with, by the collector, in the midst of anything. Safe from any thread.
    """

    def __init__(self, backend: Backend, check_open: Callable[[], None], forget: Callable[[bytes], None]) -> None:
        self.said = Said(backend.tokenizer)
        self._backend = backend
        self.check_open = check_open
        self._forget = forget
        self._marks: dict[Dialect | None, Marks] = {}
        self._private: WeakValueDictionary[bytes, Said] = WeakValueDictionary()  # by their owners' keys

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's chat template. Raises Unsupported where it has none, TemplateError where it does not compile."""
        info, tokenizer = self._backend.info, self._backend.tokenizer
        if info.chat_template is None:
            raise Unsupported(
                f"{info.name} has no chat template: it is a base model that completes text; use generate()"
            )
        from edgellm.prompts.template import ChatTemplate  # costs what only chats should pay

        bos, eos = (
            None if token is None else text_of(tokenizer, [token], special=True) for token in (info.bos_id, info.eos_id)
        )
        template = ChatTemplate(info.chat_template, bos=bos, eos=eos)
        self.quotes = Quotes(tokenizer.marks(template.source))  # now: a chat is saved behind the model's end, too
        return template

    @cached_property
    def quotes(self) -> Quotes:
        """What of other people's texts the model would take for its marks."""
        return Quotes(self._backend.tokenizer.marks(self.template.source))

    @cached_property
    def tool_prompt(self) -> ToolPrompt:
        """How tools get into a prompt, and calls out of an answer."""
        from edgellm.prompts.tool_prompt import ToolPrompt  # as above

        return ToolPrompt(self.template)

    @cached_property
    def thinking(self) -> Thinking | None:
        """How the model thinks; None where it does not."""
        from edgellm.prompts.reasoning import thinking_of  # as above

        return thinking_of(self.template)

    @property
    def can_switch(self) -> bool:
        """Whether the template reads that its model shall think, or shall not."""
        from edgellm.prompts.reasoning import SWITCHES  # as above

        return not self.template.variables.isdisjoint(SWITCHES)

    def switched(self, thinking: bool | None) -> dict[str, bool]:
        """What the template is given so that the model thinks, or does not. Raises Unsupported where it cannot."""
        from edgellm.prompts.reasoning import variables_for  # as above

        return variables_for(self.template, thinking)

    def tools(self, values: Sequence[Any]) -> list[Tool]:
        """Functions and JSON objects as tools. Raises InvalidParameter, Unsupported."""
        from edgellm.constrain.kinds import parameter_schema  # as above
        from edgellm.prompts.functions import tools_of

        return tools_of(values, parameter_schema)

    def new_said(self, owner: bytes = b"") -> Said:
        """A memory of answers beside the model's own, as private conversations need one: the one with the key `owner`
        where somebody holds it, else with a key that nobody has."""
        said = self._private.get(owner)
        if said is None:
            said = Said(self._backend.tokenizer, owner=os.urandom(16))
            self._private[said.owner] = said
            finalize(said, self._forget, said.owner).atexit = False
        return said

    def read(
        self,
        messages: Messages,
        said: Said | None = None,
        *,
        title: str = "",
        tools: Sequence[Any] = (),
        tool_choice: str = "auto",
        **given: Any,
    ) -> Turn:
        """The prompt of a conversation, however long it is: see `prepare`."""
        from edgellm.reading import must_call  # as above

        self.check_open()
        said = self.said if said is None else said
        found = self.tools(tools)
        must = must_call(tool_choice, [tool.name for tool in found])
        written = self._rendered(messages, found, given)
        own = written.rpartition(QUOTE)[2]  # what ends the prompt is no mark where it only looks like one
        reading = self._reading(own, found, must, silent=tool_choice == "none")
        copies = [dict(message) for message in messages]
        tokens = said.tokens(written, messages)
        return Turn(copies, [], written, tokens, title or title_of(messages), said, reading)

    def _rendered(self, messages: Messages, tools: Sequence[Tool], given: dict[str, Any]) -> str:
        """The text of the prompt. What looks like a control token in the messages of others than TRUSTED, and in
        documents, has QUOTE in it."""
        rest = dict(given)
        variables: dict[str, Any] = dict(self.switched(rest.pop("thinking", None)))
        template, quoted = self.template, self.quotes.quoted
        if "documents" in rest:
            rest["documents"] = plain(rest["documents"], "documents", change=quoted)
        listed: Messages = [
            message if message.get("role") in TRUSTED else plain(message, f"messages[{at}]", change=quoted)
            for at, message in enumerate(messages)
        ]
        if tools or any(message.get("role") == "tool" or message.get("tool_calls") for message in messages):
            listed, more = self.tool_prompt.prepared(listed, tools)
            variables.update(more)
        try:
            return template.render(listed, **variables | rest)
        except TemplateError as error:
            if QUOTE not in str(error):
                raise
            raise TemplateError(unquoted(str(error))) from error

    def _reading(self, text: str, tools: Sequence[Tool], must: Sequence[str], *, silent: bool) -> AnswerReading | None:
        """text: the end of the prompt. silent: what the model writes as a call is none; it may be told of tools all the
        same."""
        thinking, dialect = self.thinking, self.tool_prompt.dialect if tools else None
        if thinking is None and dialect is None:
            return None
        from edgellm.reading import AnswerReading, Marks  # as above

        marks = self._marks.get(dialect)
        if marks is None:
            info, tokenizer = self._backend.info, self._backend.tokenizer
            marks = self._marks[dialect] = Marks.of(tokenizer, info.stop_ids, dialect, thinking)
        schemas = {tool.name: tool.parameters for tool in tools}
        return AnswerReading(text, None if silent else dialect, thinking, marks, schemas, must)

    def prepare(
        self,
        messages: Messages,
        params: GenerateParams,
        said: Said | None = None,
        *,
        title: str = "",
        tools: Sequence[Any] = (),
        tool_choice: str = "auto",
        **given: Any,
    ) -> Turn:
        """The prompt of the next answer; with overflow="drop-oldest", without the oldest turns that do not fit.

        said: where the answers in it are known from, and where the next one goes; None is the model's own memory, or
        nowhere if `params` let nobody else find the state. title: what people are shown; "" is what was asked first.
        tools: functions, or JSON objects that describe some. tool_choice: "auto" leaves it to the model whether it
        calls some, with "none" it is told of them and calls none, with "required" it must call one, with a name that
        one. given: what the template is given beside: thinking (whether the model shall; see
        `prompts.reasoning.variables_for`), documents, variables by their names.

        Raises ContextOverflow, InvalidParameter, Unsupported, TemplateError, Closed.
        """
        check(messages)
        if said is None and params.cache is not True:
            said = self.new_said()
        tools = self.tools(tools)
        starts = turn_starts(messages)
        title = title or title_of(messages)

        @cache
        def without(turns: int) -> Turn:
            """The prompt without so many of the oldest turns."""
            left = [*messages[: starts[0]], *messages[starts[turns] :]]
            turn = self.read(left, said, title=title, tools=tools, tool_choice=tool_choice, **given)
            return replace(turn, dropped=[dict(message) for message in messages[starts[0] : starts[turns]]])

        room, most = self._backend.n_ctx - 1, 0
        if params.overflow == "drop-oldest":
            room, most = room - min(params.max_tokens or room // 4, room // 2), len(starts) - 1
        if len(without(0).tokens) <= room:
            return without(0)
        fewest = bisect_left(range(most + 1), True, lo=1, key=lambda turns: len(without(turns).tokens) <= room)
        if fewest <= most:
            return without(fewest)
        raise self._overflow(len(without(most).tokens), older=most < len(starts) - 1)

    def remember(self, turn: Turn, text: str, tokens: list[int]) -> None:
        """What the model said to a turn: its text as a message will hold it, and the tokens it produced."""
        content = None
        if turn.reading is not None:
            raw = turn.reading.raw(self._backend.tokenizer, tokens, turn.tokens[-1] if turn.tokens else None)
            text, content = (raw, text) if raw != text else (text, None)
        turn.said.add(Answer(len(turn.messages), turn.written, text, turn.tokens + tokens, len(turn.tokens), content))

    def answers(
        self, messages: Messages, said: Said | None = None, *, tools: Iterable[Tool] = (), **given: Any
    ) -> list[Answer]:
        """The answers among `messages` in the model's own tokens, as far as they are known; the first one first."""
        last = next((at for at in reversed(range(len(messages))) if messages[at].get("role") == "assistant"), 0)
        try:
            text = self._rendered(messages[:last], list(tools), given) if last else ""
        except (TemplateError, Unsupported):  # it was edited into what the model is never asked
            return []
        return (self.said if said is None else said).answers(text, messages) if last else []

    def _overflow(self, tokens: int, *, older: bool) -> ContextOverflow:
        """The error for a prompt that does not fit. older: there are turns that could be left out."""
        ctx, trained = self._backend.n_ctx, self._backend.info.n_ctx_train
        ways = ["start anew", "let overflow=drop-oldest leave old turns out"] if older else ["shorten it"]
        ways += [f"load with a larger ctx (trained for {trained})"] if ctx < trained else []
        return ContextOverflow(
            f"{'the conversation' if older else 'the message'} has {tokens} tokens and the context holds {ctx} with at "
            f"least one to answer; {', or '.join(ways)}",
            needed=tokens + 1,
            n_ctx=ctx,
        )


def title_of(messages: Messages) -> str:
    """What was asked first; "" where nothing was."""
    asked = next((message for message in messages if message.get("role") == "user"), {})
    return str(flattened(dict(asked)).get("content") or "")


def turn_starts(messages: Messages) -> list[int]:
    """Where the oldest turn starts, behind the system prompt, and where each turn of the user after it does."""
    first = next((at for at, message in enumerate(messages) if message.get("role") != "system"), len(messages))
    return [first, *(at for at in range(first + 1, len(messages)) if messages[at].get("role") == "user")]
