"""`edgellm config`: the settings, and an editor for them."""

from __future__ import annotations

from dataclasses import asdict

import click

from edgellm.cli.output import note, print_facts, print_json

TEMPLATE = """\
# Settings of edgellm; lines that begin with # do nothing.

# model = "smollm2:135m"            # what `edgellm run` runs when it is given none
# keep = true                       # keep conversations (`edgellm chats`) and what was typed

[aliases]                           # other names, wherever a model is named
# small = "smollm2:135m"

# [presets.translator]              # for `edgellm run translator TEXT`, or `--preset translator` with any model
# model = "small"
# system = "Translate into French."
# temperature = 0                   # and every other option of `edgellm run`
"""


@click.command("config")
@click.option("--edit", is_flag=True, help="Open the file in $EDITOR.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def config(edit: bool, as_json: bool) -> None:
    """Show the settings: the default model, aliases, presets, and whether conversations are kept."""
    from edgellm.cli.run import check_presets
    from edgellm.config import config_path, read_config
    from edgellm.errors import CannotWrite, InvalidParameter
    from edgellm.home import make_folder

    path = config_path()
    if edit:
        try:
            make_folder(path.parent)
            if not path.exists():
                path.write_text(TEMPLATE, encoding="utf-8")
        except OSError as error:
            raise CannotWrite(f"{path} cannot be written: {error.strerror or error}") from error
        click.edit(filename=str(path))
    try:
        found = read_config()
        check_presets(found)
    except InvalidParameter as error:
        if edit:
            note(f"{error}; `edgellm config --edit` opens it again")
            raise SystemExit(1) from None
        raise
    if as_json:
        print_json({"path": str(path), **asdict(found)})
        return
    aliases = [f"{name} = {model}" for name, model in found.aliases.items()]
    presets = [
        f"{name}: "
        + ", ".join(f"{k} {v!r}" for k, v in {"model": preset.model, **preset.options}.items() if v is not None)
        for name, preset in found.presets.items()
    ]
    print_facts(
        [
            ("file", f"{path}" + ("" if path.exists() else " (not there yet: --edit makes it)")),
            ("model", found.model or "none"),
            ("keep", "conversations and what was typed are kept" if found.keep else "nothing is kept"),
            ("aliases", "\n".join(aliases) or "none"),
            ("presets", "\n".join(presets) or "none"),
        ]
    )
