"""/api/embed and the older /api/embeddings: vectors of texts, whose length is 1."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
from pydantic import Field

from edgellm import Model
from edgellm.backends.base import Rows
from edgellm.errors import ContextOverflow, InvalidParameter, Unsupported
from edgellm.serve.endpoint import Call, Reply
from edgellm.serve.models import Listed
from edgellm.serve.ollama import wire
from edgellm.serve.ollama.options import ignored
from edgellm.serve.openai.embeddings import MOST, Text, vectors
from edgellm.serve.options import Request
from edgellm.serve.refusal import TOO_LONG, Refusal

END = 2  # tokens at most that a model may want behind a text
CUT = "x-edgellm-truncated"  # header: which texts were cut, counted from 0


class EmbedRequest(Request):
    """https://github.com/ollama/ollama/blob/main/docs/api.md#generate-embeddings"""

    model: str | None = None
    input: str | list[str] = ""
    truncate: bool | None = None
    dimensions: int | None = None
    keep_alive: float | str | None = None
    given: dict[str, Any] | None = Field(None, alias="options")


class EmbeddingsRequest(Request):
    """https://github.com/ollama/ollama/blob/main/docs/api.md#generate-embedding"""

    model: str | None = None
    prompt: str | None = None
    keep_alive: float | str | None = None
    given: dict[str, Any] | None = Field(None, alias="options")


async def embed(call: Call[EmbedRequest]) -> Reply:
    body = call.body
    begun = time.monotonic()
    texts = [body.input] if isinstance(body.input, str) else body.input
    if len(texts) > MOST:
        raise InvalidParameter(f"input: {len(texts)} texts; {MOST} at once is the most")
    if texts == [""]:  # which only loads the model
        texts = []
    listed = wire.found(call.state.models, body.model)
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(call.state.models.use(listed, wire.seconds_of(body.keep_alive)))
        loaded = time.monotonic()
        if body.dimensions not in (None, 0, model.info.n_embd):
            raise Unsupported(f"dimensions={body.dimensions}: vectors of {listed.name} have {model.info.n_embd}")
        rows, tokens, cut = await asyncio.to_thread(_vectors, model, texts, body.truncate is True)
    about = {
        "model": body.model or listed.name,
        "embeddings": rows.tolist(),
        "total_duration": round((time.monotonic() - begun) * 1e9),
        "load_duration": round((loaded - begun) * 1e9),
        "prompt_eval_count": tokens,
    }
    headers = ignored(call, listed)
    return Reply(about, headers={**headers, CUT: ", ".join(map(str, cut))} if cut else headers)


async def embeddings(call: Call[EmbeddingsRequest]) -> Reply:
    body = call.body
    listed: Listed = wire.found(call.state.models, body.model)
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(call.state.models.use(listed, wire.seconds_of(body.keep_alive)))
        texts = [body.prompt] if body.prompt else []
        rows, _, _ = await asyncio.to_thread(_vectors, model, texts, False)
    return Reply({"embedding": rows[0].tolist() if texts else []}, headers=ignored(call, listed))


def _vectors(model: Model, texts: list[str], may_cut: bool) -> tuple[Rows, int, list[int]]:
    """Vectors of texts, (n, n_embd) float32, how many tokens those have, and which of them were cut. Raises Refusal for
    one that is too long, where none may be."""
    if not texts:
        return np.zeros((0, model.info.n_embd), np.float32), 0, []
    given: list[Text] = list(texts)
    try:
        rows, tokens = vectors(model, given)
    except ContextOverflow as error:
        if not may_cut:
            said = f"the input length exceeds the context length: {error}; or send truncate=true"
            raise Refusal(400, said, TOO_LONG, "input", (error.needed, error.n_ctx)) from None
        given = [_beginning(model, text) for text in texts]
        rows, tokens = vectors(model, given)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    cut = [at for at, text in enumerate(texts) if given[at] != text]
    return rows / np.where(lengths > 0, lengths, np.float32(1)), tokens, cut


def _beginning(model: Model, text: str) -> str:
    """As much of a text as the model holds."""
    room = model.n_ctx - (END if model.info.can_generate else 0)  # an encoder's tokens are all in what `encode` gives
    too_long = bisect_left(range(len(text) + 1), True, key=lambda size: len(model.encode(text[:size])) > room)
    return text[: too_long - 1] if too_long <= len(text) else text
