"""edgellm rm: remove a model from the local store."""

from __future__ import annotations

import os

import click

from edgellm.cli.completion import complete_model
from edgellm.cli.output import size


@click.command("rm")
@click.argument("name", shell_complete=complete_model)
def rm(name: str) -> None:
    """Remove the model NAME, and what an unfinished pull of it left."""
    from edgellm import hub
    from edgellm.errors import InvalidParameter

    if os.path.exists(name):
        raise InvalidParameter(f"{name} is a file or a folder of yours and not in the store; delete it yourself")
    store = hub.ModelStore()
    stored = hub.find(name, store)
    if stored is None and not store.staged(name):
        from edgellm.hub.catalog import match

        name = match(name, [known for known in hub.catalog() if store.staged(known)]) or name
    chosen = stored.name if stored is not None else name
    click.echo(f"removed {chosen}, {size(store.remove(chosen))} freed")
