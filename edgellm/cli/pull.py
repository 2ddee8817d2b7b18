"""edgellm pull: fetch a model into the local store."""

from __future__ import annotations

from dataclasses import asdict

import click

from edgellm.cli.completion import complete_model
from edgellm.cli.output import note, print_json, pull_progress, size, values_of


@click.command("pull")
@click.argument("name", shell_complete=complete_model)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the path.")
def pull(name: str, as_json: bool) -> None:
    """Fetch a model: NAME from the catalog, or hf:ORG/REPO[:QUANT].

    What was fetched is checked against its SHA-256. A pull that was stopped goes on where it was. Prints the path of
    the model's file.
    """
    from edgellm import hub

    try:
        with pull_progress() as progress:
            pulled = hub.pull(name, progress=progress)
    except KeyboardInterrupt:
        note(f"stopped; finished parts are kept, and `edgellm pull {name}` goes on from there")
        raise
    against = "the catalog" if pulled.proof == "catalog" else "the hub's own record"
    note(f"{pulled.name} is here: {size(pulled.size)}, SHA-256 checked against {against}")
    if as_json:
        about = {**values_of(pulled, "name size source proof"), "path": str(pulled.path)}
        print_json({**about, "files": [asdict(file) for file in pulled.files]})
    else:
        click.echo(str(pulled.path))
