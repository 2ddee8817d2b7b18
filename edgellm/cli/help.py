"""`edgellm help COMMAND`: the page that `edgellm COMMAND --help` prints; `edgellm help options`: what each may be; and
`edgellm help --man FOLDER`: all of them for `man`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("help")
@click.argument("command", metavar="[COMMAND|options]...", nargs=-1)
@click.option(
    "--man",
    "folder",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the manual pages to FOLDER instead, such as ~/.local/share/man/man1; then: man edgellm-run.",
)
@click.pass_context
def help_command(context: click.Context, command: tuple[str, ...], folder: Path | None) -> None:
    """Print the help page of COMMAND, of the options of models and answers, or of edgellm."""
    at = context.find_root()
    if folder is not None:
        if command:
            raise click.UsageError("--man writes the pages of all commands; leave the command out.")
        from edgellm import __version__
        from edgellm.cli.manual import write_manual
        from edgellm.cli.output import note

        written = write_manual(at, folder.expanduser(), __version__)
        note(f"{len(written)} pages written to {folder}")
        return
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
