"""edgellm serve: models for the clients that are there already, and a page."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from dataclasses import replace
from typing import Any

import click

from edgellm.cli.completion import complete_model
from edgellm.cli.locate import fetched
from edgellm.cli.options import LOAD, Sectioned, chosen, flags
from edgellm.cli.output import note
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.params import LoadParams
from edgellm.serve.settings import ServeParams, Serving

KEY = "EDGELLM_API_KEY"
OF_A_PORT = ("host", "port", "api_key", "origin")
LEAVE_SECONDS = 5.0  # from the end of the server to that of the process, at most


@click.command("serve", cls=Sectioned)
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_model)
@flags(ServeParams.OPTIONS.values())
@flags(LOAD.values())
def serve(models: tuple[str, ...], **options: Any) -> None:
    """Answer clients of OpenAI, Ollama and Anthropic, and show a page in the browser.

    Each MODEL is loaded at once and stays; others that are here are loaded when a client asks for them.
    """
    given = chosen(ServeParams, options)
    params = ServeParams(**given)
    if params.stdio:
        _over_pipes(Serving(params, models, LoadParams(**chosen(LoadParams, options))), set(given) & set(OF_A_PORT))
        return
    params = params if params.api_key else replace(params, api_key=os.environ.get(KEY) or None)
    serving = Serving(params, models, LoadParams(**chosen(LoadParams, options)))
    if not params.loopback and params.api_key is None:
        raise InvalidParameter(
            f"--host {params.host}: other machines could ask, so a key is needed: --api-key KEY, or {KEY}"
        )
    for model in models:
        fetched(model, offline=serving.load.offline)
    try:
        from edgellm.serve import listen
    except ImportError as error:
        raise Unsupported(f"the server needs {error.name}: pip install 'edgellm[serve]'") from error
    with listen.bound(params) as listener:
        listen.run(_serve(serving, listen.server, listener))


def _over_pipes(serving: Serving, needless: set[str]) -> None:
    if needless:
        said = ", ".join(ServeParams.OPTIONS[name].flag for name in sorted(needless))
        raise InvalidParameter(f"--stdio: nothing listens, so {said} has no effect; leave it out")
    try:
        from edgellm.serve import pipes, stdio
    except ImportError as error:
        raise Unsupported(f"the server needs {error.name}: pip install 'edgellm[serve]'") from error
    reading, writing = pipes.taken()
    for model in serving.named:
        fetched(model, offline=serving.load.offline)
    raise click.exceptions.Exit(stdio.run(serving, reading, writing))


def _leave_soon() -> None:
    """Python waits for threads, some of which may be at work for long on what nobody waits for."""
    leaving = threading.Timer(LEAVE_SECONDS, os._exit, (130,))  # as a shell says of an interrupt
    leaving.daemon = True
    leaving.start()


async def _serve(serving: Serving, server_of: Any, listener: Any) -> None:
    from edgellm.serve.app import create_app, load_named
    from edgellm.serve.models import Models

    models = Models(serving)
    server = server_of(create_app(serving, models))
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    note(f"edgellm answers at http://{shown}:{port}  (OpenAI: /v1, Ollama: /, Anthropic: /v1/messages, a page: /)")
    loading = asyncio.create_task(load_named(models, note))
    try:
        await server.serve(sockets=[listener])
    finally:
        _leave_soon()
        loading.cancel()
        with suppress(asyncio.CancelledError):
            await loading
