"""/v1/rerank: documents in the order in which they answer a query, as Jina, vLLM and llama.cpp's server have it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from pydantic import BaseModel

from edgellm import Model
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.serve.endpoint import Call, Reply
from edgellm.serve.models import Models
from edgellm.serve.openai import wire
from edgellm.serve.options import Keep, Request

MOST = 2048  # documents at once


class Document(BaseModel):
    """A document of nothing but a text."""

    text: str


class RerankRequest(Request):
    """https://jina.ai/reranker/#apiform. top_n: results at most; return_documents: with their texts."""

    model: str | None = None
    query: str
    documents: list[str | Document]
    top_n: int | None = None
    return_documents: bool | None = None
    keep_alive: Keep = None


async def rerank(call: Call[RerankRequest]) -> Reply:
    return Reply(await reranked(call.state.models, call.body), headers=wire.ignored(call.body))


async def reranked(models: Models, body: RerankRequest) -> dict[str, Any]:
    """What is answered: the best document first. Raises what loading a model and `Model.rerank` raise."""
    listed = models.find(body.model)
    texts = [each if isinstance(each, str) else each.text for each in body.documents]
    if not 1 <= len(texts) <= MOST:
        raise InvalidParameter(f"documents: {len(texts)} texts; between 1 and {MOST} are taken at once")
    if body.top_n is not None and body.top_n < 1:
        raise InvalidParameter(f"top_n={body.top_n}: at least 1 result is given")
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(models.use(listed, body.keep_alive))
        scores, tokens = await asyncio.to_thread(_scores, model, body.query, texts)
    best = sorted(range(len(texts)), key=lambda at: -scores[at])[: body.top_n]
    results: list[dict[str, Any]] = [{"index": at, "relevance_score": scores[at]} for at in best]
    if body.return_documents:
        results = [{**each, "document": {"text": texts[each["index"]]}} for each in results]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": body.model or listed.name, "results": results, "usage": usage}


def _scores(model: Model, query: str, texts: list[str]) -> tuple[list[float], int]:
    """The scores of texts, and how many tokens those and the query, read with each, have."""
    if not model.info.can_rerank:
        raise Unsupported(f"{model.info.name} ranks no texts; ask a reranker")
    scores: list[float] = model.rerank(query, texts).tolist()
    counts = [len(model.encode(text, special=False, bos=False)) for text in (query, *texts)]
    return scores, len(texts) * counts[0] + sum(counts[1:])
