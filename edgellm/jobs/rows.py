"""batch: the rows of a program, answered together."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from edgellm import CacheParams, GenerateParams, Model, arguments
from edgellm.errors import InvalidParameter
from edgellm.jobs.answers import answers
from edgellm.jobs.line import Answer, Flaw, Line, beginning, parsed
from edgellm.jobs.plain import Defaults
from edgellm.option import build

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgellm.params import GenerateOptions

AHEAD = 4096  # rows that are taken at once, to sort them

Row = str | Mapping[str, Any]


def batch(
    rows: Iterable[Row],
    model: Model | str | os.PathLike[str],
    params: GenerateParams | None = None,
    *,
    ordered: bool = True,
    system: str | None = None,
    raw: bool = False,
    thinking: bool | None = None,
    **options: Unpack[GenerateOptions],
) -> Generator[dict[str, Any]]:
    """Answer many rows, as many at once as pay; what their prompts begin with alike is read once.

    A row is a prompt, a dict with "prompt" or "messages" ("id", "system", "raw", "thinking" and GenerateParams' options
    beside it), or one in OpenAI's batch format. Yields one dict for each, as `edgellm batch` writes it (docs/batch.md):
    "line" counts the rows from 1; one that cannot be answered has "error" instead of "text". ordered: in the order of
    the rows, else as they are done. params and options hold for rows that do not say otherwise, as system, raw and
    thinking do.

    model: opened by the caller, or a path or name that is opened here for as long. Rows are taken 4,096 at a time, on
    this thread. Close the iterator to stop. Raises InvalidParameter for arguments that are wrong, Unsupported, what
    `load` raises, and Closed.
    """
    if isinstance(rows, (str, bytes, bytearray, Mapping)) or not isinstance(rows, Iterable):
        raise arguments.refuse("rows", rows, "an iterable of prompts, or of dicts")
    if not isinstance(model, Model):
        arguments.path("model", model)
    if system is not None:
        arguments.text("system", system)
    if thinking is not None:
        arguments.flag("thinking", thinking)
    defaults = Defaults(build(GenerateParams, options, params), system, arguments.flag("raw", raw), thinking)
    return _batch(rows, model, defaults, arguments.flag("ordered", ordered))


def _batch(
    rows: Iterable[Row], model: Model | str | os.PathLike[str], defaults: Defaults, ordered: bool
) -> Generator[dict[str, Any]]:
    with ExitStack() as stack:
        if not isinstance(model, Model):
            from edgellm import load

            model = stack.enter_context(load(model, cache=CacheParams(disk=0)))
        found = stack.enter_context(closing(answers(_lines(rows), model, defaults)))
        for answer in _in_order(found) if ordered else found:
            yield dict(answer.about)


def _lines(rows: Iterable[Row]) -> Iterator[Line]:
    """Portion by portion, so that rows whose prompts begin alike follow one another."""
    numbers, waiting = count(1), iter(rows)
    while portion := [Line(at, _written(at, row)) for row, at in zip(islice(waiting, AHEAD), numbers, strict=False)]:
        yield from sorted(portion, key=_key)


def _written(number: int, row: Row) -> bytes:
    about = {"prompt": row} if isinstance(row, str) else row
    if not isinstance(about, Mapping):
        raise arguments.refuse(f"rows[{number - 1}]", row, "a prompt, or a dict")
    try:
        return json.dumps(dict(about)).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidParameter(f"rows[{number - 1}]: cannot be written as JSON: {error}") from None


def _key(line: Line) -> bytes:
    try:
        return beginning(parsed(line.text))
    except Flaw:
        return b""


def _in_order(found: Iterator[Answer]) -> Iterator[Answer]:
    held: dict[int, Answer] = {}
    wanted = 1
    for answer in found:
        held[answer.number] = answer
        while wanted in held:
            yield held.pop(wanted)
            wanted += 1
