"""create_app: the ASGI application with the routes of all dialects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from edgellm.serve import ours, page
from edgellm.serve.anthropic import messages
from edgellm.serve.anthropic.request import CountRequest, MessagesRequest
from edgellm.serve.dialects import OPENAI, of_scope
from edgellm.serve.endpoint import Call, Empty, Endpoint, Reply
from edgellm.serve.guard import Guard
from edgellm.serve.models import Models, load_named
from edgellm.serve.ollama import chat as ollama_chat
from edgellm.serve.ollama import embed, generate, pull, show
from edgellm.serve.ollama import models as ollama_models
from edgellm.serve.openai import chat, completions, embeddings, models, rerank
from edgellm.serve.openai.responses import create, stored
from edgellm.serve.openai.responses.request import ResponseRequest
from edgellm.serve.refusal import Refusal
from edgellm.serve.settings import Serving
from edgellm.serve.state import State

# method, path, what the body must be, what answers it, what that does
Row = tuple[str, str, type[Any], Callable[[Call[Any]], Any], str]
ROWS: tuple[Row, ...] = (
    ("GET", "/health", Empty, ours.health, "Whether the server is there."),
    ("GET", "/metrics", Empty, ours.metrics, "What is counted, for Prometheus."),
    ("GET", "/v1/edgellm/status", Empty, ours.status, "Models, cache, memory, machine and requests."),
    ("GET", "/v1/edgellm/reports/{id}", Empty, ours.report, "Where the prompt of an answer came from, and why."),
    ("POST", "/v1/edgellm/unload/{id:path}", Empty, ours.unload, "Unload a model."),
    ("POST", "/v1/chat/completions", chat.ChatRequest, chat.chat, "Answer a conversation (OpenAI)."),
    ("POST", "/v1/completions", completions.CompletionRequest, completions.completions, "Continue a text (OpenAI)."),
    ("POST", "/v1/embeddings", embeddings.EmbeddingRequest, embeddings.embeddings, "Vectors of texts (OpenAI)."),
    ("POST", "/v1/rerank", rerank.RerankRequest, rerank.rerank, "Documents by how they answer a query (Jina)."),
    ("POST", "/v1/messages", MessagesRequest, messages.messages, "Answer a conversation (Anthropic)."),
    ("POST", "/v1/messages/count_tokens", CountRequest, messages.count_tokens, "Count its tokens (Anthropic)."),
    ("POST", "/v1/responses", ResponseRequest, create.create, "Answer a conversation of items (OpenAI)."),
    ("POST", "/v1/responses/input_tokens", ResponseRequest, create.input_tokens, "Tokens of its prompt (OpenAI)."),
    ("GET", "/v1/responses/{id}", Empty, stored.retrieve, "An answer that is remembered (OpenAI)."),
    ("DELETE", "/v1/responses/{id}", Empty, stored.delete, "Forget an answer (OpenAI)."),
    ("GET", "/v1/responses/{id}/input_items", Empty, stored.input_items, "What was answered (OpenAI)."),
    ("POST", "/v1/responses/{id}/cancel", Empty, stored.cancel, "Refused: nothing is in the background (OpenAI)."),
    ("GET", "/v1/models", Empty, models.models, "The models there are (OpenAI, Anthropic)."),
    ("GET", "/v1/models/{id:path}", Empty, models.model, "One of them (OpenAI, Anthropic)."),
    ("POST", "/api/chat", ollama_chat.OllamaChatRequest, ollama_chat.chat, "Answer a conversation (Ollama)."),
    ("POST", "/api/generate", generate.GenerateRequest, generate.generate, "Answer a prompt (Ollama)."),
    ("POST", "/api/embed", embed.EmbedRequest, embed.embed, "Vectors of texts (Ollama)."),
    ("POST", "/api/embeddings", embed.EmbeddingsRequest, embed.embeddings, "The vector of a text (Ollama)."),
    ("GET", "/api/tags", Empty, ollama_models.tags, "The models there are (Ollama)."),
    ("GET", "/api/ps", Empty, ollama_models.ps, "Those that are loaded (Ollama)."),
    ("POST", "/api/show", show.ShowRequest, show.show, "What a model is (Ollama)."),
    ("POST", "/api/pull", pull.PullRequest, pull.pull, "Bring a model here (Ollama)."),
    ("POST", "/api/copy", ollama_models.CopyRequest, ollama_models.copy, "Give a model another name (Ollama)."),
    ("DELETE", "/api/delete", ollama_models.Named, ollama_models.delete, "Remove a model (Ollama)."),
    ("GET", "/api/version", Empty, ollama_models.version, "The version of Ollama's protocol."),
    ("POST", "/api/create", Empty, ollama_models.refused("/api/create"), "Is refused (Ollama)."),
    ("POST", "/v1/systemone", Empty, ollama_models.refused("/v1/systemone"), "Is refused (Ollama)."),
    ("POST", "/api/push", Empty, ollama_models.refused("/api/push"), "Is refused (Ollama)."),
    ("POST", "/api/blobs/{digest}", Empty, ollama_models.refused("/api/blobs"), "Is refused (Ollama)."),
    ("HEAD", "/api/blobs/{digest}", Empty, ollama_models.refused("/api/blobs"), "Is refused (Ollama)."),
    ("GET", "/", Empty, page.index, "The page."),
    ("GET", "/page/{path:path}", Empty, page.asset, "Its files."),
)


def create_app(serving: Serving, models: Models | None = None) -> ASGIApp:
    """The application; whatever runs it must run its lifespan. models: those that it serves."""
    models = models or Models(serving)
    state = State(serving, models)
    description = ours.described([(method, path, kind, said) for method, path, kind, _, said in ROWS])
    page_of_it = ours.described_page(description)

    async def openapi(_call: Call[Empty]) -> Reply:
        return Reply(description)

    async def docs(_call: Call[Empty]) -> Reply:
        return Reply(page_of_it, media="text/html; charset=utf-8")

    rows: list[Row] = [
        *ROWS,
        ("GET", "/openapi.json", Empty, openapi, "This description."),
        ("GET", "/docs", Empty, docs, "The same for people."),
    ]
    routes = [
        Route(path, Endpoint(state, path, of_scope, kind, handler), methods=[method])
        for method, path, kind, handler, _ in rows
    ]

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        watch = asyncio.ensure_future(state.metrics.watch())
        yield
        watch.cancel()
        await models.close()

    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={404: _no_route, 405: _no_route})

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        """A slash too much, before or behind a path, is none: clients put addresses together."""
        if scope["type"] == "http":
            scope = {**scope, "path": "/" + scope["path"].strip("/")}
        await app(scope, receive, send)

    return Guard(routed, serving.params)


async def _no_route(request: Request, error: Exception) -> Response:
    path, routes = request.url.path, [route for route in request.app.routes if isinstance(route, Route)]
    methods = sorted({each for route in routes if route.path_regex.match(path) for each in route.methods or ()})
    allow = {"Allow": ", ".join(methods)} if methods else {}
    if methods and request.method == "OPTIONS":
        return Response(status_code=204, headers=allow)
    status = getattr(error, "status_code", 404)
    what = f"there is no {request.method} {path[:200]}"
    why = Refusal(status, f"{what}; /docs says what there is", "not_found" if status == 404 else "method_not_allowed")
    reply = of_scope(request.scope).refused(why)
    return JSONResponse(reply.body, status, {**reply.headers, **allow})


__all__ = ["OPENAI", "create_app", "load_named"]
