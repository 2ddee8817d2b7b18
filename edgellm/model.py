"""Model: an opened artifact that generates."""

from __future__ import annotations

import os
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgellm import arguments, embedding, machine, scoring
from edgellm.backends.base import Backend, Buffer, ModelInfo, Row, Rows, text_of
from edgellm.constrain.grammars import asked
from edgellm.engine.cancel import CancelToken
from edgellm.engine.control import LONG, CallOptions, Control, beside_loop, split
from edgellm.engine.engine import Engine
from edgellm.engine.progress import OnProgress, checked_progress
from edgellm.engine.reading import UNKNOWN, Source
from edgellm.errors import ContextOverflow, InvalidParameter, Unsupported
from edgellm.events import Activity, Chunk, Completion
from edgellm.home import unkept
from edgellm.kv.blocks import Block, root_key, sound
from edgellm.kv.memory import MemoryTier
from edgellm.kv.prefixes import PUBLIC, UNNAMED, PrefixCache
from edgellm.kv.store import BlockStore, store_path
from edgellm.params import CacheParams, GenerateParams
from edgellm.prompter import Prompter, Turn

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgellm.chat import Chat
    from edgellm.engine.generation import Generation, Sink

Prompt = str | Sequence[int] | Turn
"""A text, token ids, or what the Prompter made of messages."""


class Model:
    """An opened model. Safe from several threads at once; close it, or use it as a context manager.

    Wherever text is taken, token ids are taken too. Generation options are GenerateParams' names, as keywords or as
    one `params` object (keywords win).
    """

    def __init__(self, backend: Backend, *, cache: CacheParams | None = None, load_ms: float = 0.0) -> None:
        if not isinstance(getattr(backend, "info", None), ModelInfo):
            raise arguments.refuse("backend", backend, "an engine's backend; open a model with edgellm.load()")
        self._engine = engine = Engine(backend, _prefix_cache(backend, cache or CacheParams()), load_ms=load_ms)
        forget = engine.forget  # on the engine's thread
        self.prompter = Prompter(backend, engine.check_open, lambda owner: engine.post(lambda _: forget(owner)))
        weakref.finalize(self, engine.abandon).atexit = False  # the engine has an end of its own for that

    @property
    def info(self) -> ModelInfo:
        """What is known of the file."""
        return self._engine.backend.info

    @property
    def n_ctx(self) -> int:
        """Tokens one conversation may hold."""
        return self._engine.backend.n_ctx

    @property
    def backend(self) -> str:
        """Name of the engine underneath."""
        return self._engine.backend.name

    @property
    def threads(self) -> int:
        """Compute threads."""
        return self._engine.backend.threads

    @property
    def max_sequences(self) -> int:
        """Requests whose state may be in memory at once; more wait."""
        return self._engine.backend.max_sequences

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names that `adapter=` takes."""
        return tuple(self._engine.backend.adapters)

    def activity(self) -> Activity:
        """What its engine does now, and did since it was loaded."""
        return self._engine.activity()

    # Text and tokens

    def encode(self, text: str, *, special: bool = True, bos: bool = True) -> list[int]:
        """Token ids. special: control tokens written in the text count as such; bos: begin as the model asks for. What
        an encoder asks for behind a text comes with that."""
        self._engine.check_open()
        text = arguments.text("text", text)
        special, bos = arguments.flag("special", special), arguments.flag("bos", bos)
        tokenizer = self._engine.backend.tokenizer
        tokens = tokenizer.encode(text, special=special, bos=bos)
        return tokens if self.info.can_generate or not bos else [*tokens, *tokenizer.end]

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids; control tokens only when `special`. Invalid UTF-8 becomes U+FFFD.

        It begins as a text does: without the space that many vocabularies put in front of its first word.
        """
        self._engine.check_open()
        tokens, special = arguments.token_ids("tokens", tokens), arguments.flag("special", special)
        return text_of(self._engine.backend.tokenizer, tokens, special=special)

    def count_tokens(self, text: str) -> int:
        """Tokens that `text` takes as a prompt."""
        return len(self.encode(text))

    # Generation

    def generate(
        self, prompt: Prompt, params: GenerateParams | None = None, **options: Unpack[CallOptions]
    ) -> Completion:
        """Continue `prompt`. options: GenerateParams' by name, and `cancel` and `progress`. Raises Unsupported for an
        encoder, ContextOverflow, InvalidParameter, Busy, Closed, BackendFailed.

        `cancel`, a CancelToken, ends it from anywhere. `progress(done, total)` is called while the prompt is read, on
        this thread and at most 20 times a second, with the tokens that are known or computed and all there are: once
        before the first is computed, once when all are, and never where nothing has to be computed. An exception it
        raises cancels the generation and is raised here.
        """
        chosen, control = split(options, params)
        return self.submit(prompt, chosen, **control).result()

    def stream(
        self, prompt: Prompt, params: GenerateParams | None = None, **options: Unpack[CallOptions]
    ) -> Iterator[Chunk]:
        """Continue `prompt`, piece by piece. Close the iterator to cancel; the last chunk carries the Completion.

        options: those of `generate`; `progress` is called on the thread that waits for the first chunk.
        """
        chosen, control = split(options, params)
        return iter(self.submit(prompt, chosen, stream=True, **control))

    async def agenerate(
        self, prompt: Prompt, params: GenerateParams | None = None, **options: Unpack[CallOptions]
    ) -> Completion:
        """`generate` and its options for asyncio; cancelling the task cancels it, and `progress` is called there."""
        completion: Completion | None = None
        async for chunk in self._deliver(prompt, *split(options, params), stream=False):
            completion = chunk.completion
        assert completion is not None  # the last chunk always carries it
        return completion

    def astream(
        self, prompt: Prompt, params: GenerateParams | None = None, **options: Unpack[CallOptions]
    ) -> AsyncGenerator[Chunk]:
        """`stream` and its options for asyncio. `progress` is called in the task that waits for the first chunk."""
        return self._deliver(prompt, *split(options, params), stream=True)

    def chat(
        self,
        system: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] = (),
        thinking: bool | None = None,
        private: bool = False,
    ) -> Chat:
        """Begin a conversation; a private one never touches the disk. Raises Unsupported without a chat template."""
        self._check_generates()
        from edgellm.chat import Chat

        return Chat(self, system=system, messages=messages, thinking=thinking, private=private)

    def load_chat(self, path: str | Path) -> Chat:
        """The conversation that `Chat.save` wrote, with its state if the file holds it and this model can use it.

        State goes to the engine as it is: open such files only from people you trust. Raises InvalidModelFile,
        Unsupported without a chat template, OSError.
        """
        chat = self.chat()
        chat.restore(path)
        return chat

    def score(self, text: Prompt, *, progress: OnProgress | None = None) -> NDArray[np.float64]:
        """Log-probability of every token of `text` after the first, given those before it: (n_tokens - 1,) float64.

        `progress` is called with the tokens that are scored, and all, as that of `generate`.
        """
        self._check_generates()
        progress = checked_progress(progress)
        tokens = self._tokens("text", text)
        if len(tokens) < 2:
            return np.zeros(0)
        return scoring.scores(self.logits(tokens[:-1]), tokens, progress)

    def logits(self, text: Prompt, *, start: int = 0) -> Generator[Rows]:
        """Logits after every token of `text` from position `start` on, given the tokens before it.

        Yields them in order, in slices of (n, n_vocab) float32 of at most 64 MiB. Close the iterator to stop early.
        Raises Unsupported for an encoder, ContextOverflow, InvalidParameter, Closed, BackendFailed.
        """
        self._check_generates()
        tokens = self._tokens("text", text)
        if len(tokens) > self.n_ctx:
            raise ContextOverflow(
                f"the text has {len(tokens)} tokens and the context holds {self.n_ctx}",
                needed=len(tokens),
                n_ctx=self.n_ctx,
            )
        if not arguments.is_int(start) or not 0 <= start < len(tokens):
            raise arguments.refuse("start", start, f"one of the {len(tokens)} positions of the text")
        return scoring.logits(self._engine, tokens, start, self)

    def embed(self, texts: str | Sequence[Prompt], *, progress: OnProgress | None = None) -> Rows:
        """Vectors of texts, pooled as the model says: (n, n_embd) float32. A GGUF model's have the length 1.

        A text that does not fit the context is refused, never cut. Other requests go on between some texts and the
        next ones. `progress` is called between them with the tokens that are read, and all, as that of `generate`.
        Raises Unsupported when the model gives none, ContextOverflow, InvalidParameter, Closed, BackendFailed.
        """
        self._engine.check_open()
        progress = checked_progress(progress)
        if not self.info.can_embed:
            raise Unsupported(f"{self.info.name} on {self.backend} gives no embeddings; load an embedding model")
        batches = [self._whole(f"texts[{at}]", text) for at, text in enumerate(_listed(texts))]
        embedding.check_batches(batches, self.n_ctx, self.info.name)
        return embedding.vectors(self._engine, batches, progress)

    def rerank(self, query: Prompt, texts: str | Sequence[Prompt], *, progress: OnProgress | None = None) -> Row:
        """How well each text answers a query, in the order given: (n,) float32, higher is better. What the model gives,
        a logit, is not squeezed.

        A text that does not fit the context beside the query is refused, never cut; control tokens that are written in
        a text are text. `progress` is as that of `embed`. Raises Unsupported when the model is no reranker,
        ContextOverflow, InvalidParameter, Closed, BackendFailed.
        """
        self._engine.check_open()
        progress = checked_progress(progress)
        if not self.info.can_rerank:
            raise Unsupported(f"{self.info.name} on {self.backend} ranks no texts; load a reranker")
        tokenizer = self._engine.backend.tokenizer
        first, others = self._plain("query", query), enumerate(_listed(texts))
        pairs = [tokenizer.joined(first, self._plain(f"texts[{at}]", text)) for at, text in others]
        embedding.check_batches([tokens for tokens, _ in pairs], self.n_ctx, self.info.name, beside=" with the query")
        return embedding.scores(self._engine, pairs, progress)

    def export_state(self, tokens: Sequence[int], *, private: bool | bytes = False) -> list[tuple[Block, Buffer]]:
        """What is known of the beginning of a prompt, as blocks of nothing but its tokens. private: to calls with
        cache="memory", or to the private conversation with this key."""
        tokens, owner = self._tokens("tokens", tokens), _owner(private)
        return self._engine.call(lambda _: self._engine.reuse.export(tokens, owner=owner), needs_room=True)

    def adopt_state(self, blocks: list[tuple[Block, Buffer]], *, private: bool | bytes = False) -> bool:
        """Know what `export_state` gave, as `private` says there. False when it belongs to another model, engine build
        or kind of cache."""
        pairs = isinstance(blocks, list) and all(isinstance(each, tuple) and len(each) == 2 for each in blocks)
        if not pairs or not all(
            isinstance(block, Block) and sound(block) and isinstance(payload, (bytes, bytearray, memoryview))
            for block, payload in blocks
        ):
            raise arguments.refuse("blocks", blocks, "a list that export_state gave")
        owner = _owner(private)
        return self._engine.call(lambda _: self._engine.reuse.adopt(blocks, owner=owner))

    def close(self) -> None:
        """Stop what runs (it ends with Closed) and free the memory. Closing twice is harmless."""
        self._engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_generates(self) -> None:
        self._engine.check_open()
        if not self.info.can_generate:
            raise Unsupported(
                f"{self.info.name} ({self.info.architecture}) is an encoder: it continues no text and predicts none; "
                + ("model.rerank compares texts" if self.info.can_rerank else "model.embed gives its vectors")
            )

    def __reduce__(self) -> NoReturn:
        raise Unsupported(
            "an opened model is neither copied nor sent to another process: pass on its path and load() it there"
        )

    def _tokens(self, name: str, prompt: Prompt) -> list[int]:
        """Token ids of the argument `name`, all of them in the vocabulary."""
        if isinstance(prompt, Turn):
            return prompt.tokens
        if isinstance(prompt, str):
            return self.encode(prompt)
        tokens = arguments.token_ids(name, prompt, "a string, or a list of token ids")
        n_vocab = self.info.n_vocab
        bad = next((token for token in tokens if token >= n_vocab), None)
        if bad is not None:
            raise InvalidParameter(f"{name}: token {bad} is outside the vocabulary of {n_vocab}")
        return tokens

    def _plain(self, name: str, text: Prompt) -> list[int]:
        """The tokens of a text alone, the argument `name`."""
        tokenizer = self._engine.backend.tokenizer
        return tokenizer.encode(text) if isinstance(text, str) else self._tokens(name, text)

    def _whole(self, name: str, text: Prompt) -> list[int]:
        """The tokens of a text that nothing follows, the argument `name`."""
        tokens = self._tokens(name, text)
        end = self._engine.backend.tokenizer.end if isinstance(text, str) and self.info.can_generate else ()
        return [*tokens, *end]

    def submit(
        self,
        prompt: Prompt,
        params: GenerateParams,
        *,
        stream: bool = False,
        cancel: CancelToken | None = None,
        sink: Sink | None = None,
        progress: OnProgress | None = None,
    ) -> Generation:
        """Queue a generation and return its handle: iterate it, wait for its result(), or cancel() it.

        Chunks go to `sink`, on the engine's thread, if one is given; an exception it raises cancels. It may
        submit, cancel and close; what would wait for this model raises Unsupported there. `progress`, that of
        `generate`, is called there too, and else by whoever iterates the handle or waits for its result. The model
        stays open until the request is done.
        """
        self._check_generates()
        arguments.instance("params", params, GenerateParams, "; give single options to generate() or stream()")
        arguments.flag("stream", stream)
        if sink is not None:
            arguments.function("sink", sink)
        if cancel is not None:
            arguments.instance("cancel", cancel, CancelToken)
        if params.overflow != "error" and not isinstance(prompt, Turn):
            raise InvalidParameter("overflow='drop-oldest' drops the oldest turns of a chat; plain text has no turns")
        if params.thinking_budget is not None and not isinstance(prompt, Turn):
            raise InvalidParameter("thinking_budget: what of plain text is reasoning is not known; give messages")
        tokens = self._tokens("prompt", prompt)
        source, owner = UNKNOWN, UNNAMED
        if isinstance(prompt, Turn):  # with cache="memory" one whose answers are public stands alone
            source, owner = Source(prompt.title, prompt.reading), prompt.said.owner or os.urandom(16)
        generation = self._engine.submit(
            tokens, params, stream=stream, sink=sink, progress=progress, source=source, owner=owner
        )
        if cancel is not None:
            generation.at_end(cancel.subscribe(generation.cancel))
        generation.owner = (self, prompt)  # what is private of a turn goes with it
        if generation.done:  # maybe since before that
            generation.owner = None
        return generation

    async def _deliver(
        self, prompt: Prompt, params: GenerateParams, control: Control, *, stream: bool
    ) -> AsyncGenerator[Chunk]:
        import asyncio  # costs 90 ms that only its users should pay

        self._engine.check_waiter()
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Chunk | BaseException | Callable[[], None]] = asyncio.Queue()
        progress = control["progress"]

        def sink(item: Chunk | BaseException | Callable[[], None]) -> None:
            self._engine.outbox.put(loop, arrived.put_nowait, item)

        tell = progress and (lambda *numbers: sink(partial(progress, *numbers)))
        submit = partial(self.submit, prompt, params, stream=stream, cancel=control["cancel"], sink=sink, progress=tell)
        formed = asked(params) is not None or (isinstance(prompt, Turn) and prompt.formed)
        long = formed or (isinstance(prompt, str) and len(prompt) > LONG)
        request = await beside_loop(submit, lambda left: left.cancel()) if long else submit()
        request.loop = loop
        try:
            while True:
                item = await arrived.get()
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, Chunk):
                    yield request.parsed(item)
                    if item.completion is not None:
                        return
                else:
                    item()  # progress
        finally:
            request.cancel()


def _listed(texts: str | Sequence[Prompt]) -> list[Prompt]:
    """The argument `texts`: one text, or several."""
    if isinstance(texts, (str, bytes, bytearray, memoryview, Mapping, Set)) or not isinstance(texts, Iterable):
        texts = [arguments.text("texts", texts)]
    try:
        return list(texts)
    except TypeError:
        raise arguments.refuse("texts", texts, "a list of texts, or of lists of token ids") from None


def _owner(private: bool | bytes) -> bytes:
    if isinstance(private, bytes):
        return private
    return UNNAMED if arguments.flag("private", private) else PUBLIC


def _prefix_cache(backend: Backend, params: CacheParams) -> PrefixCache:
    memory = params.memory
    if memory is None:
        memory = min(1 << 30, (machine.memory().available or 8 << 30) // 8)
    store = None if params.disk == 0 else BlockStore(store_path(), budget=params.disk)
    if store is not None and store.problem is not None:
        unkept(store.problem)
    return PrefixCache(
        root_key(backend.info.fingerprint, backend.state_key),
        MemoryTier(memory),
        store,
        label=backend.info.name,
        whole=not backend.info.can_truncate,
        room=backend.n_ctx,
    )
