"""Chat: the messages of a conversation, and the tokens they became."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.engine.cancel import CancelToken
from edgellm.errors import ContextOverflow, InvalidModelFile, InvalidParameter, Unsupported
from edgellm.events import Chunk, Completion
from edgellm.kv.archive import read_archive, write_archive
from edgellm.params import GenerateParams, build
from edgellm.prompts.template import ChatTemplate

if TYPE_CHECKING:
    from edgellm.engine.request import Request
    from edgellm.model import Model

log = logging.getLogger("edgellm.chat")
Message = dict[str, Any]
Said = list[tuple[str, list[int]]]
VERSION = 2  # of a saved conversation
REMEMBERED = 64  # texts of one conversation whose tokens are kept


@dataclass(frozen=True, slots=True)
class _Turn:
    """A prompt on its way: the messages in it, those dropped to make it fit, its text and its tokens."""

    messages: list[Message]
    dropped: list[Message]
    text: str
    tokens: list[int]


class Chat:
    """A conversation with a model. `messages` holds everything said; nothing is removed from it silently.

    One answer at a time; use one Chat per thread.
    """

    def __init__(
        self,
        model: Model,
        *,
        system: str | None = None,
        messages: Sequence[Mapping[str, Any]] = (),
        thinking: bool | None = None,
        private: bool = False,
    ) -> None:
        source = model.info.chat_template
        if source is None:
            raise Unsupported(
                f"{model.info.name} has no chat template: it is a base model that completes text; use generate()"
            )
        self.model = model
        self.messages: list[Message] = [dict(message) for message in messages]
        self.dropped: list[Message] = []  # oldest turns that the context no longer holds, in order
        self.thinking = thinking
        self.private = private  # its state never touches the disk
        if system is not None:
            if self.messages and self.messages[0].get("role") == "system":
                raise InvalidParameter("system= is given, and the messages begin with a system message too; give one")
            self.messages.insert(0, {"role": "system", "content": system})
        bos, eos = _text_of(model, model.info.bos_id), _text_of(model, model.info.eos_id)
        self._template = ChatTemplate(source, bos=bos, eos=eos)
        # Texts that were prompts, or prompts with their answers, and the tokens the model saw and produced for them.
        self._said: Said = []
        self.unused_state = ""  # why the state of a restored conversation could not be used

    @property
    def system(self) -> str | None:
        """The system prompt."""
        first = self.messages[0] if self.messages else {}
        return str(first["content"]) if first.get("role") == "system" else None

    @system.setter
    def system(self, text: str) -> None:
        self.messages[: 1 if self.system is not None else 0] = [{"role": "system", "content": text}]

    def send(
        self,
        content: str,
        params: GenerateParams | None = None,
        *,
        cancel: CancelToken | None = None,
        **options: Any,
    ) -> Completion:
        """Say `content` and wait for the answer. Raises ContextOverflow, TemplateError and what generate() raises."""
        completion: Completion | None = None
        for chunk in self._exchange(content, params, cancel, options, stream=False):
            completion = chunk.completion
        assert completion is not None  # the last chunk always carries it
        return completion

    def stream(
        self,
        content: str,
        params: GenerateParams | None = None,
        *,
        cancel: CancelToken | None = None,
        **options: Any,
    ) -> Iterator[Chunk]:
        """Say `content` and get the answer piece by piece. Close the iterator to cancel.

        The exchange is part of the conversation also when it was cancelled: with the answer as far as it came.
        """
        return self._exchange(content, params, cancel, options, stream=True)

    def regenerate(self, params: GenerateParams | None = None, **options: Any) -> Completion:
        """Answer the last message of the user anew, in place of the answer it got. Everything before is reused."""
        asked = next((i for i in range(len(self.messages) - 1, -1, -1) if self.messages[i].get("role") == "user"), None)
        if asked is None:
            raise InvalidParameter("nothing was asked yet, so there is no answer to regenerate")
        return self.edit(asked, str(self.messages[asked]["content"]), params, **options)

    def edit(self, index: int, content: str, params: GenerateParams | None = None, **options: Any) -> Completion:
        """Put `content` in place of the user's message `messages[index]`, forget what came after, and answer it.

        Everything before is reused. The conversation stays as it was when the answer fails.
        """
        if not 0 <= index < len(self.messages) or self.messages[index].get("role") != "user":
            raise InvalidParameter(f"messages[{index}] is not a message of the user")
        before = self.messages
        self.messages = self.messages[:index]
        try:
            return self.send(content, params, **options)
        except BaseException:
            self.messages = before
            raise

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self.messages = self.messages[: 1 if self.system is not None else 0]
        self.dropped = []

    def fork(self) -> Chat:
        """An independent conversation with the same past."""
        twin = Chat(self.model, messages=self.messages, thinking=self.thinking, private=self.private)
        twin.dropped = [dict(message) for message in self.dropped]
        twin._said = list(self._said)
        return twin

    def save(self, path: str | Path, *, state: bool = False) -> None:
        """Write the conversation to a file, readable by its owner only, that appears whole or not at all.

        Without `state` it is JSON: messages and tokens. With it, a ZIP archive that also holds what the model knows of
        the conversation (`info.kv_bytes_per_token` bytes a token), so that another process or another machine with the
        same model and build goes on without reading it again. Raises OSError.
        """
        content = {
            "edgellm_chat": VERSION,
            "model": self.model.info.name,
            "messages": self.messages,
            "dropped": self.dropped,
            "thinking": self.thinking,
            "private": self.private,
            "said": _packed(self._said),
        }
        blocks = self.model._engine.export(self._said[-1][1], private=self.private) if state and self._said else []
        write_archive(Path(path), content, blocks, self.model.info.name)

    def restore(self, path: str | Path) -> None:
        """Take the conversation that `save` wrote in place of this one. Raises InvalidModelFile, OSError.

        `unused_state` says why the state in the file is of no use here, and is "" otherwise.
        """
        content, blocks, damage = read_archive(Path(path))
        try:
            messages, dropped = content["messages"], content["dropped"]
            if content["edgellm_chat"] != VERSION or not all(isinstance(m, dict) for m in [*messages, *dropped]):
                raise ValueError("unknown version")
            said = _unpacked(content["said"])
            thinking, private = content["thinking"], bool(content["private"])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InvalidModelFile(f"{path}: not a saved conversation: {error}") from error
        self.messages, self.dropped, self.thinking, self.private = messages, dropped, thinking, private
        own = max(said, key=lambda pair: len(pair[1]), default=("", []))
        if (
            any(not 0 <= token < self.model.info.n_vocab for token in own[1])
            or self.model.info.name != content["model"]
        ):
            said = []  # another model's tokens
        self._said = said
        self.unused_state = damage
        if blocks and not self.model._engine.adopt(blocks, private=private):
            self.unused_state = "the saved state is of another model, another engine build or another KV type"
        if self.unused_state:
            log.warning("%s: %s; the conversation will be read again", path, self.unused_state)

    # How a turn becomes tokens

    def _exchange(
        self,
        content: str,
        params: GenerateParams | None,
        cancel: CancelToken | None,
        options: Mapping[str, Any],
        *,
        stream: bool,
    ) -> Iterator[Chunk]:
        chosen = build(GenerateParams, options, params)
        if self.private and chosen.cache:
            chosen = replace(chosen, cache="memory")
        turn = self._fit([*self.messages, {"role": "user", "content": content}], chosen)
        request = self.model.submit(turn.tokens, replace(chosen, overflow="error"), stream=stream, cancel=cancel)
        return self._deliver(request, turn)

    def _deliver(self, request: Request, turn: _Turn) -> Iterator[Chunk]:
        answer = ""
        final: Completion | None = None
        try:
            for chunk in request:
                answer += chunk.text
                if chunk.completion is not None:
                    final = replace(chunk.completion, dropped=turn.dropped)
                    chunk = replace(chunk, completion=final)
                    self._remember(turn, final.text, final.tokens)
                yield chunk
        finally:
            request.cancel()
            if final is None and answer:
                self._remember(turn, answer, [])

    def _remember(self, turn: _Turn, answer: str, tokens: list[int]) -> None:
        self.messages = [*turn.messages, {"role": "assistant", "content": answer}]
        self.dropped += turn.dropped
        self._said.append((turn.text, turn.tokens))
        if tokens and self.model.decode(tokens) == answer:  # else a stop string or half a character was cut off
            self._said.append((turn.text + answer, turn.tokens + tokens))
        del self._said[:-REMEMBERED]

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
                raise ContextOverflow(
                    f"the conversation has {len(tokens)} tokens and the context holds {self.model.n_ctx}"
                    + ("" if turn is None else "; start anew, use overflow='drop-oldest', or load with a larger ctx"),
                    needed=len(tokens) + 1,
                    n_ctx=self.model.n_ctx,
                )
            dropped += messages[turn]
            messages = messages[: turn.start] + messages[turn.stop :]

    def _render(self, messages: list[Message]) -> tuple[str, list[int]]:
        """The prompt as text and tokens. What was said before keeps the tokens it had; only the rest is tokenized."""
        text = self._template.render(messages, thinking=self.thinking)
        said = max(
            (said for said in self._said if text.startswith(said[0])), key=lambda said: len(said[0]), default=None
        )
        if said is not None:
            return text, said[1] + self.model.encode(text[len(said[0]) :], bos=False)
        bos = _text_of(self.model, self.model.info.bos_id)
        return text, self.model.encode(text, bos=not (bos and text.startswith(bos)))


def _packed(said: Said) -> list[Any]:
    """The last text and its tokens, then the others: how much of them, in characters and tokens, or in full."""
    if not said:
        return []
    text, tokens = said[-1]
    return [
        [text, tokens],
        *([len(t), len(ids)] if text.startswith(t) and tokens[: len(ids)] == ids else [t, ids] for t, ids in said[:-1]),
    ]


def _unpacked(packed: Any) -> Said:
    if not packed:
        return []
    [text, tokens], *rest = packed
    said: Said = [(text[:t], tokens[:ids]) if isinstance(t, int) else (t, ids) for t, ids in rest]
    said.append((text, tokens))
    if not all(isinstance(t, str) and all(type(token) is int for token in ids) for t, ids in said):
        raise ValueError("its tokens are not numbers")
    return said


def _oldest_turn(messages: Sequence[Message]) -> slice | None:
    """The oldest user message and the answers to it; None when only the system prompt and the last message are left."""
    start = next((i for i, message in enumerate(messages) if message.get("role") != "system"), len(messages))
    stop = next((i for i in range(start + 1, len(messages)) if messages[i].get("role") == "user"), len(messages))
    return slice(start, stop) if stop < len(messages) else None


def _text_of(model: Model, token: int | None) -> str | None:
    return None if token is None else model.decode([token], special=True)
