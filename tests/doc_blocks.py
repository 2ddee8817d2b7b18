"""The blocks of code in README.md and docs/, what runs them, and what stands in for the names that they use."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from source_tree import ROOT

from edgellm.cli import cli

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
SHELL = ("sh", "console")
_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]+) -->\n+)?(?P<indent> *)```(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_OPERATORS = set("|&;()<>")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    why: str
    """Why it cannot run, as the comment in front of it says; "" where it can."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for each in _BLOCK.finditer(text):
        line = text.count("\n", 0, each.start("language")) + 1
        name = page.relative_to(ROOT).as_posix()
        found.append(Block(name, line, each["language"], textwrap.dedent(each["text"]), each["why"] or ""))
    return found


def run_python(block: Block, names: dict[str, Any]) -> None:
    """Run it with these names, which it adds to; `await` and `async for` may stand at its top."""
    path = ROOT / block.page
    padded = "\n" * block.line + block.text  # so that a traceback has the line of the page
    code = compile(padded, str(path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    names.setdefault("__name__", "guide")
    answer = eval(code, names)
    if inspect.iscoroutine(answer):
        asyncio.run(answer)


def lines(block: Block) -> Iterator[str]:
    """The commands of a block of shell, a line that goes on behind a backslash as one; of a console those that were
    typed."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if block.language == "console":
            if line.startswith("$ "):
                yield line[2:]
        elif line.strip() and not line.lstrip().startswith("#"):
            yield line


def commands(line: str) -> Iterator[list[str]]:
    """What is typed behind `edgellm`, for each time that a line of shell starts it."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    for command in _split(words):
        while command and re.fullmatch(r"[A-Za-z_]\w*=.*", command[0]):
            command = command[1:]
        if command and Path(command[0]).name == "edgellm":
            yield command[1:]


def _split(words: Iterable[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in words:
        if set(word) <= _OPERATORS:
            yield command
            command = []
        else:
            command.append(word)
    yield command


def misuse(arguments: list[str]) -> str:
    """What click finds wrong with a command line, without running it; "" where nothing is. Files need not be there."""
    context, rest = click.Context(cli, info_name="edgellm"), arguments
    try:
        while True:
            command = context.command
            values, rest, _ = command.make_parser(context).parse_args(rest)
            if not isinstance(command, click.Group) or not rest:
                break
            child = command.get_command(context, rest[0])
            if child is None:
                return f"there is no command {rest[0]!r}"
            context, rest = click.Context(child, parent=context, info_name=rest[0]), rest[1:]
        if rest:
            return f"{rest[0]!r} is too much"
        for param in command.params:
            value = values.get(param.name)
            given = param.name in values and not _unset(value)
            if param.required and not given:
                return f"{param.human_readable_name} is missing"
            if given and not isinstance(param.type, click.Path):
                param.type_cast_value(context, value)
    except click.UsageError as error:
        return error.format_message()
    return ""


def _unset(value: Any) -> bool:
    return value is None or value == () or "UNSET" in repr(value)
