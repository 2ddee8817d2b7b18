"""What the commands share for their screens: progress on stderr, tables that are plain in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn, TaskID

    from edgellm.hub import Progress, PullEvent


def note(text: str) -> None:
    """A line on stderr."""
    click.echo(text, err=True)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def size(count: int) -> str:
    """A byte count for people, in decimal units: "98.4 MB"."""
    from edgellm.hub.transfer import megabytes

    return megabytes(count)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Columns on stdout. In a terminal the last one wraps; in a pipe nothing is cut, coloured or wrapped.

    right: the columns aligned to the right.
    """
    if not sys.stdout.isatty():
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        for row in [header, *rows]:
            cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
            click.echo("  ".join(cells).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, title in enumerate(header):
        last = i == len(header) - 1
        table.add_column(
            Text(title),
            justify="right" if i in right else "left",
            no_wrap=not last,
            overflow="fold",
            style="cyan" if i == 0 else "",
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)


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
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for label, value in facts:
        table.add_row(Text(label), Text(value))
    Console(highlight=False).print(table)


class Bars:
    """Bars that are drawn at the bottom of a terminal's stderr."""

    def __init__(self, shown: RichProgress) -> None:
        self._shown = shown
        self._tasks: dict[str, TaskID] = {}

    def draw(self, name: str, done: int, total: int | None, text: str | None = None) -> None:
        """Move the bar of this name, a new one at first. total: None for not known yet; text: what stands before it,
        else its name."""
        if name not in self._tasks:
            self._tasks[name] = self._shown.add_task(name, total=total, completed=done)
        self._shown.update(self._tasks[name], completed=done, total=total, description=text or name)

    def say(self, text: str) -> None:
        """A line above the bars."""
        self._shown.console.print(text, markup=False)


@contextmanager
def bars(*figures: ProgressColumn, transient: bool = False) -> Iterator[Bars]:
    """Bars for the length of the block. figures: what follows each one; transient: they go at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    text, bar = TextColumn("{task.description}", markup=False), BarColumn(bar_width=None)
    columns = (text, bar, *figures, TimeRemainingColumn(compact=True))
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=transient) as shown:
        yield Bars(shown)


@contextmanager
def pull_progress() -> Iterator[Progress]:
    """A callback for `edgellm.hub.pull` and `resolve`: lines, and a bar where stderr is a terminal."""
    if not sys.stderr.isatty():

        def plain(event: PullEvent) -> None:
            if not event.total:
                note(event.text)

        yield plain
        return
    from rich.progress import DownloadColumn, TransferSpeedColumn

    with bars(DownloadColumn(), TransferSpeedColumn()) as shown:

        def draw(event: PullEvent) -> None:
            if event.total:
                shown.draw(event.text, event.done, event.total)
            else:
                shown.say(event.text)

        yield draw
