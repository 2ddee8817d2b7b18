"""`edgellm batch`: the lines of a file, answered into another one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Container, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from edgellm.cli import streams
from edgellm.cli.completion import complete_model
from edgellm.cli.locate import fetched
from edgellm.cli.options import GENERATE, LOAD, Sectioned, chosen, flags, in_section, with_adapter
from edgellm.cli.output import bars, note, print_facts
from edgellm.cli.status import Status
from edgellm.cli.talk import open_model
from edgellm.config import config_path, read_config
from edgellm.errors import InvalidParameter
from edgellm.params import ANSWER, MODEL, CacheParams, GenerateParams, LoadParams

if TYPE_CHECKING:
    from edgellm import Model, ModelInfo
    from edgellm.jobs.job import Tally
    from edgellm.jobs.line import Answer
    from edgellm.jobs.output import Loose, Output
    from edgellm.jobs.plain import Defaults
    from edgellm.jobs.source import Source

JOB = "The job"
STDOUT = "-"
BAR = "lines"


@click.command(cls=Sectioned)
@click.argument("input", metavar="INPUT")
@in_section(JOB, "-o", "--output", metavar="FILE", help="Where the answers go; - is standard output.")
@in_section(JOB, "-m", "--model", metavar="MODEL", shell_complete=complete_model, help="What answers.")
@in_section(JOB, "--ordered", is_flag=True, help="Put the answers into the order of the lines when all are there.")
@in_section(JOB, "--limit", type=click.IntRange(min=1), metavar="N", help="Answer the first N lines alone.")
@in_section(JOB, "--restart", is_flag=True, help="Delete the answers that are there, and begin anew.")
@in_section(JOB, "--dry-run", is_flag=True, help="Answer nothing; tell what is wrong, and estimate what it takes.")
@in_section(JOB, "--ray", metavar="ADDRESS", help="Spread the lines over a Ray cluster; auto is the one here.")
@in_section(ANSWER, "--system", metavar="TEXT", help="System prompt of plain lines.")
@in_section(ANSWER, "--raw", is_flag=True, help="Continue the prompts of plain lines, without the chat template.")
@in_section(ANSWER, "--thinking/--no-thinking", default=None, help="Of models that think before they answer.")
@flags([*GENERATE.values(), *LOAD.values()])
@in_section(MODEL, "--no-cache", is_flag=True, help="Reuse nothing, not even what lines have in common.")
@in_section(
    MODEL, "--disk-cache", is_flag=True, help="Find prompts that are known on disk, and keep what is read there."
)
def batch(
    input: str,
    *,
    output: str | None,
    model: str | None,
    ordered: bool,
    limit: int | None,
    restart: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Answer every line of INPUT, as many at once as pay; - reads standard input.

    A line is {"prompt": …} or {"messages": […]}, with options of its answer beside it, or a request in OpenAI's batch
    format. What prompts begin with alike is read once. Whenever it ends, the same command goes on where it was.
    Options of the answers hold for plain lines that do not say otherwise.
    """
    model = model or read_config().model
    if not model:
        raise click.UsageError(
            f'which --model? `edgellm list` shows them; model = "NAME" in {config_path()} makes one the default'
        )
    if output == "" or (output is None and not dry_run):
        raise click.UsageError("where do the answers go? -o FILE, or -o - for standard output")
    ray: str | None = options.pop("ray")
    if dry_run and ray is not None:
        raise click.UsageError("--dry-run measures this machine and no cluster; leave --ray out")
    from edgellm.jobs.plain import Defaults
    from edgellm.jobs.source import opened

    params = GenerateParams(cache=not options.pop("no_cache"), **chosen(GenerateParams, options))
    cache = CacheParams() if options.pop("disk_cache") else CacheParams(disk=0)
    load = LoadParams(cache=cache, **chosen(LoadParams, options))
    if load.adapters and ray is not None:
        raise click.UsageError("--ray brings a model to other machines, and no adapters: merge them (edgellm convert)")
    defaults = Defaults(with_adapter(params, load), options["system"], options["raw"], options["thinking"])
    wanted = _Wanted(input, output or STDOUT, model, limit, ordered, restart, ray)
    with closing(opened(input, _piped)) as file:
        if dry_run:
            source = _read(file, wanted)
            with open_model(model, load) as loaded:
                _estimate(source, loaded, defaults)
        elif wanted.output != STDOUT:
            _to_file(file, wanted, Path(os.path.expanduser(wanted.output)), load, defaults)
        else:
            _to_stdout(file, wanted, load, defaults)


@dataclass(frozen=True)
class _Wanted:
    """The words of the command line."""

    input: str
    output: str
    model: str
    limit: int | None
    ordered: bool
    restart: bool
    ray: str | None


Answers = Callable[["Source"], "Generator[Answer]"]


@contextmanager
def _answering(wanted: _Wanted, load: LoadParams, defaults: Defaults) -> Iterator[tuple[ModelInfo, Answers]]:
    """The model, and what answers the lines of a source with it: this machine, or a cluster."""
    if wanted.ray is None:
        from edgellm.jobs.answers import answers

        with open_model(wanted.model, load) as model:
            yield model.info, lambda source: answers(source.lines(), model, defaults)
        return
    import edgellm
    from edgellm.jobs.cluster import spread
    from edgellm.jobs.shipment import shipment_of

    path, address = fetched(wanted.model, offline=load.offline), wanted.ray
    shipment, info = shipment_of(wanted.model, path), edgellm.inspect(path)
    if load.backend != "auto":
        info = replace(info, engine=load.backend)
    yield info, lambda source: spread(source, shipment, load, defaults, address)


def _to_file(file: BinaryIO, wanted: _Wanted, path: Path, load: LoadParams, defaults: Defaults) -> None:
    from edgellm.jobs.job import job_of
    from edgellm.jobs.output import Output

    if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
        raise InvalidParameter(f"{path} is the input; choose another -o")
    with closing(Output(path, restart=wanted.restart)) as output:
        source = _read(file, wanted, output.done)
        with _answering(wanted, load, defaults) as (info, answers):
            output.belong(job_of(source, info, load, defaults))
            _run(source, output, answers)
        if wanted.ordered:
            output.order()


def _to_stdout(file: BinaryIO, wanted: _Wanted, load: LoadParams, defaults: Defaults) -> None:
    from edgellm.jobs.output import Loose

    if wanted.restart:
        raise click.UsageError("--restart needs a file that is begun anew; standard output always is")
    if wanted.ordered:
        with TemporaryDirectory(prefix="edgellm-batch-") as folder:
            path = Path(folder, "answers")
            _to_file(file, wanted, path, load, defaults)
            with path.open("rb") as answers:
                for line in answers:
                    _write(line)
        return
    source = _read(file, wanted)
    with _answering(wanted, load, defaults) as (_, answers):
        _run(source, Loose(_write), answers)


def _run(source: Source, output: Output | Loose, answers: Answers) -> None:
    """Answer what is left, with a bar, and say what it took."""
    from edgellm.jobs.job import Tally, run
    from edgellm.jobs.output import Loose

    tally = Tally(source.total, source.total - source.todo)
    if tally.before:
        rest = "; going on with the rest" if source.todo else ""
        note(f"{tally.before:,} of {tally.total:,} lines are answered already{rest}")
    try:
        with (
            bars("MofNCompleteColumn", transient=True) as shown,
            closing(run(source, output, answers(source))) as steps,
        ):
            shown.draw(BAR, tally.before, tally.total, "reading")
            for tally in steps:
                shown.draw(BAR, tally.done, tally.total, _speeds(tally))
    except (KeyboardInterrupt, SystemExit):
        kept = "" if isinstance(output, Loose) else "; the same command goes on with the rest"
        note(f"stopped: {tally.done:,} of {tally.total:,} lines are answered{kept}")
        raise
    note(_summary(tally))


def _speeds(tally: Tally) -> str:
    """Tokens per second, so far."""
    seconds = max(tally.seconds, 1e-3)
    rates = (tally.known, tally.prompt - tally.known, tally.answered)
    known, computed, answered = (round(count / seconds) for count in rates)
    errors = f", {_errors(tally)}" if tally.errors else ""
    if tally.errors == tally.lines:
        return f"reading{errors}"
    return f"tokens/s: {known:,} known, {computed:,} read, {answered:,} answered{errors}"


def _errors(tally: Tally) -> str:
    return "no errors" if not tally.errors else "1 error" if tally.errors == 1 else f"{tally.errors:,} errors"


def _summary(tally: Tally) -> str:
    computed, lines = tally.prompt - tally.known, "line" if tally.lines == 1 else "lines"
    return (
        f"{tally.lines:,} {lines}, {_errors(tally)}; {tally.prompt:,} tokens of prompts "
        f"({tally.known:,} known, {computed:,} read), {tally.answered:,} answered; {tally.seconds:.1f} s"
    )


def _read(file: BinaryIO, wanted: _Wanted, done: Container[int] = ()) -> Source:
    """The lines of the input."""
    from edgellm.jobs.answers import requests_module
    from edgellm.jobs.source import Source
    from edgellm.pace import Pace

    pace, name = Pace(), "standard input" if wanted.input == STDOUT else wanted.input
    with bars(transient=True) as shown:

        def draw(read: int, size: int) -> None:
            if pace.due():
                shown.draw(name, read, size, "reading the lines")

        source = Source(file, name, limit=wanted.limit, done=done, progress=draw)
    if source.requests:
        requests_module()  # before a model is loaded in vain
    return source


def _estimate(source: Source, model: Model, defaults: Defaults) -> None:
    from edgellm.jobs.estimate import estimate, speed
    from edgellm.pace import Pace

    pace = Pace()
    with bars("MofNCompleteColumn", transient=True) as shown:

        def draw(done: int, total: int) -> None:
            if pace.due():
                shown.draw(BAR, done, total, "counting tokens")

        found = estimate(source, model, defaults, draw)
    errors = sum(found.errors.values())
    wrong = [f"{code}: {count:,}, first on line {found.first[code]}" for code, count in found.errors.most_common()]
    facts = [
        ("lines", f"{found.lines:,}"),
        ("errors", "\n".join([f"{errors:,}", *wrong])),
        ("prompts", f"{found.prompt:,} tokens, {found.unlike:,} of them to be read: the others are shared beginnings"),
        ("answers", f"{found.most:,} tokens at most"),
    ]
    if found.lines > errors:
        with Status("measuring"):
            measured = speed(model, min(model.max_sequences, found.lines - errors))
        answered = f", {measured.answered:,.0f} answered" if found.most else ""
        facts += [
            ("measured", f"{measured.read:,.0f} tokens/s read{answered}"),
            ("time", f"{_time(measured.seconds(found))} at most: an estimate, by a measurement of some seconds"),
        ]
    print_facts(facts)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _piped() -> BinaryIO:
    if sys.stdin is None:
        raise click.UsageError("standard input is closed")
    if sys.stdin.isatty():
        note("reading lines from standard input; Ctrl-D ends them")
    return sys.stdin.buffer


def _write(text: bytes) -> None:
    """To standard output, as UTF-8 whatever the terminal's encoding is."""
    try:
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise streams.OutputLost(error.strerror or str(error)) from error
