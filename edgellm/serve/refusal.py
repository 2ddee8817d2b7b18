"""Refusal: why a request is not answered, as HTTP says it; each dialect has its own words around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgellm.errors import (
    BackendFailed,
    Busy,
    Closed,
    ConstraintFailed,
    ContextOverflow,
    DownloadError,
    EdgeLLMError,
    GenerationError,
    InvalidParameter,
    ModelError,
    ModelNotFound,
    Offline,
    ResourceError,
    Unsupported,
)

RETRY_SECONDS = 2  # of Retry-After

TOO_LONG = "context_length_exceeded"
NO_MODEL = "model_not_found"


@dataclass
class Refusal(Exception):
    """status: of HTTP. code: a word for programs; param: the field that is wrong. tokens: those of a prompt that is
    too long, and the most there may be."""

    status: int
    message: str
    code: str = ""
    param: str | None = None
    tokens: tuple[int, int] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message


def busy(message: str) -> Refusal:
    """Too much is asked at once."""
    return Refusal(429, message, "rate_limit_exceeded", headers={"Retry-After": str(RETRY_SECONDS)})


def refusal(error: BaseException) -> Refusal:
    """What an error is to a client. Of errors that are none of ours nothing is told but their kind."""
    if isinstance(error, Refusal):
        return error
    said = str(error)
    if isinstance(error, ContextOverflow):
        needed, most = error.needed - 1, error.n_ctx - 1
        words = f"This model's maximum context length is {error.n_ctx} tokens; the prompt has {needed} tokens and room "
        return Refusal(
            400, f"{words}for at least one to answer is needed: {said}", TOO_LONG, "messages", (needed, most)
        )
    if isinstance(error, ModelNotFound):
        return Refusal(404, said, NO_MODEL, "model")
    if isinstance(error, Busy):
        return busy(said)
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            return Refusal(status, said, code)
    return Refusal(500, f"this should not have happened: {type(error).__name__}", "internal_error")


_KINDS: tuple[tuple[type[BaseException], int, str], ...] = (
    (InvalidParameter, 400, "invalid_value"),
    (Unsupported, 400, "unsupported"),
    (ConstraintFailed, 422, "constraint_failed"),
    (Closed, 503, "unloaded"),
    (BackendFailed, 500, "engine_failed"),
    (GenerationError, 400, "invalid_prompt"),
    (ResourceError, 503, "not_enough_resources"),
    (Offline, 403, "offline"),
    (DownloadError, 502, "download_failed"),
    (ModelError, 500, "model_failed"),
    (EdgeLLMError, 500, "failed"),
)
