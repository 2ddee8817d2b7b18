"""What mkdocs builds beside docs/*.md: pages made of the commands and options, and those that lie at the top."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from edgellm.cli import cli
from edgellm.cli.manual import ENVIRONMENT, STATUS, Page, pages
from edgellm.params import CacheParams, GenerateParams, LoadParams

ROOT = Path(__file__).parents[2]
TOP = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "benchmarks.md": "benchmarks/README.md",
}


def on_files(files: Files, *, config: MkDocsConfig, **_: Any) -> Files:
    made = {name: _of_the_top(ROOT / source) for name, source in TOP.items()}
    made |= {"commands.md": _commands(), "options.md": _options()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def _of_the_top(path: Path) -> str:
    """The text of a file that lies outside of docs, with its links as they are from there."""
    text = path.read_text(encoding="utf-8")
    for name, source in TOP.items():
        text = text.replace(f"]({source}", f"]({name}")
    text = re.sub(r"\]\((?:\.\./)?docs/", "](", text)
    return re.sub(r"`?\bdocs/([a-z-]+\.md)\b`?", _linked, text)


def _linked(said: re.Match[str]) -> str:
    """A page that is named, as a link to it."""
    path = ROOT / "docs" / said[1]
    if not path.is_file():
        return said[0]
    title = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
    return f"[{title}]({said[1]})"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Files at the top that a page names become links to the pages that they are here."""
    for name, source in TOP.items():
        markdown = markdown.replace(f"`{source}`", f"[{source}]({name})")
    return markdown


def _commands() -> str:
    every = list(pages(click.Context(cli, info_name="edgellm")))
    parts = [
        "# Commands\n\nMade of the program itself: `edgellm help COMMAND` prints the same, and `edgellm help --man "
        "FOLDER` writes it as manual pages. What the options of models and answers may be is under "
        "[options](options.md).",
        *(_command(page) for page in every),
        "## Exit status\n",
        _listed(STATUS),
        "## Environment\n",
        _listed(ENVIRONMENT),
    ]
    return "\n\n".join(parts) + "\n"


def _command(page: Page) -> str:
    level = "#" * (2 + max(0, page.name.count(" ") - 1))
    parts = [f"{level} {page.name}", f"```text\n{page.name} {page.usage}\n```", *map(_prose, page.paragraphs)]
    for section, records in page.options.items():
        parts += [f"**{section}**"] * (len(page.options) > 1) + [_listed(records)]
    if page.commands:
        parts.append(_listed(page.commands))
    return "\n\n".join(parts)


def _options() -> str:
    parts = [
        "# Options\n\nThe option `max_tokens` is `max_tokens=N` in Python and in presets, `--max-tokens N` of `edgellm "
        "run`, `/set max_tokens N` in a conversation, and a field of this name in a request to the server. `None` "
        "stands for an option's default, everywhere. `edgellm help options` prints this."
    ]
    for kind, title in (
        (GenerateParams, "Of an answer"),
        (LoadParams, "Of a model"),
        (CacheParams, "Of the cache"),
    ):
        parts += [f"## {title}: {kind.__name__}", _listed([(o.name, o.explained) for o in kind.OPTIONS.values()])]
    return "\n\n".join(parts) + "\n"


def _listed(records: Any) -> str:
    """Words and what they mean, as a list of definitions."""
    return "\n\n".join(f"`{word}`\n:   {_prose(meaning)}" for word, meaning in records)


def _prose(text: str) -> str:
    """Text that is not Markdown, as Markdown shows it; what stands in `backticks` is code there, too."""
    words = " ".join(text.split())
    return "".join(
        part if part.startswith("`") else re.sub(r"([\\*_<>\[\]#|])", r"\\\1", part)
        for part in re.split(r"(`[^`]*`)", words)
    )
