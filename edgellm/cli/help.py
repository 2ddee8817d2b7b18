"""`edgellm help COMMAND`: the page that `edgellm COMMAND --help` prints; `edgellm help options`: what each may be."""

from __future__ import annotations

import click


@click.command("help")
@click.argument("command", metavar="[COMMAND|options]...", nargs=-1)
@click.pass_context
def help_command(context: click.Context, command: tuple[str, ...]) -> None:
    """Print the help page of COMMAND, of the options of models and answers, or of edgellm."""
    at = context.find_root()
    if command == ("options",):
        from edgellm.params import CacheParams, GenerateParams, LoadParams

        page = at.make_formatter()
        page.write_text(
            "The option max_tokens is max_tokens=N in Python and in presets, --max-tokens N of `edgellm run`, and "
            "/set max_tokens N in a conversation."
        )
        for kind in (GenerateParams, LoadParams, CacheParams):
            with page.section(kind.__name__):
                page.write_dl([(each.name, each.explained) for each in kind.OPTIONS.values()])
        click.echo(page.getvalue().rstrip("\n"))
        return
    for word in command:
        found = at.command.get_command(at, word) if isinstance(at.command, click.Group) else None
        if found is None:
            raise click.UsageError(f"{' '.join(command)!r} is no command; `edgellm help` lists them.")
        at = click.Context(found, parent=at, info_name=word)
    click.echo(at.get_help())
