"""Conversations that are kept, where the user asked for it: `edgellm chats`, `run --continue` and `run --resume N`.

chats/
  12.json      the conversation, as Chat.save writes it
  12.about     what the list shows: model, first words, turns, time
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.output import local_time, print_json, print_table
from edgellm.errors import InvalidParameter
from edgellm.files import new_file, read_file
from edgellm.home import home, make_folder

if TYPE_CHECKING:
    from edgellm import Chat

WORDS = 120  # characters of the first message that the list shows at most


@dataclass(frozen=True, slots=True)
class KeptChat:
    """A conversation on disk. model: its name as it was given to `run`; at: when it went on last, ISO 8601 in UTC."""

    number: int
    model: str
    words: str
    turns: int
    at: str

    @property
    def path(self) -> Path:
        return home("chats", f"{self.number}.json")


def all_kept() -> list[KeptChat]:
    """The last used first. A file that cannot be read is left out."""
    folder = home("chats")
    found = [_read(path) for path in folder.glob("*.about")] if folder.is_dir() else []
    return sorted((kept for kept in found if kept is not None), key=lambda kept: (kept.at, kept.number), reverse=True)


def kept(number: int | None) -> KeptChat:
    """The conversation of that number, or the last one. Raises InvalidParameter when there is none."""
    found = all_kept()
    chosen = next((k for k in found if number is None or k.number == number), None)
    if chosen is None:
        from edgellm.config import config_path

        which = "no conversation is kept" if number is None else f"no conversation {number} is kept"
        raise InvalidParameter(f"{which}; `edgellm chats` lists them, and keep = true in {config_path()} keeps them")
    return chosen


class Keeper:
    """Keeps one conversation: a new one, or `past`, whose messages it brings back."""

    def __init__(self, model: str, past: KeptChat | None = None) -> None:
        self.model = model
        self.past = past
        self._number = past.number if past is not None else None

    def restore(self, chat: Chat) -> None:
        """Put the past conversation in place of `chat`. Raises what `Chat.restore` does."""
        if self.past is not None:
            chat.restore(self.past.path)

    def save(self, chat: Chat) -> None:
        """Write the conversation as it is now. Raises EdgeLLMError and OSError."""
        folder = make_folder(home("chats"))
        number = self._number = self._number or _new_number(folder)
        chat.save(folder / f"{number}.json")
        asked = [message for message in chat.messages if message.get("role") == "user"]
        words = " ".join(_plain(asked[0].get("content")).split())[:WORDS] if asked else ""
        at = datetime.now(timezone.utc).isoformat()
        about = KeptChat(number, self.model, words, len(asked), at)
        with new_file(folder / f"{number}.about") as file:
            file.write(json.dumps(asdict(about)).encode())


@click.group("chats", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def chats(context: click.Context, as_json: bool) -> None:
    """The conversations that are kept, the last used first. `edgellm run --resume N` goes on with one.

    Nothing is kept unless the settings say `keep = true`: see `edgellm config`.
    """
    if context.invoked_subcommand is not None:
        return
    from edgellm.config import config_path, read_config

    found = all_kept()
    if as_json:
        print_json({"conversations": [asdict(each) for each in found]})
    elif found:
        rows = [(str(k.number), local_time(k.at, "%Y-%m-%d %H:%M"), str(k.turns), k.model, k.words) for k in found]
        print_table(("N", "LAST", "TURNS", "MODEL", "BEGINS WITH"), rows, right=(0, 2))
    else:
        kept_now = read_config().keep
        click.echo("No conversations yet." if kept_now else f"None are kept; keep = true in {config_path()} does it.")


@chats.command("rm")
@click.argument("numbers", metavar="N...", nargs=-1, type=int)
@click.option("--all", "every", is_flag=True, help="All of them.")
def rm(numbers: tuple[int, ...], every: bool) -> None:
    """Remove kept conversations."""
    if not numbers and not every:
        raise click.UsageError("which ones? Give their numbers, or --all.")
    for each in all_kept() if every else [kept(number) for number in numbers]:
        each.path.unlink(missing_ok=True)
        each.path.with_suffix(".about").unlink(missing_ok=True)
        click.echo(f"removed {each.number}: {each.words[:60]}")


def _new_number(folder: Path) -> int:
    """One that no other process takes as well: the file is made here."""
    number = max((int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit()), default=0)
    while True:
        number += 1
        try:
            os.close(os.open(folder / f"{number}.json", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            continue
        return number


def _read(path: Path) -> KeptChat | None:
    try:
        about: Mapping[str, Any] = json.loads(read_file(path))
        return KeptChat(int(path.stem), str(about["model"]), str(about["words"]), int(about["turns"]), str(about["at"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _plain(content: Any) -> str:
    """The text of a message, of all its parts."""
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")
