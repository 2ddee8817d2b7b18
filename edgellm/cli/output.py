"""What the commands share for their screens: progress on stderr, tables that are plain in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
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


@contextmanager
def pull_progress() -> Iterator[Progress]:
    """A callback for `edgellm.hub.pull` and `resolve`: lines, and a bar where stderr is a terminal."""
    if not sys.stderr.isatty():

        def plain(event: PullEvent) -> None:
            if not event.total:
                note(event.text)

        yield plain
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as bars:
        tasks: dict[str, Any] = {}

        def draw(event: PullEvent) -> None:
            if not event.total:
                bars.console.print(event.text, markup=False)
                return
            if event.text not in tasks:
                tasks[event.text] = bars.add_task(event.text, total=event.total, completed=event.done)
            bars.update(tasks[event.text], completed=event.done, total=event.total)

        yield draw
