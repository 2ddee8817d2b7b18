"""The command line: one command per file, loaded when it is called.

stdout carries the answer alone. An error is one line on stderr and exit code 1 (2 for wrong usage); `--verbose` shows
the traceback and the engines' log. Ctrl-C exits with 130, SIGTERM with 143 and SIGHUP with 129: what was begun is
cleaned up then, too.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

import click

from edgellm import __version__
from edgellm.cli import streams
from edgellm.errors import EdgeLLMError, InvalidParameter

# name: (module, attribute, the line that --help shows)
COMMANDS = {
    "run": ("run", "run", "One answer, or a conversation when no prompt is given."),
    "serve": ("serve", "serve", "A server for the clients you have, and a page."),
    "batch": ("batch", "batch", "Answer every line of a file."),
    "pull": ("pull", "pull", "Download a model."),
    "chats": ("chats", "chats", "The conversations that are kept, if you want them kept."),
    "list": ("list", "list_models", "Models that are here, and models to pull."),
    "show": ("show", "show", "What a model file is and what it needs."),
    "rm": ("rm", "rm", "Remove a downloaded model."),
    "cache": ("cache", "cache", "The prompts that are known on disk."),
    "convert": ("convert", "convert", "Make GGUF, ONNX or a checkpoint of one another."),
    "eval": ("eval", "evaluate", "Measure how well models predict a text, and how far from another."),
    "bench": ("bench", "bench", "Measure prefill, decode and time to first token."),
    "config": ("config", "config", "Your settings: default model, aliases, presets."),
    "doctor": ("doctor", "doctor", "What this machine has, and what is wrong."),
    "completion": ("completion", "completion", "Let the shell complete commands and models."),
    "help": ("help", "help_command", "The help page of a command."),
}


class LazyGroup(click.Group):
    """Knows its commands' names and help lines; imports a command's module only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS]  # cli.list, once imported, is what `list` means here

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _help = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"edgellm.cli.{module}"), attribute)
        if not any(option.name == "verbose" for option in command.params):
            command.params.append(_verbose_option())
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]}?", ctx) from None

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
    with streams.safe(), _signals():
        code = _run(arguments)
    sys.exit(code)


class _Ended(SystemExit):
    """Somebody wants the program to end; code: 128 and the number of the signal, as shells have it."""


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does; a second one ends the program at once. Those that are ignored or
    handled stay so."""

    def end(number: int, _frame: object) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise _Ended(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    in_main = threading.current_thread() is threading.main_thread()
    taken = [number for number in numbers if in_main and signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _run(arguments: list[str] | None) -> int:
    """Run a command line; returns the exit code."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handler.setLevel(logging.WARNING)
    logging.getLogger("edgellm").handlers = [handler]
    context: dict[str, Any] = {}
    code = 0
    try:
        if "_EDGELLM_COMPLETE" in os.environ:
            from edgellm.cli.completion import answer

            answer(cli)
        with cli.make_context("edgellm", sys.argv[1:] if arguments is None else arguments) as ctx:
            try:
                cli.invoke(ctx)
            finally:
                context = ctx.obj or {}
        sys.stdout.flush()
    except Exception as error:
        code = _fail(error, verbose=bool(context.get("verbose")))
    except KeyboardInterrupt:
        code = 130
    except _Ended as error:
        code = int(str(error))
    try:
        sys.stdout.flush()
    except (streams.OutputLost, BrokenPipeError):  # reported by now, or nobody was listening
        streams.drop()
    return code


def _fail(error: Exception, *, verbose: bool) -> int:
    """Say on one line of stderr what went wrong; returns the exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.Abort):
        return 130
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, BrokenPipeError):  # the reader of our output left
        return 141
    if verbose:
        logging.getLogger("edgellm").error("the command failed", exc_info=error)
    if isinstance(error, streams.OutputLost):
        said = f"standard output cannot be written: {error}"
    elif isinstance(error, EdgeLLMError):
        said = str(error)
    else:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        hint = "" if verbose else " (--verbose shows where)"
        said = f"this should not have happened: {what}{hint}"
    from edgellm.cli.output import note

    note(f"edgellm: {said}")
    return 2 if isinstance(error, InvalidParameter) else 1
