"""The models there are, and those that are loaded, for clients of Ollama."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from edgellm import ModelInfo, __version__, memory_needed
from edgellm.errors import EdgeLLMError, InvalidParameter
from edgellm.hub.catalog import match
from edgellm.serve.endpoint import Call, Empty, Reply
from edgellm.serve.models import Listed, Models, Resident, info_of
from edgellm.serve.ollama import wire
from edgellm.serve.refusal import Refusal

FOREVER = "2299-01-01T00:00:00Z"  # of a model that stays; what is over 20 years away is shown as for ever
REFUSED = {
    "/api/create": "models are made by `edgellm convert`, not over HTTP",
    "/v1/systemone": "it is asked of models made for it, and there is none that edgellm runs",
    "/api/push": "models are published nowhere from here",
    "/api/blobs": "files of models are not taken over HTTP; put them into a folder that is served (--folder)",
}


class Named(BaseModel):
    """A model, by its name in either field."""

    model: str | None = None
    name: str | None = None

    def wanted(self) -> str:
        """Raises InvalidParameter."""
        name = self.model or self.name
        if not name:
            raise InvalidParameter("model: a name is needed")
        return name


class CopyRequest(BaseModel):
    source: str
    destination: str


async def version(_call: Call[Empty]) -> Reply:
    return Reply({"version": wire.VERSION, "edgellm": __version__})


async def tags(call: Call[Empty]) -> Reply:
    listed = [*call.state.models.listed(), *_aliases(call.state.models)]
    return Reply({"models": await asyncio.to_thread(lambda: [_listed(each) for each in listed])})


def _aliases(models: Models) -> Iterator[Listed]:
    """Models by their other names, of which some clients want to see the one that they are told to ask for."""
    own = {each.name for each in models.listed()}
    for name in models.serving.params.aliases():
        if name not in own and not set(name) & set("*?["):
            with suppress(EdgeLLMError):
                yield replace(models.find(name), name=name)


async def ps(call: Call[Empty]) -> Reply:
    residents = call.state.models.residents()
    return Reply({"models": await asyncio.to_thread(lambda: [_loaded(each) for each in residents])})


async def delete(call: Call[Named]) -> Reply:
    models = call.state.models
    name = call.body.wanted()
    listed = wire.found(models, name)
    if match(name.removesuffix(":latest"), [listed.name]) is None:
        raise InvalidParameter(f"{name[:200]} is another name of {listed.name}, which is deleted by its own alone")
    await models.delete(listed.name)
    return Reply({"status": "success"})


async def copy(call: Call[CopyRequest]) -> Reply:
    models = call.state.models
    models.copy(wire.found(models, call.body.source).name, call.body.destination)
    return Reply({"status": "success"})


def refused(path: str) -> Any:
    """A handler for what cannot be done."""

    async def refuse(_call: Call[Empty]) -> Reply:
        raise Refusal(501, f"{path} cannot be had here: {REFUSED[path]}", "not_implemented")

    return refuse


def digest_of(listed: Listed) -> str:
    """SHA-256 in hex. That of a file outside of the store is not known, and to find it out means to read all of it:
    such a file gets a name of that form, which changes with its path, its size and when it was changed."""
    known = f"{listed.path}\0{listed.size}\0{listed.modified}"
    return listed.digest or hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()


def details_of(info: ModelInfo | None) -> dict[str, Any]:
    """All of them texts, because some clients take nothing else. None: a file that cannot be read."""
    family = info.architecture if info else "unknown"
    return {
        "parent_model": "",
        "format": info.format if info else "unknown",
        "family": family,
        "families": [family],
        "parameter_size": _size(info.n_params) if info else "unknown",
        "quantization_level": info.quantization if info else "unknown",
    }


def _size(count: int) -> str:
    """Such as 134.5M."""
    for unit, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f}{unit}"
    return str(count)


def _read(listed: Listed) -> ModelInfo | None:
    try:
        return info_of(listed)
    except EdgeLLMError:
        return None


def _listed(listed: Listed) -> dict[str, Any]:
    name = wire.full_name(listed.name)
    about = {"name": name, "model": name, "modified_at": wire.stamp(listed.modified), "size": listed.size}
    return {**about, "digest": digest_of(listed), "details": details_of(_read(listed))}


def _loaded(resident: Resident) -> dict[str, Any]:
    """size: all the memory it takes. What of that an engine puts on a GPU is not told, so size_vram is 0."""
    info, context = resident.model.info, resident.model.n_ctx
    about = {**_listed(resident.listed), "size": memory_needed(info, context), "size_vram": 0}
    return {**about, "expires_at": _expires(resident), "context_length": context}


def _expires(resident: Resident) -> str:
    left = resident.expires
    if left is not None:
        return wire.stamp(time.time() + left - time.monotonic())
    if resident.pinned or resident.keep < 0:
        return FOREVER
    return wire.stamp(time.time() + resident.keep)
