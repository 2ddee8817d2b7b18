"""Chat: the messages of a conversation, and the tokens they became."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from edgellm import arguments
from edgellm.backends.base import ModelInfo
from edgellm.engine.cancel import CancelToken
from edgellm.engine.progress import OnProgress, check_progress
from edgellm.errors import Busy, ContextOverflow, InvalidModelFile, InvalidParameter, Unsupported
from edgellm.events import Chunk, Completion
from edgellm.kv.archive import read_archive, write_archive
from edgellm.option import build
from edgellm.params import GenerateOptions, GenerateParams
from edgellm.prompts.messages import Message, check_content, copied, flattened, plain
from edgellm.prompts.template import ChatTemplate
from edgellm.said import Answer, Said, packed, unpacked

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgellm.model import Model

log = logging.getLogger("edgellm.chat")
Content = str | Sequence[Mapping[str, Any]]
"""What a message says: a text, or parts of the form {"type": "text", "text": ...}."""
VERSION = 3  # of a saved conversation


@dataclass(frozen=True, slots=True)
class _Turn:
    """A prompt on its way: the messages in it, those dropped to make it fit, its text and its tokens."""

    messages: list[Message]
    dropped: list[Message]
    text: str
    tokens: list[int]


class Chat:
    """A conversation with a model. `messages` holds everything said; nothing is removed from it silently.

    One answer at a time: while one is being produced, from the first piece of a stream to its end, what would answer or
    change the conversation raises Busy, in every thread. Reading goes on, and `fork` talks beside it. Messages are
    copies: nothing in them is shared with what was given.
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
        source = model.info.chat_template
        if source is None:
            raise Unsupported(
                f"{model.info.name} has no chat template: it is a base model that completes text; use generate()"
            )
        self.model = model
        self.messages: list[Message] = copied(messages)
        self.dropped: list[Message] = []  # oldest turns that the context no longer holds, in order
        self.thinking = _switch("thinking", thinking)
        self.private = _switch("private", private) is True  # its state never touches the disk
        if system is not None:
            if self.messages and self.messages[0].get("role") == "system":
                raise InvalidParameter("system= is given, and the messages begin with a system message too; give one")
            self.messages.insert(0, _message("system", system, "system"))
        bos, eos = _text_of(model, model.info.bos_id), _text_of(model, model.info.eos_id)
        self._template = ChatTemplate(source, bos=bos, eos=eos)
        self._said = Said(model._engine.backend.tokenizer)
        self._answering = threading.Lock()
        self.unused_state = ""  # why the state of a restored conversation could not be used

    def __reduce__(self) -> NoReturn:
        raise Unsupported("a chat holds a model and cannot be copied or pickled; use fork(), or save() and load_chat()")

    @property
    def system(self) -> str | None:
        """The text of the system prompt; its parts with a line break between them."""
        return str(flattened(self._listed()[0])["content"]) if self._has_system() else None

    @system.setter
    def system(self, content: Content) -> None:
        message = _message("system", content, "system")
        with self._alone():
            self.messages[: 1 if self._has_system() else 0] = [message]

    def send(
        self,
        content: Content,
        params: GenerateParams | None = None,
        *,
        cancel: CancelToken | None = None,
        progress: OnProgress | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Say `content` and wait for the answer. `progress`, here and below, is that of `Model.generate`.

        Raises Busy, ContextOverflow, TemplateError, InvalidParameter and what generate() raises.
        """
        message = _message("user", content, "content")
        chosen = self._chosen(params, options)
        with self._alone():
            return self._answer([*self._listed(), message], chosen, cancel, progress)

    def stream(
        self,
        content: Content,
        params: GenerateParams | None = None,
        *,
        cancel: CancelToken | None = None,
        progress: OnProgress | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[Chunk]:
        """Say `content` and get the answer piece by piece. Close the iterator, or drop it, to cancel.

        What is wrong is raised here, as `send` does; the answer begins with the first piece that is asked for. The
        exchange is part of the conversation also when it was cancelled: with the answer as far as it came.
        """
        message = _message("user", content, "content")
        chosen = self._chosen(params, options)
        check_progress(progress)
        with self._alone():
            self._fit([*self._listed(), message], chosen)
        return self._stream(message, chosen, cancel, progress)

    def regenerate(
        self,
        params: GenerateParams | None = None,
        *,
        cancel: CancelToken | None = None,
        progress: OnProgress | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Answer the last message of the user anew, in place of the answer it got. Everything before is reused."""
        chosen = self._chosen(params, options)
        with self._alone():
            messages = self._listed()
            asked = next((i for i in reversed(range(len(messages))) if messages[i].get("role") == "user"), None)
            if asked is None:
                raise InvalidParameter("nothing was asked yet, so there is no answer to regenerate")
            return self._answer(messages[: asked + 1], chosen, cancel, progress)

    def edit(
        self,
        index: int,
        content: Content,
        params: GenerateParams | None = None,
        *,
        cancel: CancelToken | None = None,
        progress: OnProgress | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Put `content` in place of the user's message `messages[index]`, forget what came after, and answer it.

        Everything before is reused. The conversation stays as it was when the answer fails.
        """
        message = _message("user", content, "content")
        chosen = self._chosen(params, options)
        if not arguments.is_int(index):
            raise arguments.refuse("index", index, "the position of a message")
        with self._alone():
            messages = self._listed()
            if not 0 <= index < len(messages) or messages[index].get("role") != "user":
                raise InvalidParameter(f"messages[{arguments.shown(index)}] is not a message of the user")
            return self._answer([*messages[:index], message], chosen, cancel, progress)

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
            messages, dropped = list(self._listed()), list[Message]()
            for _ in range(turns):
                turn = _oldest_turn(messages)
                if turn is None:
                    break
                dropped += messages[turn]
                del messages[turn]
            if not dropped:
                raise InvalidParameter("there are no older turns than the last one")
            self.messages = messages
            self.dropped += dropped
            return deepcopy(dropped)

    def count_tokens(self) -> int:
        """Tokens of the context that the conversation takes by now. Raises TemplateError."""
        messages = self._listed()
        return len(self._render(messages)[1]) if messages else 0

    @property
    def can_think(self) -> bool:
        """Whether `thinking` has an effect: the chat template reads it."""
        return self._template.supports("thinking")

    def fork(self) -> Chat:
        """An independent conversation with the same past."""
        twin = Chat(self.model, messages=self._listed(), thinking=self.thinking, private=self.private)
        twin.dropped = deepcopy(self.dropped)
        twin._said = Said(self.model._engine.backend.tokenizer, self._said.answers)
        return twin

    def save(self, path: str | Path, *, state: bool = False) -> None:
        """Write the conversation to a file, readable by its owner only, that appears whole or not at all.

        Without `state` it is JSON: messages and tokens. With it, a ZIP archive that also holds what the model knows of
        the conversation (`info.kv_bytes_per_token` bytes a token), so that another process or another machine with the
        same model and build goes on without reading it again. Raises CannotWrite, InvalidParameter.
        """
        file, answers = arguments.path("path", path), self._said.answers
        content = {
            "edgellm_chat": VERSION,
            "model": self.model.info.name,
            "messages": copied(self._listed()),
            "dropped": self.dropped,
            "thinking": self.thinking,
            "private": self.private,
            "said": packed(answers),
        }
        blocks = self.model._engine.export(answers[-1].tokens, private=self.private) if state and answers else []
        write_archive(file, content, blocks, self.model.info.name)

    def restore(self, path: str | Path) -> None:
        """Take the conversation that `save` wrote in place of this one. Raises InvalidModelFile, ModelNotFound, Busy.

        `unused_state` says why the state in the file is of no use here, and is "" otherwise.
        """
        content, blocks, damage = read_archive(arguments.path("path", path))
        try:
            if content["edgellm_chat"] != VERSION:
                raise ValueError(f"of version {content['edgellm_chat']!r}, and this edgellm reads {VERSION}")
            messages, dropped = copied(content["messages"]), copied(content["dropped"])
            thinking, private = _switch("thinking", content["thinking"]), _switch("private", content["private"])
            ours = content["model"] == self.model.info.name  # else they are another model's tokens
            answers = unpacked(content["said"], self.model.info.n_vocab)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InvalidModelFile(f"{path}: not a saved conversation: {error}") from error
        with self._alone():
            self.messages, self.dropped, self.thinking, self.private = messages, dropped, thinking, private is True
            self._said = Said(self.model._engine.backend.tokenizer, answers if ours else ())
            self.unused_state = damage
            if blocks and not self.model._engine.adopt(blocks, private=self.private):
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
            copied(held)
        return self.messages

    def _has_system(self) -> bool:
        messages = self._listed()
        return bool(messages) and messages[0].get("role") == "system"

    def _chosen(self, params: GenerateParams | None, options: Mapping[str, Any]) -> GenerateParams:
        chosen = build(GenerateParams, options, params)
        return replace(chosen, cache="memory") if self.private and chosen.cache else chosen

    def _answer(
        self,
        messages: list[Message],
        chosen: GenerateParams,
        cancel: CancelToken | None,
        progress: OnProgress | None,
    ) -> Completion:
        completion: Completion | None = None
        for chunk in self._deliver(self._fit(messages, chosen), chosen, cancel, progress, stream=False):
            completion = chunk.completion
        assert completion is not None  # the last chunk always carries it
        return completion

    def _stream(
        self, message: Message, chosen: GenerateParams, cancel: CancelToken | None, progress: OnProgress | None
    ) -> Iterator[Chunk]:
        with self._alone():
            turn = self._fit([*self._listed(), message], chosen)  # something may have been said since it was asked for
            yield from self._deliver(turn, chosen, cancel, progress, stream=True)

    # How a turn becomes tokens

    def _deliver(
        self,
        turn: _Turn,
        chosen: GenerateParams,
        cancel: CancelToken | None,
        progress: OnProgress | None,
        *,
        stream: bool,
    ) -> Iterator[Chunk]:
        asked = next((m for m in (*self.dropped, *turn.messages) if m.get("role") == "user"), {})
        request = self.model.submit(
            turn.tokens,
            replace(chosen, overflow="error"),
            stream=stream,
            cancel=cancel,
            progress=progress,
            title=str(flattened(asked).get("content") or ""),
        )
        answer, tokens = "", list[int]()
        final: Completion | None = None
        try:
            for chunk in request:
                answer += chunk.text
                tokens += chunk.tokens
                if chunk.completion is not None:
                    final = replace(chunk.completion, dropped=deepcopy(turn.dropped))
                    chunk = replace(chunk, completion=final)
                    self._remember(turn, final.text, final.tokens)
                yield chunk
        finally:
            request.cancel()
            if final is None and answer:
                self._remember(turn, answer, tokens)

    def _remember(self, turn: _Turn, answer: str, tokens: list[int]) -> None:
        self._said.add(Answer(len(turn.messages), turn.text, answer, turn.tokens + tokens, len(turn.tokens)))
        self.dropped += turn.dropped
        self.messages = [*turn.messages, {"role": "assistant", "content": answer}]

    def _fit(self, messages: list[Message], params: GenerateParams) -> _Turn:
        """The prompt of the next answer; with overflow="drop-oldest", without the oldest turns that do not fit."""
        dropped: list[Message] = []
        room = self.model.n_ctx - 1
        if params.overflow == "drop-oldest":
            room -= min(params.max_tokens or room // 4, room // 2)
        while True:
            text, tokens = self._render(messages)
            if len(tokens) <= room:
                return _Turn(messages, dropped, text, tokens)
            turn = _oldest_turn(messages)
            if params.overflow == "error" or turn is None:
                ctx, trained = self.model.n_ctx, self.model.info.n_ctx_train
                ways = (
                    ["shorten it"] if turn is None else ["start anew", "let overflow=drop-oldest leave old turns out"]
                )
                ways += [f"load with a larger ctx (trained for {trained})"] if ctx < trained else []
                raise ContextOverflow(
                    f"{'the message' if turn is None else 'the conversation'} has {len(tokens)} tokens and the context "
                    f"holds {ctx} with at least one to answer; {', or '.join(ways)}",
                    needed=len(tokens) + 1,
                    n_ctx=ctx,
                )
            dropped += messages[turn]
            messages = messages[: turn.start] + messages[turn.stop :]

    def _render(self, messages: list[Message]) -> tuple[str, list[int]]:
        """The prompt as text and tokens. Raises Closed."""
        self.model._engine.check_open()
        text = self._template.render(messages, thinking=_switch("thinking", self.thinking))
        return text, self._said.tokens(text, messages)


def _message(role: str, content: object, name: str) -> Message:
    """A message that shares nothing with what was given. name: of the argument. Raises InvalidParameter."""
    check_content(content, name)
    return {"role": role, "content": plain(content, name)}


def _switch(name: str, value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise arguments.refuse(name, value, "True, False or None")
    return value


def _oldest_turn(messages: Sequence[Message]) -> slice | None:
    """The oldest user message and the answers to it; None when only the system prompt and the last message are left."""
    start = next((i for i, message in enumerate(messages) if message.get("role") != "system"), len(messages))
    stop = next((i for i in range(start + 1, len(messages)) if messages[i].get("role") == "user"), len(messages))
    return slice(start, stop) if stop < len(messages) else None


def _text_of(model: Model, token: int | None) -> str | None:
    return None if token is None else model.decode([token], special=True)
