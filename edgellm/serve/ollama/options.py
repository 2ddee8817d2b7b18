"""`options` of Ollama's requests: its words for GenerateParams', and those that say how a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from edgellm import GenerateParams
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.serve.ask import can_switch
from edgellm.serve.endpoint import Call
from edgellm.serve.models import Listed
from edgellm.serve.ollama import wire
from edgellm.serve.openai.wire import IGNORED
from edgellm.serve.options import ELSEWHERE, NAMES, Request, taken

SAME_BY = {**ELSEWHERE, "num_predict": "max_tokens"}
"""Options that edgellm calls otherwise."""
HONOURED = {*NAMES, *SAME_BY, "max_tokens"}


class Asking(Request):
    """What requests for an answer have in common."""

    model: str | None = None
    stream: bool | None = None
    format: Any = None
    think: bool | str | None = None
    keep_alive: float | str | None = None
    given: dict[str, Any] | None = Field(None, alias="options")
    logprobs: bool | None = None
    top_logprobs: int | None = None
    truncate: bool | None = None  # what does not fit is refused, whatever these two say
    shift: bool | None = None

    def params(self) -> GenerateParams:
        """Raises InvalidParameter, Unsupported."""
        if self.top_logprobs and not self.logprobs:
            raise InvalidParameter("top_logprobs: needs logprobs=true")
        return GenerateParams(
            **{**self.options(), **of_options(self.given or {})},
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            schema=wire.form_of(self.format),
        )


def of_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those that have an effect, as GenerateParams takes them; what is null is not given. Raises InvalidParameter,
    Unsupported for what would give another answer than is asked for."""
    if given.get("mirostat"):
        raise Unsupported(f"options.mirostat={given['mirostat']}: there is no Mirostat here; use min_p or top_n_sigma")
    found = {}
    for name, value in given.items():
        ours = SAME_BY.get(name, name)
        if value is not None and name in HONOURED:
            found[ours] = taken(ours, value)
    most, seed = found.get("max_tokens"), found.get("seed")
    if isinstance(most, int) and most <= 0:  # until the end, or as far as the context goes
        del found["max_tokens"]
    if isinstance(seed, int) and seed < 0:  # -1 was one that is drawn; others are as good as any
        found["seed"] = seed % 2**64
    return found


def ignored(call: Call[Any], listed: Listed, *more: str) -> dict[str, str]:
    """The header that names what of a request has no effect. more: names that belong there.

    think is there where the model cannot be told; num_ctx where more is asked for than the model was loaded with, and
    where it is not loaded yet.
    """
    body: Request = call.body
    given: Mapping[str, Any] = getattr(body, "given", None) or {}
    resident = call.state.models.resident(listed)
    names = {*body.unknown(), *more}
    think = getattr(body, "think", None)
    if think not in (None, "") and resident is not None and not can_switch(resident.model, bool(think)):
        names.add("think")
    for name, value in given.items():
        if value is None or name in HONOURED or (name == "mirostat" and not value):
            continue
        enough = name == "num_ctx" and resident is not None and isinstance(value, int) and value <= resident.model.n_ctx
        if not enough:
            names.add(name)
    said = ", ".join(name for name in sorted(names) if name.isascii() and name.isprintable())[:500]
    return {IGNORED: said} if said else {}
