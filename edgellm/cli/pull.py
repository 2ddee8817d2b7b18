"""edgellm pull: fetch a model into the local store."""

from __future__ import annotations

import click

from edgellm.cli.completion import complete_model


@click.command("pull")
@click.argument("name", shell_complete=complete_model)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the path.")
def pull(name: str, as_json: bool) -> None:
    """Fetch a model: NAME from the catalog, or hf:ORG/REPO[:QUANT].

    What was fetched is checked against its SHA-256. A pull that was stopped goes on where it was. Prints the path of
    the model's file.
    """
    from edgellm import hub
    from edgellm.cli.output import note, print_json, pull_progress, size

    try:
        with pull_progress() as progress:
            entry = hub.pull(name, progress=progress)
    except KeyboardInterrupt:
        note(f"stopped; finished parts are kept, and `edgellm pull {name}` goes on from there")
        raise
    against = "the catalog" if entry.proof == "catalog" else "the hub's own record"
    note(f"{entry.name} is here: {size(entry.size)}, SHA-256 checked against {against}")
    if as_json:
        print_json(
            {
                "name": entry.name,
                "path": str(entry.path),
                "size": entry.size,
                "source": entry.source,
                "proof": entry.proof,
                "files": [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in entry.files],
            }
        )
    else:
        click.echo(str(entry.path))
