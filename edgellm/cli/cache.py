"""edgellm cache: the prompts on disk that no process has to compute again."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from edgellm.cli.output import print_json, print_table, size, values_of

if TYPE_CHECKING:
    from edgellm.kv.store import BlockStore

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """Bytes of 500MB, 2.5 GB, 1GiB or 0."""
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kmgt]i?)?b?", value.strip().lower())
    if found is None:
        raise click.BadParameter(f"{value!r} is not a size; write it like 500MB or 2GB.")
    return int(float(found[1]) * UNITS[found[2] or ""])


@click.group("cache")
def cache() -> None:
    """The prompts kept on disk, so that they are not computed again."""


@cache.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def ls(as_json: bool) -> None:
    """Show the conversations on disk, the last used first."""
    with opened() as store:
        stats, entries = store.stats(), store.conversations()
    if as_json:
        conversations = [
            {
                **values_of(entry, "model words tokens"),
                "bytes": entry.nbytes,
                "shared_bytes": entry.shared,
                "age_seconds": round(entry.age),
                "idle_seconds": round(entry.idle),
            }
            for entry in entries
        ]
        about = {"path": str(store.folder), "bytes": stats.nbytes, **values_of(stats, "budget blocks problem")}
        print_json({**about, "conversations": conversations})
        return
    if entries:
        rows = [(e.model, str(e.tokens), size(e.nbytes), since(e.age), since(e.idle), e.words) for e in entries]
        print_table(("MODEL", "TOKENS", "SIZE", "AGE", "USED", "BEGINS WITH"), rows, right=(1, 2, 3, 4), crop=True)
        parts = sum(entry.nbytes for entry in entries)
        once = "; what conversations share is there once" if parts > stats.nbytes else ""
        click.echo(f"\n{size(stats.nbytes)} of at most {size(stats.budget)} in {stats.blocks} blocks{once}.")
    else:
        click.echo("No prompts are kept yet.")
    if stats.problem:
        click.echo(f"Nothing new is kept: {stats.problem}", err=True)


@cache.command("prune")
@click.option("--to", "to_bytes", metavar="SIZE", callback=parse_size, help="What may stay [default: the budget].")
def prune(to_bytes: int | None) -> None:
    """Remove what was not used for longest until at most the SIZE of --to is left."""
    with opened() as store:
        freed = store.prune(store.budget if to_bytes is None else to_bytes)
        left = store.stats().nbytes
    click.echo(f"{size(freed)} freed, {size(left)} left")


@cache.command("clear")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clear(yes: bool) -> None:
    """Remove every prompt from the disk. Models and saved chats stay."""
    with opened() as store:
        stats = store.stats()
        if stats.blocks and not yes:
            if not interactive():
                raise click.UsageError(f"this removes {size(stats.nbytes)} of kept prompts; say --yes.")
            click.confirm(f"Remove {size(stats.nbytes)} of kept prompts?", abort=True, err=True)
        freed = store.clear()
    click.echo(f"{size(freed)} freed")


@cache.command("path")
def path() -> None:
    """Print the folder that holds them."""
    from edgellm.kv.store import store_path

    click.echo(store_path())


@contextmanager
def opened() -> Iterator[BlockStore]:
    """The store, repaired and up to date."""
    from edgellm.kv.store import BlockStore, store_path

    store = BlockStore(store_path())
    try:
        store.flush()
        yield store
    finally:
        store.close()


def interactive() -> bool:
    """Whether somebody is there to answer."""
    return sys.stdin.isatty()


def since(seconds: float) -> str:
    """A duration for people: "now", "5 min", "3 h", "12 d"."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return "now"
