"""The commands as click describes them, for what is made of that: manual pages, and the site's page of commands."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

STATUS = (
    ("0", "All went well."),
    ("1", "An error, which is said on one line of stderr."),
    ("2", "Wrong usage: a command, an option or a value that there is not."),
    ("130, 143, 129", "Ended by Ctrl-C, by SIGTERM, by SIGHUP."),
    ("141", "The reader of the output left."),
)
ENVIRONMENT = (
    ("EDGELLM_HOME", "The state folder: models, settings, prompts and conversations that are kept."),
    ("EDGELLM_API_KEY", "The key of `edgellm serve`, where --api-key gives none."),
    ("HF_ENDPOINT, HF_HUB_OFFLINE", "Where models of Hugging Face come from, and whether anything may be fetched."),
    ("NO_COLOR", "Set, nothing is coloured."),
    ("VISUAL, EDITOR", "What `edgellm config --edit` and /edit open."),
)


class Page(NamedTuple):
    """A command: its name in full ("edgellm cache ls"), what is typed behind it, what it is in one line, its
    paragraphs, its options by sections, and its subcommands, each a word and what it stands for."""

    name: str
    usage: str
    line: str
    paragraphs: list[str]
    options: dict[str, list[tuple[str, str]]]
    commands: list[tuple[str, str]]


def pages(context: click.Context) -> Iterator[Page]:
    """The page of this context's command, and those of the commands in it."""
    command = context.command
    options: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(context):
        record = param.get_help_record(context)
        if record is not None:
            options.setdefault(getattr(param, "section", "Options"), []).append(record)
    options |= {"Options": options.pop("Options")}  # last, as in `--help`
    found = []
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                found.append((name, child))
    yield Page(
        context.command_path,
        " ".join(command.collect_usage_pieces(context)),
        _line(command),
        re.split(r"\n\s*\n", inspect.cleandoc(command.help or "")),
        options,
        [(name, _line(child)) for name, child in found],
    )
    for name, child in found:
        yield from pages(click.Context(child, parent=context, info_name=name))


def _line(command: click.Command) -> str:
    return command.get_short_help_str(limit=1000).rstrip(".")


def write_manual(context: click.Context, folder: Path, version: str) -> list[Path]:
    """Write edgellm.1, edgellm-run.1 and so on; a command in a command has its own. Raises CannotWrite."""
    from edgellm.errors import CannotWrite
    from edgellm.files import new_file

    every = list(pages(context))
    written = []
    for page in every:
        path = folder / f"{_dashed(page.name)}.1"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with new_file(path.resolve(), path.stat().st_mode if path.exists() else None) as out:
                out.write(_manual(page, every, version).encode("ascii"))
        except OSError as error:
            raise CannotWrite(f"{path} cannot be written: {error.strerror or error}") from error
        written.append(path)
    return written


def _dashed(name: str) -> str:
    return name.replace(" ", "-")


def _manual(page: Page, every: list[Page], version: str) -> str:
    """A page in the macros of man(7)."""
    lines = [
        f'.TH "{_roff(_dashed(page.name).upper())}" "1" "" "edgellm {_roff(version)}" "edgellm"',
        ".SH NAME",
        f"{_roff(_dashed(page.name))} \\- {_roff(page.line)}",
        ".SH SYNOPSIS",
        f"\\fB{_roff(page.name)}\\fP {_roff(page.usage)}",
        ".SH DESCRIPTION",
    ]
    for number, each in enumerate(page.paragraphs):
        lines += [".PP"] * bool(number) + [_roff(" ".join(each.split()))]
    lines.append(".SH OPTIONS")
    for section, records in page.options.items():
        lines += [f".SS {_roff(section)}"] * (len(page.options) > 1) + list(_listed(records))
    if page.commands:
        lines += [".SH COMMANDS", *_listed(page.commands)]
    if page is every[0]:
        lines += [".SH EXIT STATUS", *_listed(STATUS), ".SH ENVIRONMENT", *_listed(ENVIRONMENT)]
    near = [each.name for each in every if each is not page and _related(page.name, each.name)]
    lines += [".SH SEE ALSO", ", ".join(f"\\fB{_roff(_dashed(name))}\\fP(1)" for name in near)]
    return "\n".join(lines) + "\n"


def _related(name: str, other: str) -> bool:
    """The command around it, or one in it."""
    return name.rpartition(" ")[0] == other or other.rpartition(" ")[0] == name


def _listed(records: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> Iterator[str]:
    for word, meaning in records:
        yield from (".TP", f"\\fB{_roff(word)}\\fP", _roff(" ".join(meaning.split())) or "\\&")


def _roff(text: str) -> str:
    """Text as roff shows it, in ASCII: dashes that can be copied, code in bold, nothing that is a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace('"', "\\(dq")
    text = re.sub(r"`([^`]*)`", r"\\fB\1\\fP", text)
    text = re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", text)
    return f"\\&{text}" if text.startswith(".") else text
