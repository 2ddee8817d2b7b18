"""Talk: a model answering in a terminal, through its chat template or by continuing the text."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.cli.keyboard import stopping, unseen
from edgellm.cli.locate import fetched
from edgellm.cli.output import note
from edgellm.cli.status import Status
from edgellm.cli.wrap import WordWrap
from edgellm.errors import EdgeLLMError, Unsupported
from edgellm.params import FORMS, GenerateParams, LoadParams

if TYPE_CHECKING:
    from edgellm import Chat, Chunk, Completion, Model
    from edgellm.cli.chats import Keeper

CUT = {"length": "max_tokens", "timeout": "timeout"}  # what cuts an answer, by how it ended
DIM = ("\x1b[2m", "\x1b[22m")  # on and off
# Control characters would let an answer move the cursor or recolour the terminal; tab and line feed stay.
HARMLESS = {code: None for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


@contextmanager
def open_model(name: str, params: LoadParams) -> Iterator[Model]:
    """Load a model by path or name, fetching a name that is not here, with progress on stderr."""
    import edgellm

    path = Path(name)
    if params.backend != "echo" and not path.is_file():
        path = fetched(name, offline=params.offline)
    with Status(f"loading {path.name}") as status:
        loading = edgellm.load(path, params, progress=lambda share: status.say(f"loading {path.name} {share:.0%}"))
    with loading as model:
        yield model


@dataclass(frozen=True)
class Manner:
    """How a model is talked to. raw: continue the text as it is. private: nothing of it reaches the disk."""

    system: str | None = None
    raw: bool = False
    thinking: bool | None = None
    private: bool = False


class Talk:
    """One model, its conversation if it has a chat template, and the sampling options."""

    def __init__(self, model: Model, params: GenerateParams, manner: Manner, keeper: Keeper | None = None) -> None:
        self.model = model
        self.keeper = keeper
        self.params = replace(params, cache="memory") if manner.private and params.cache else params
        self.chat: Chat | None = None
        self.last: Completion | None = None
        self.answering = False  # stays true when Ctrl-C ended an answer
        self.unanswered: str | None = None  # what was said last, if nothing came of it
        if manner.raw:
            return
        if model.info.chat_template is None:
            if not model.info.can_generate:
                return  # an encoder, which says so itself
            note(f"{model.info.name} has no chat template: it completes text (a base model)")
            if manner.system is not None:
                raise Unsupported("without a chat template there is no place for a system prompt")
            return
        self.chat = model.chat(manner.system, thinking=manner.thinking, private=manner.private)
        if keeper is not None:
            keeper.restore(self.chat)

    def conversation(self) -> Chat:
        """Raises Unsupported where the model holds none."""
        if self.chat is None:
            raise Unsupported("a model without a chat template, or with --raw, holds no conversation")
        return self.chat

    @property
    def said(self) -> str | None:
        """What the user said last, also if no answer came. Raises Unsupported for a message that is more than text."""
        messages, asked = self.conversation().messages, self.asked
        if self.unanswered is not None or asked is None:
            return self.unanswered
        content = messages[asked]["content"]
        if not isinstance(content, str):
            raise Unsupported("that message is not one text; say it anew")
        return content

    @property
    def asked(self) -> int | None:
        """Where in the conversation the user spoke last."""
        messages = self.chat.messages if self.chat is not None else []
        return next((i for i in range(len(messages) - 1, -1, -1) if messages[i].get("role") == "user"), None)

    def answer(self, prompt: str) -> Completion:
        """The whole answer at once."""
        generate = self.model.generate if self.chat is None else self.chat.send
        with Status("thinking") as status:
            self.last = generate(prompt, self.params, progress=_reading(status))
        self._save()
        self._warn(self.last)
        return self.last

    def show(self, prompt: Any, at: int | None = None, **options: Any) -> Completion:
        """The answer on stdout as it comes, ended by a line break. Ctrl-C stops it and is raised again.

        at: the message of the conversation that the prompt is said in place of. options: of this answer alone.
        """
        params = replace(self.params, **options)
        before = self.chat and self.chat.messages
        self.answering, self.unanswered = True, prompt if at is None else None
        stream = self.model.stream if self.chat is None else partial(self.chat.stream, at=at)
        try:
            with unseen(), stopping() as cancel, Status("thinking") as status:
                self.last = _written(stream(prompt, params, cancel=cancel, progress=_reading(status)), status)
        except Exception:
            self.answering = False
            raise
        finally:
            if self.chat is None or self.chat.messages is not before:  # an answer, or the beginning of one
                self.unanswered = None
                self._save()
        if self.last.finish_reason == "cancelled":
            raise KeyboardInterrupt
        self.answering = False
        self._warn(self.last)
        return self.last

    def again(self, content: str | None = None) -> Completion:
        """Answer what the user said last anew, with other words if they are given. Raises Unsupported.

        The conversation stays as it was when no answer comes.
        """
        chat, asked = self.conversation(), self.asked
        if self.unanswered is not None:
            return self.show(self.unanswered if content is None else content)
        if asked is None:
            raise Unsupported("nothing was asked yet")
        return self.show(chat.messages[asked]["content"] if content is None else content, at=asked)

    def _save(self) -> None:
        """Write the conversation where the user wants it kept; a disk that is full ends no conversation."""
        if self.keeper is None or self.chat is None or not self.chat.messages:
            return
        try:
            self.keeper.save(self.chat)
        except (EdgeLLMError, OSError) as error:
            note(f"the conversation is not kept: {error}")
            self.keeper = None

    def _warn(self, done: Completion) -> None:
        if done.dropped:
            note(f"the context is full: {oldest(done.dropped)} left out")
        if done.finish_reason == "length" and done.usage.completion_tokens != self.params.max_tokens:
            note(f"the answer ends here because the context of {self.model.n_ctx} tokens is full")
        elif done.finish_reason in CUT and any(getattr(self.params, name) is not None for name in FORMS):
            note(f"the answer was cut before it had its form; give it a larger {CUT[done.finish_reason]}")


def oldest(dropped: Iterable[Mapping[str, Any]]) -> str:
    """The turns of these messages were ..., in words."""
    turns = sum(message.get("role") == "user" for message in dropped)
    return "the oldest turn was" if turns == 1 else f"the {turns} oldest turns were"


def _reading(status: Status) -> Callable[[int, int], None]:
    """What is called with the tokens of a prompt that are read, of all."""

    def say(done: int, total: int) -> None:
        status.say(f"reading {done:,} of {total:,} tokens" if done < total else "thinking")

    return say


def _written(chunks: Iterator[Chunk], status: Status) -> Completion:
    """Write an answer to stdout piece by piece; in a terminal without control characters, wrapped between words, and
    behind its reasoning, which is dim there and nowhere else."""
    terminal = sys.stdout.isatty()
    wrap, aside = (WordWrap(lambda: shutil.get_terminal_size().columns) if terminal else None for _ in range(2))
    dim, bright = ("", "") if os.environ.get("NO_COLOR") else DIM
    done: Completion | None = None
    last, thought = "\n", False

    def write(text: str) -> None:
        nonlocal last
        if text:
            status.clear()
            sys.stdout.write(text)
            sys.stdout.flush()
            last = text[-1]

    def think(text: str) -> None:
        nonlocal thought
        if text:
            write(f"{dim}{text}{bright}")
            thought = True

    def answer() -> None:
        """The reasoning has ended."""
        nonlocal thought
        if thought and aside is not None:
            think(aside.flush())
            write("\n\n")
            thought = False

    try:
        for chunk in chunks:
            if aside is not None and chunk.reasoning:
                think(aside.push(chunk.reasoning.translate(HARMLESS)))
            if chunk.text:
                answer()
            write(wrap.push(chunk.text.translate(HARMLESS)) if wrap else chunk.text)
            done = chunk.completion or done
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
        status.clear()
        answer()
        write(wrap.flush() if wrap else "")
        write("" if last == "\n" else "\n")
    assert done is not None  # the last chunk always carries it
    return done


def statistics(done: Completion, engine_reason: str) -> str:
    """Token counts and speeds of an answer, and what computed it and why, in a few lines."""
    usage, timings = done.usage, done.timings
    prompt = f"{usage.prompt_tokens} prompt tokens"
    cache = done.cache
    if usage.cached_tokens:
        tiers = (("live", cache.from_live), ("memory", cache.from_memory), ("disk", cache.from_disk))
        reused = ", ".join(f"{count} from {tier}" for tier, count in tiers if count)
        prompt += f" ({reused}, {cache.computed} computed)"
    guessed = f" ({timings.accepted} of {timings.drafted} drafted tokens were right)" if timings.drafted else ""
    why = f"\ncache: {cache.reason}"
    if cache.broke_at is not None:
        why += f": {cache.expected[:40]!r} was known, {cache.found[:40]!r} came"
    prefill = f"prefill {timings.prefill_tokens_per_second:.1f} tokens/s, " if cache.computed else ""
    threads = "1 thread" if done.threads == 1 else f"{done.threads} threads"
    return (
        f"{prompt}, {usage.completion_tokens} answered ({done.finish_reason}); first token after "
        f"{timings.ttft_ms:.0f} ms, loaded in {timings.load_ms:.0f} ms\n"
        f"{prefill}decode {timings.decode_tokens_per_second:.1f} tokens/s{guessed}\n"
        f"{done.backend} ({engine_reason}), {threads}, seed {done.seed}{why}"
    )
