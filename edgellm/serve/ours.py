"""What is ours alone: health, metrics, the description of it all, and /v1/edgellm."""

from __future__ import annotations

import asyncio
import html
import os
import sys
from dataclasses import asdict
from typing import Any

from edgellm import __version__, machine
from edgellm.errors import EdgeLLMError
from edgellm.kv.store import BlockStore, store_path
from edgellm.serve.abilities import abilities
from edgellm.serve.endpoint import Call, Empty, Reply
from edgellm.serve.models import Listed, Models, info_of
from edgellm.serve.refusal import Refusal


async def health(call: Call[Empty]) -> Reply:
    models = call.state.models
    if call.state.serving.params.api_key is not None:  # which is not asked for here
        return Reply({"status": "ok"})
    loaded = [each.listed.name for each in models.residents()]
    return Reply({"status": "ok", "version": __version__, "loaded": loaded, "loading": models.loading})


async def metrics(call: Call[Empty]) -> Reply:
    return Reply(call.state.metrics.text(), media="text/plain; version=0.0.4; charset=utf-8")


async def status(call: Call[Empty]) -> Reply:
    """What the server has and does: models, cache, memory, machine, requests."""
    return Reply(await status_of(call.state.models))


async def models_of(models: Models) -> list[dict[str, Any]]:
    """What is known of each model, and whether it is loaded."""
    listed = models.listed()
    about = await asyncio.to_thread(lambda: [_about(each) for each in listed])
    for each, found in zip(listed, about, strict=True):
        resident = models.resident(each)
        found["loaded"] = resident is not None
        found["pinned"] = resident is not None and resident.pinned
        if resident is not None:
            found["context_length"] = resident.model.n_ctx
    return about


async def status_of(models: Models) -> dict[str, Any]:
    about, cache = await models_of(models), await asyncio.to_thread(_cache)
    activity = [each.model.activity() for each in models.residents()]
    memory = machine.memory()
    cores = machine.cores()
    return {
        "version": __version__,
        "models": about,
        "loading": models.loading,
        "cache": cache,
        "memory": {"total": memory.total, "available": memory.available, "process": _process_bytes()},
        "machine": {
            "cpu": machine.cpu_name(),
            "cores": cores.usable,
            "platform": sys.platform,
            "features": sorted(machine.cpu_features()),
        },
        "requests": {
            "running": sum(each.running for each in activity),
            "waiting": sum(each.waiting for each in activity),
        },
    }


async def report(call: Call[Empty]) -> Reply:
    """The cache report of an answer, by its id, in full."""
    entry = call.state.ledger.get(call.path["id"])
    if entry is None:
        raise Refusal(404, f"no answer {call.path['id'][:100]!r} is remembered; the last ones are", "not_found")
    about = {"id": entry.id, "model": entry.model, "usage": asdict(entry.usage)}
    return Reply({**about, "cache": asdict(entry.cache), "timings": asdict(entry.timings)})


async def unload(call: Call[Empty]) -> Reply:
    """Unload a model by its name."""
    listed = call.state.models.find(call.path["id"])
    return Reply({"model": listed.name, "unloaded": await call.state.models.unload(listed)})


def _about(listed: Listed) -> dict[str, Any]:
    about: dict[str, Any] = {"id": listed.name, "bytes": listed.size}
    try:
        info = info_of(listed)
    except EdgeLLMError as error:
        return {**about, "context_length": None, "capabilities": [], "engine": "", "problem": str(error)}
    return {**about, "context_length": info.n_ctx_train, "capabilities": abilities(info), "engine": info.engine}


def _cache() -> dict[str, Any]:
    store = BlockStore(store_path())
    try:
        stats = store.stats()
    finally:
        store.close()
    return {
        "disk_bytes": stats.nbytes,
        "disk_budget": stats.budget,
        "entries": stats.blocks,
        "problem": stats.problem,
    }


def _process_bytes() -> int | None:
    """Resident memory of this process; None where the system does not tell in a file."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def described(routes: list[tuple[str, str, type[Any], str]]) -> dict[str, Any]:
    """The OpenAPI description of routes: method, path, what the body must be, in a sentence what it does.
    https://spec.openapis.org/oas/v3.1.0"""
    paths: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    for method, path, kind, summary in routes:
        operation: dict[str, Any] = {
            "summary": summary,
            "parameters": [
                {
                    "name": name.strip("{}").partition(":")[0],
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string"},
                }
                for name in path.split("/")
                if name.startswith("{")
            ],
            "responses": {"200": {"description": "The answer"}, "default": {"description": "Why there is none"}},
        }
        if kind is not Empty:
            schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
            definitions.update(schema.pop("$defs", {}))
            definitions[kind.__name__] = schema
            reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
        paths.setdefault(path.replace(":path}", "}"), {})[method.lower()] = operation
    security = {"bearer": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "edgellm", "version": __version__},
        "paths": paths,
        "components": {"schemas": definitions, "securitySchemes": security},
    }


def described_page(description: dict[str, Any]) -> bytes:
    """The same for people: a page without a script."""
    rows = []
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            schema = description["components"]["schemas"].get(str(body.get("$ref", "")).rpartition("/")[2], {})
            fields = "".join(
                f"<li><code>{html.escape(name)}</code> {html.escape(str(field.get('description', '')))}</li>"
                for name, field in schema.get("properties", {}).items()
            )
            detail = f"<details><summary>fields</summary><ul>{fields}</ul></details>" if fields else ""
            heading = f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>"
            rows.append(f"{heading}<p>{html.escape(operation['summary'])}</p>{detail}")
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>edgellm: its interface</title>'
    link = '<p>For programs: <a href="/openapi.json">openapi.json</a></p>'
    return f"{head}<h1>edgellm {html.escape(__version__)}</h1>{link}{''.join(rows)}</html>".encode()
