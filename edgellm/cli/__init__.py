"""The command line: one command per file, loaded when it is called.

stdout carries the answer alone. An error is one line on stderr and exit code 1 (2 for wrong usage); `--verbose` shows
the traceback and the engines' log. Ctrl-C exits with 130.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from edgellm import __version__
from edgellm.errors import EdgeLLMError, InvalidParameter

# name: (module, attribute, the line that --help shows)
COMMANDS = {
    "run": ("run", "run", "One answer, or a conversation when no prompt is given."),
    "pull": ("pull", "pull", "Download a model."),
    "list": ("list", "list_models", "Models that are here, and models to pull."),
    "show": ("show", "show", "What a model file is and what it needs."),
    "rm": ("rm", "rm", "Remove a downloaded model."),
    "cache": ("cache", "cache", "The prompts that are known on disk."),
    "convert": ("convert", "convert", "Make a GGUF file of a checkpoint, or a checkpoint of a GGUF file."),
    "eval": ("eval", "evaluate", "Measure how well models predict a text, and how far from another."),
    "bench": ("bench", "bench", "Measure prefill, decode and time to first token."),
    "doctor": ("doctor", "doctor", "What this machine has, and what is wrong."),
}


class LazyGroup(click.Group):
    """Knows its commands' names and help lines; imports a command's module only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _help = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"edgellm.cli.{module}"), attribute)
        if not any(option.name == "verbose" for option in command.params):
            command.params.append(_verbose_option())
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_module, _attribute, text) in COMMANDS.items()])


def _be_verbose(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.find_root().obj = {"verbose": True}
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        logger = logging.getLogger("edgellm")
        logger.handlers = [handler]
        logger.setLevel(logging.DEBUG)


def _verbose_option() -> click.Option:
    return click.Option(
        ["--verbose"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_be_verbose,
        help="Show tracebacks and the engines' log on stderr.",
    )


@click.group(cls=LazyGroup, params=[_verbose_option()], context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgellm")
def cli() -> None:
    """Run quantized language models on this machine."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of the `edgellm` program."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handler.setLevel(logging.WARNING)
    logging.getLogger("edgellm").handlers = [handler]
    context: dict[str, Any] = {}
    try:
        with cli.make_context("edgellm", sys.argv[1:] if arguments is None else arguments) as ctx:
            try:
                cli.invoke(ctx)
            finally:
                context = ctx.obj or {}
    except click.exceptions.Exit as error:
        _leave(error.exit_code)
    except click.ClickException as error:
        error.show()
        _leave(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _leave(130)
    except BrokenPipeError:  # the reader of our output left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(141)
    except EdgeLLMError as error:
        if context.get("verbose"):
            logging.getLogger("edgellm").exception("the command failed")
        click.echo(f"edgellm: {error}", err=True)
        _leave(2 if isinstance(error, InvalidParameter) else 1)
    _leave(0)


def _leave(code: int) -> NoReturn:
    sys.exit(code)
