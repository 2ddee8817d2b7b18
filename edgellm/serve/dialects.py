"""How each protocol says that a request is refused."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from edgellm.serve.endpoint import Dialect
from edgellm.serve.refusal import TOO_LONG, Refusal

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


REQUEST_ID = "request-id"  # header of every answer in Anthropic's words


def new_request_id() -> str:
    return f"req_{secrets.token_hex(12)}"


def _openai(why: Refusal) -> dict[str, Any]:
    kind = _OPENAI_TYPES.get(why.status, "invalid_request_error" if why.status < 500 else "server_error")
    error: dict[str, Any] = {"message": why.message, "type": kind, "param": why.param, "code": why.code or None}
    if why.tokens is not None:
        error["n_prompt_tokens"], error["n_ctx"] = why.tokens[0], why.tokens[1] + 1
    return {"error": error}


def _ollama(why: Refusal) -> dict[str, Any]:
    return {"error": why.message}


def _anthropic(why: Refusal) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(why.status, "invalid_request_error" if why.status < 500 else "api_error")
    message = why.message
    if why.code == TOO_LONG and why.tokens is not None:
        message = f"prompt is too long: {why.tokens[0]} tokens > {why.tokens[1]} maximum"
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": new_request_id()}


OPENAI = Dialect("openai", _openai)
OLLAMA = Dialect("ollama", _ollama)
ANTHROPIC = Dialect("anthropic", _anthropic, lambda body: {REQUEST_ID: body["request_id"]})


def of_scope(scope: Mapping[str, Any]) -> Dialect:
    """The one whose request it is: by its path, and for what two have in common by the header of one."""
    path: str = scope["path"]
    if path.startswith("/api/"):
        return OLLAMA
    versioned = path.startswith("/v1/models") and any(name == b"anthropic-version" for name, _ in scope["headers"])
    return ANTHROPIC if versioned or path.startswith("/v1/messages") else OPENAI
