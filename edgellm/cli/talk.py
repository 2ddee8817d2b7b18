"""Talk: a model answering in a terminal, through its chat template or by continuing the text."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.cli.output import note
from edgellm.params import GenerateParams, LoadParams

if TYPE_CHECKING:
    from edgellm import Chat, Chunk, Completion, Model

# Control characters would let an answer move the cursor or recolour the terminal; tab and line feed stay.
HARMLESS = {code: None for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


@contextmanager
def open_model(name: str, params: LoadParams) -> Iterator[Model]:
    """Load a model by path or name, fetching a catalog name that is not here, with progress on stderr."""
    import edgellm

    path = Path(name)
    if params.backend != "echo" and not path.is_file():
        path = _resolved(name, params)
    with _loading(path) as report, edgellm.load(path, params, progress=report) as model:
        report(1.0)
        yield model


def _resolved(name: str, params: LoadParams) -> Path:
    from edgellm import hub
    from edgellm.errors import Offline

    try:
        return hub.resolve(name, offline=True)
    except Offline:
        if params.offline:
            raise
        from edgellm.cli.output import pull_progress

        with pull_progress() as progress:
            return hub.resolve(name, progress=progress)


class _loading:  # noqa: N801 (a context manager that is also the progress callback)
    """A percentage on one line of stderr, once loading has taken a while; gone when it ends."""

    PATIENCE = 0.5  # seconds

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._started = time.monotonic()
        self._shown = False

    def __call__(self, share: float) -> None:
        if share >= 1.0:
            self._clear()
        elif sys.stderr.isatty() and time.monotonic() - self._started > self.PATIENCE:
            self._shown = True
            sys.stderr.write(f"\rloading {self._name[:50]} {share:4.0%}")
            sys.stderr.flush()

    def __enter__(self) -> _loading:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def _clear(self) -> None:
        if self._shown:
            self._shown = False
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


class Talk:
    """One model, its conversation if it has a chat template, and the sampling options."""

    def __init__(self, model: Model, params: GenerateParams, *, system: str | None, raw: bool) -> None:
        self.model = model
        self.params = params
        self.chat: Chat | None = None
        self.last: Completion | None = None
        self.answering = False  # stays true when Ctrl-C ended an answer
        if raw:
            return
        if model.info.chat_template is None:
            note(f"{model.info.name} has no chat template: it completes text (a base model)")
            if system is not None:
                from edgellm.errors import Unsupported

                raise Unsupported("without a chat template there is no place for a system prompt")
            return
        self.chat = model.chat(system)

    def answer(self, prompt: str) -> Completion:
        """The whole answer at once."""
        if self.chat is not None:
            self.last = self.chat.send(prompt, self.params)
        else:
            self.last = self.model.generate(prompt, self.params)
        self._warn()
        return self.last

    def show(self, prompt: str) -> Completion:
        """The answer on stdout as it comes, ended by a line break. Ctrl-C stops it and is raised again."""
        if self.chat is not None:
            chunks = self.chat.stream(prompt, self.params)
        else:
            chunks = self.model.stream(prompt, self.params)
        terminal = sys.stdout.isatty()
        ended = self.answering = True
        try:
            for chunk in chunks:
                text = chunk.text.translate(HARMLESS) if terminal else chunk.text
                if text:
                    sys.stdout.write(text)
                    sys.stdout.flush()
                    ended = text.endswith("\n")
                if chunk.completion is not None:
                    self.last = chunk.completion
        finally:
            _close(chunks)
            if not ended:
                sys.stdout.write("\n")
                sys.stdout.flush()
        self.answering = False
        assert self.last is not None  # the last chunk always carries it
        self._warn()
        return self.last

    def _warn(self) -> None:
        assert self.last is not None
        if self.last.dropped:
            turns = sum(message.get("role") == "user" for message in self.last.dropped)
            note(f"the context is full: the {turns} oldest turn(s) were left out")
        if self.last.finish_reason == "length" and self.last.usage.completion_tokens != self.params.max_tokens:
            note(f"the answer ends here because the context of {self.model.n_ctx} tokens is full")


def statistics(done: Completion) -> str:
    """Token counts and speeds of an answer, in a few lines."""
    usage, timings = done.usage, done.timings
    prompt = f"{usage.prompt_tokens} prompt tokens"
    cache = done.cache
    if usage.cached_tokens:
        tiers = (("live", cache.from_live), ("memory", cache.from_memory), ("disk", cache.from_disk))
        reused = ", ".join(f"{count} from {tier}" for tier, count in tiers if count)
        prompt += f" ({reused}, {cache.computed} computed)"
    why = f"\ncache: {cache.reason}"
    if cache.broke_at is not None:
        why += f": {cache.expected[:40]!r} was known, {cache.found[:40]!r} came"
    return (
        f"{prompt}, {usage.completion_tokens} answered ({done.finish_reason}); first token after "
        f"{timings.ttft_ms:.0f} ms, loaded in {timings.load_ms:.0f} ms\n"
        f"prefill {timings.prefill_tokens_per_second:.1f} tokens/s, decode {timings.decode_tokens_per_second:.1f} "
        f"tokens/s; {done.backend}, {done.threads} threads, seed {done.seed}{why}"
    )


def _close(chunks: Iterator[Chunk]) -> None:
    close = getattr(chunks, "close", None)
    if close is not None:
        close()
