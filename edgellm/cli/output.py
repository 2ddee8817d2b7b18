"""What the commands share for their screens: progress on stderr, tables that are plain in a pipe."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli import streams

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from edgellm.hub import Progress, PullEvent

WORDS_WIDTH = 24  # what a column of words needs to be of use


def note(text: str) -> None:
    """Lines on stderr, wrapped between words in a terminal only."""
    if sys.stderr.isatty():
        text = "\n".join(_wrapped(line) for line in text.splitlines())
    click.echo(text, err=True)


def rows(pairs: Sequence[tuple[str, str]]) -> str:
    """Two columns as wide as the screen; the second one wraps under itself."""
    formatter = click.HelpFormatter(width=shutil.get_terminal_size().columns)
    formatter.write_dl(pairs)
    return formatter.getvalue().rstrip("\n")


def print_json(value: dict[str, Any] | list[dict[str, Any]]) -> None:
    """One JSON object on stdout, or a list of them."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=not streams.shows_everything()))


def values_of(thing: object, names: str) -> dict[str, Any]:
    """The attributes of these names, for JSON."""
    return {name: getattr(thing, name) for name in names.split()}


def local_time(at: str, form: str) -> str:
    """An ISO 8601 time in the user's own time zone, as `strftime` writes it; "?" for what is none."""
    try:
        return datetime.fromisoformat(at).astimezone().strftime(form)
    except ValueError:
        return "?"


def size(count: int) -> str:
    """A byte count for people, in decimal units: "98.4 MB"."""
    from edgellm.hub.transfer import megabytes

    return megabytes(count)


def print_words(text: str) -> None:
    """A paragraph on stdout, wrapped between words in a terminal only."""
    click.echo(_wrapped(text, "  ") if sys.stdout.isatty() else text)


def _wrapped(text: str, indent: str = "") -> str:
    """A line broken between words, and only there: a path or a command can be copied whole."""
    width = max(20, shutil.get_terminal_size().columns)
    lines = textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines) if len(text) > width else text


def console(*, stderr: bool = False) -> Console:
    """rich's, which writes no escapes at all where NO_COLOR is set (https://no-color.org)."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, color_system=None if os.environ.get("NO_COLOR") else "auto")


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[int] = (),
    *,
    words: int | None = None,
    least: int | None = None,
    crop: bool = False,
) -> None:
    """Columns on stdout. In a pipe nothing is cut, coloured or wrapped; in a terminal the one of words wraps.

    right: the columns aligned to the right. words: the column that wraps; None is the last. least: columns that are
    shown however narrow the screen is; None is all. crop: the last column is cut at the screen's edge instead.
    """
    if not sys.stdout.isatty():
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        for row in [header, *rows]:
            cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
            click.echo("  ".join(cells).rstrip())
        return
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    screen = console()
    widths = [max(cell_len(row[i]) for row in [header, *rows]) + 2 for i in range(len(header))]
    wrapping = len(header) - 1 if words is None else words
    widths[wrapping] = min(widths[wrapping], WORDS_WIDTH)
    shown = len(header)
    while shown > (len(header) if least is None else least) and sum(widths[:shown]) > screen.width:
        shown -= 1
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, title in enumerate(header[:shown]):
        table.add_column(
            Text(title),
            justify="right" if i in right else "left",
            no_wrap=i != wrapping,
            overflow="fold",
            style="cyan" if i == 0 else "",
        )
    for row in rows:
        texts = [Text(cell) for cell in row[:shown]]
        if crop:
            texts[-1].truncate(max(1, screen.width - sum(widths[: shown - 1])), overflow="ellipsis")
        table.add_row(*texts)
    screen.print(table)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Labels and values on stdout, one a line; a value of several lines is indented under its first."""
    if not sys.stdout.isatty():
        width = max(len(label) for label, _ in facts)
        for label, value in facts:
            first, *rest = value.splitlines() or [""]
            click.echo(f"{label.ljust(width)}  {first}".rstrip())
            for line in rest:
                click.echo(f"{'':{width}}  {line}")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for label, value in facts:
        table.add_row(Text(label), Text(value))
    console().print(table)


class Bars:
    """Bars that are drawn at the bottom of a terminal's stderr; shown: rich's, None where stderr is no terminal."""

    def __init__(self, shown: RichProgress | None) -> None:
        self._shown = shown
        self._tasks: dict[str, TaskID] = {}

    def draw(self, name: str, done: int, total: int | None, text: str | None = None) -> bool:
        """Move the bar of this name, a new one at first; False where there are no bars. total: None for not known yet;
        text: what stands before it, else its name."""
        if self._shown is None:
            return False
        if name not in self._tasks:
            self._tasks[name] = self._shown.add_task(name, total=total, completed=done)
        self._shown.update(self._tasks[name], completed=done, total=total, description=text or name)
        return True

    def say(self, text: str) -> None:
        """A line above the bars."""
        if self._shown is None:
            note(text)
        else:
            self._shown.console.print(text, markup=False)


@contextmanager
def bars(*figures: str, transient: bool = False) -> Iterator[Bars]:
    """Bars for the length of the block. figures: rich's columns that follow each one; transient: they go at the end."""
    if not sys.stderr.isatty():
        yield Bars(None)
        return
    from rich import progress

    text, bar = progress.TextColumn("{task.description}", markup=False), progress.BarColumn(bar_width=None)
    columns = (text, bar, *(getattr(progress, name)() for name in figures), progress.TimeRemainingColumn(compact=True))
    with progress.Progress(*columns, console=console(stderr=True), transient=transient) as shown:
        yield Bars(shown)


@contextmanager
def pull_progress() -> Iterator[Progress]:
    """A callback for `edgellm.hub.pull` and `resolve`: lines, and a bar where stderr is a terminal."""
    with bars("DownloadColumn", "TransferSpeedColumn") as shown:

        def draw(event: PullEvent) -> None:
            if event.total:
                shown.draw(event.text, event.done, event.total)
            else:
                shown.say(event.text)

        yield draw
