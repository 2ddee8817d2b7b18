"""edgellm list: the models that are here, the user's own names for models, and the names that can be pulled."""

from __future__ import annotations

import click

from edgellm.cli.output import local_time, note, print_json, print_table, print_words, size, values_of


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_models(as_json: bool) -> None:
    """Show the models that are here, your aliases and presets, and the names that can be pulled."""
    from edgellm import hub
    from edgellm.config import read_config
    from edgellm.errors import InvalidParameter

    try:
        names = read_config().names()
    except InvalidParameter as error:
        names = {}
        note(f"your aliases and presets are left out: {error}")
    store = hub.ModelStore()
    here = store.list()
    pulled = {stored.name for stored in here}
    known = [model for model in hub.catalog().values() if model.name not in pulled]
    known.sort(key=lambda model: (model.name.partition(":")[0], model.size))
    if as_json:
        models = [
            {
                **values_of(stored, "name size type pulled_at source proof license problem"),
                "path": None if stored.problem else str(stored.path),
            }
            for stored in here
        ]
        available = [
            {
                **values_of(model, "name size sha256 type license description"),
                "sources": [str(source) for source in model.sources],
                "staged": store.staged(model.name),
            }
            for model in known
        ]
        print_json({"models": models, "names": names, "available": available})
        return
    if here:
        rows = [
            (e.name, size(e.size), e.type, local_time(e.pulled_at, "%Y-%m-%d"), "damaged" if e.problem else e.source)
            for e in here
        ]
        print_table(("NAME", "SIZE", "TYPE", "PULLED", "SOURCE"), rows, right=(1,), least=3)
        for stored in here:
            if stored.problem:
                click.echo(f"{stored.name} is damaged: {stored.problem}; pull it again or rm it", err=True)
    else:
        click.echo("No models here yet.")
    if names:
        click.echo()
        print_table(("YOUR NAMES", "WHAT THEY ARE"), list(names.items()))
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
