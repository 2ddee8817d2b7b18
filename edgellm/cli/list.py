"""edgellm list: the models that are here, and the names that can be pulled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgellm.hub import Entry


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_models(as_json: bool) -> None:
    """Show the models that are here and the names that can be pulled."""
    from edgellm import hub
    from edgellm.cli.output import print_json, print_table, print_words, size

    store = hub.Store()
    here = store.list()
    names = {entry.name for entry in here}
    known = [model for model in hub.catalog().values() if model.name not in names]
    known.sort(key=lambda model: (model.name.partition(":")[0], model.size))
    if as_json:
        print_json(
            {
                "models": [
                    {
                        "name": entry.name,
                        "path": None if entry.problem else str(entry.path),
                        "size": entry.size,
                        "type": entry.type,
                        "pulled_at": entry.pulled_at,
                        "source": entry.source,
                        "proof": entry.proof,
                        "license": entry.license,
                        "problem": entry.problem,
                    }
                    for entry in here
                ],
                "available": [
                    {
                        "name": model.name,
                        "size": model.size,
                        "sha256": model.sha256,
                        "type": model.type,
                        "license": model.license,
                        "description": model.description,
                        "sources": [str(source) for source in model.sources],
                        "staged": store.staged(model.name),
                    }
                    for model in known
                ],
            }
        )
        return
    if here:
        rows = [(e.name, size(e.size), e.type, _when(e), "damaged" if e.problem else e.source) for e in here]
        print_table(("NAME", "SIZE", "TYPE", "PULLED", "SOURCE"), rows, right=(1,), least=3)
        for entry in here:
            if entry.problem:
                click.echo(f"{entry.name} is damaged: {entry.problem}; pull it again or rm it", err=True)
    else:
        click.echo("No models here yet.")
    if known:
        click.echo()
        print_words("Can be pulled with `edgellm pull NAME`, as can hf:ORG/REPO[:QUANT]:")
        about = []
        for model in known:
            staged = store.staged(model.name)
            unfinished = f" ({size(staged)} of an unfinished pull are here)" if staged else ""
            exact = "" if model.sha256 else "~"
            what = model.description + unfinished
            about.append((model.name, exact + size(model.size), what, model.license, model.type))
        print_table(("NAME", "SIZE", "WHAT IT IS", "LICENCE", "TYPE"), about, right=(1,), words=2, least=2)


def _when(entry: Entry) -> str:
    """The day of the pull, in the user's own time zone."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(entry.pulled_at).astimezone().strftime("%Y-%m-%d")
    except ValueError:
        return "?"
