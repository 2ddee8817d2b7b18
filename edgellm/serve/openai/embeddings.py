"""/v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
from contextlib import AsyncExitStack
from typing import Any, Literal

import numpy as np

from edgellm import Model
from edgellm.backends.base import Rows
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.serve.endpoint import Call, Reply
from edgellm.serve.models import Models
from edgellm.serve.openai import wire
from edgellm.serve.options import Keep, Request

MOST = 2048  # texts at once, as OpenAI has it
Text = str | list[int]


class EmbeddingRequest(Request):
    """https://platform.openai.com/docs/api-reference/embeddings/create"""

    model: str | None = None
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    keep_alive: Keep = None


async def embeddings(call: Call[EmbeddingRequest]) -> Reply:
    return Reply(await embedded(call.state.models, call.body), headers=wire.ignored(call.body))


async def embedded(models: Models, body: EmbeddingRequest) -> dict[str, Any]:
    """What is answered. Raises what loading a model and `vectors` raise."""
    listed = models.find(body.model)
    given: Any = body.input
    texts: list[Text] = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)
    if not 1 <= len(texts) <= MOST:
        raise InvalidParameter(f"input: {len(texts)} texts; between 1 and {MOST} are taken at once")
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(models.use(listed, body.keep_alive))
        if body.dimensions not in (None, model.info.n_embd):
            raise Unsupported(f"dimensions={body.dimensions}: vectors of {listed.name} have {model.info.n_embd}")
        rows, tokens = await asyncio.to_thread(vectors, model, texts)
    as_text = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": at, "embedding": _packed(row) if as_text else row.tolist()}
        for at, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body.model or listed.name, "usage": usage}


def vectors(model: Model, texts: list[Text]) -> tuple[Rows, int]:
    """The vectors of texts, (n, n_embd) float32, and how many tokens those have. Raises what `Model.embed` raises."""
    if not model.info.can_embed:
        raise Unsupported(f"{model.info.name} gives no embeddings; ask an embedding model")
    rows = model.embed(texts)
    return rows, sum(len(model.encode(text)) if isinstance(text, str) else len(text) for text in texts)


def _packed(row: Any) -> str:
    """Little-endian float32, in base64, as OpenAI's clients ask for by default."""
    return base64.b64encode(np.ascontiguousarray(row, "<f4").tobytes()).decode()
