"""`edgellm help COMMAND`: the page that `edgellm COMMAND --help` prints."""

from __future__ import annotations

import click


@click.command("help")
@click.argument("command", metavar="[COMMAND]...", nargs=-1)
@click.pass_context
def help_command(context: click.Context, command: tuple[str, ...]) -> None:
    """Print the help page of COMMAND, or of edgellm."""
    at = context.find_root()
    for word in command:
        found = at.command.get_command(at, word) if isinstance(at.command, click.Group) else None
        if found is None:
            raise click.UsageError(f"{' '.join(command)!r} is no command; `edgellm help` lists them.")
        at = click.Context(found, parent=at, info_name=word)
    click.echo(at.get_help())
