"""`edgellm completion`: the shell knows edgellm's commands, options and models.

click writes the scripts and answers them: https://click.palletsprojects.com/en/stable/shell-completion/
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import click
from click.shell_completion import CompletionItem, get_completion_class, shell_complete

from edgellm.cli.output import note

PROGRAM = "edgellm"
VARIABLE = "_EDGELLM_COMPLETE"  # set by the scripts: the entry point answers them then
SHELLS = ("bash", "zsh", "fish")
MARK = "# edgellm completion"


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS), required=False)
@click.option("--install", is_flag=True, help="Write it to a file, and for bash and zsh a line to the start file.")
def completion(shell: str | None, install: bool) -> None:
    """Print the completion script for SHELL; without SHELL, for the shell of this account.

    In a start file, `eval "$(edgellm completion bash)"` reads it; --install does without a start of edgellm.
    """
    shell = shell or Path(os.environ.get("SHELL", "")).name
    if shell not in SHELLS:
        raise click.UsageError(f"which shell? One of {', '.join(SHELLS)}.")
    kind = get_completion_class(shell)
    assert kind is not None  # one of SHELLS
    script = kind(click.Command(PROGRAM), {}, PROGRAM, VARIABLE).source()
    if not install:
        click.echo(script)
        return
    if shell == "fish":
        file = _folder("XDG_CONFIG_HOME", "~/.config") / "fish" / "completions" / f"{PROGRAM}.fish"
        _write(file, script)
        note(f"written to {file}; new shells complete {PROGRAM}")
        return
    file = _folder("XDG_DATA_HOME", "~/.local/share") / PROGRAM / f"completion.{shell}"
    _write(file, script)
    start = _folder("ZDOTDIR", "~") / ".zshrc" if shell == "zsh" else Path("~/.bashrc").expanduser()
    begin = "autoload -Uz compinit && compinit -C; " if shell == "zsh" else ""
    line = f"[ -r '{file}' ] && {{ {begin}. '{file}'; }}  {MARK}"
    before = start.read_text(encoding="utf-8", errors="surrogateescape") if start.is_file() else ""
    kept = [each for each in before.splitlines() if not each.endswith(MARK)]
    _write(start, "\n".join([*kept, line, ""]))
    note(f"written to {file}, and a line to {start} that reads it; new shells complete {PROGRAM}")


def complete_model(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of models that are here, of the catalog and of the settings; files where none fits."""
    from edgellm import hub
    from edgellm.config import read_config
    from edgellm.errors import EdgeLLMError

    names: dict[str, str] = {}
    try:
        names |= read_config().names()
        names |= {stored.name: "is here" for stored in hub.ModelStore().list() if stored.problem is None}
        for model in hub.catalog().values():
            names.setdefault(model.name, "can be pulled")
    except (EdgeLLMError, OSError):
        pass  # what is wrong is said by the command itself
    found = [CompletionItem(name, help=what) for name, what in names.items() if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def answer(cli: click.Command) -> NoReturn:
    """Answer the shell, which asked by the environment variable."""
    sys.exit(shell_complete(cli, {}, PROGRAM, VARIABLE, os.environ[VARIABLE]))


def _write(file: Path, text: str) -> None:
    from edgellm.errors import CannotWrite
    from edgellm.files import new_file

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with new_file(file.resolve(), file.stat().st_mode if file.exists() else None) as out:
            out.write(text.encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise CannotWrite(
            f"{file} cannot be written: {error.strerror or error}; without --install the script is printed"
        ) from error


def _folder(variable: str, usual: str) -> Path:
    return Path(os.environ.get(variable) or usual).expanduser()
