"""`edgellm eval`: how well models predict a text, and how far their predictions are from those of another model."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.options import LOAD, flags
from edgellm.cli.output import bars, note, print_facts, print_json, print_table, size
from edgellm.params import CacheParams, GenerateParams, LoadParams

if TYPE_CHECKING:
    from edgellm import Model
    from edgellm.converters.evaluate import Evaluation

SPEED_PROMPT, SPEED_TOKENS = 16, 48  # tokens that the decode speed is measured with


@dataclass(frozen=True)
class _Base:
    """What the models are compared with; speed: decoding, in tokens/s, where several models are compared."""

    name: str
    file_bytes: int
    speed: float | None


@dataclass(frozen=True)
class _Measured:
    """One model: its name as given, what was found, its speed as of a _Base, and what it was compared with."""

    name: str
    file_bytes: int
    found: Evaluation
    speed: float | None
    base: _Base | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        figures: dict[str, Any] = {"model": self.name, "file_bytes": self.file_bytes}
        if self.speed is not None:
            figures["decode_tokens_per_second"] = self.speed
        figures |= {**self.found.to_dict(), "contexts": self.found.done}
        if self.base is not None:
            figures |= {"grade": self.found.grade, "base_file_bytes": self.base.file_bytes}
        return figures


@click.command("eval")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "--text", required=True, metavar="FILE", type=click.Path(path_type=Path), help="What to predict: a UTF-8 text."
)
@click.option("--against", metavar="BASE", help="Also measure the distance to this model, usually the unquantized one.")
@click.option(
    "--plot", metavar="PNG|HTML", type=click.Path(path_type=Path), help="Write a report: size, quality, speed."
)
@click.option(
    "--ctx",
    type=click.IntRange(min=16),
    default=512,
    show_default=True,
    help="Tokens of a context; its second half is scored.",
)
@click.option("--chunks", type=click.IntRange(min=1), help="At most so many contexts; default: the whole text.")
@flags([LOAD["threads"], LOAD["backend"]])
@click.option("--json", "as_json", is_flag=True, help="One JSON object; a list of them for several models.")
def evaluate(
    models: tuple[str, ...],
    *,
    text: Path,
    against: str | None,
    plot: Path | None,
    ctx: int,
    chunks: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Perplexity of each MODEL on a text; with --against also KL divergence, top-1 agreement and RMS delta p.

    The figures follow the rules of llama.cpp's perplexity tool. Ctrl-C ends it with the contexts that are complete.
    """
    from edgellm import arguments
    from edgellm.converters.evidence import shortcomings
    from edgellm.converters.plot import check

    if plot is not None:
        check(plot)
    raw = arguments.utf8_file("--text", text)
    words = raw.decode().replace("\r\n", "\n").replace("\r", "\n")
    params = LoadParams(ctx=ctx, cache=CacheParams(memory=0, disk=0), **options)
    timed = len(models) > 1 or plot is not None
    measured: list[_Measured] = []
    stopped = False
    try:
        for name in models:
            _measure(measured, name, against, params, words, chunks, timed)
    except KeyboardInterrupt:
        note("stopped: what is complete follows")
        stopped = True
    if measured:
        warnings = shortcomings({each.name: each.found for each in measured}, ctx)
        about = _about(text.name, raw, ctx, against)
        _report(measured, {**about, "warnings": warnings}, as_json=as_json)
        for warning in warnings:
            note(f"warning: {warning}")
        if plot is not None:
            _plot(plot, measured, about, warnings)
    if stopped:
        raise KeyboardInterrupt


def _measure(
    measured: list[_Measured],
    name: str,
    against: str | None,
    params: LoadParams,
    text: str,
    chunks: int | None,
    timed: bool,
) -> None:
    """Load, evaluate, close. What was found goes to `measured`, the contexts that are complete on Ctrl-C too."""
    from edgellm.cli.talk import open_model
    from edgellm.converters.evaluate import evaluations
    from edgellm.converters.yardstick import N_CTX

    found: Evaluation | None = None
    compared: _Base | None = None
    file_bytes, speed = 0, None
    try:
        with ExitStack() as stack:
            model = stack.enter_context(open_model(name, params))
            base = stack.enter_context(open_model(against, params)) if against is not None else None
            file_bytes = model.info.file_bytes
            n_ctx = params.ctx or N_CTX
            steps = stack.enter_context(closing(evaluations(model, text, base=base, n_ctx=n_ctx, chunks=chunks)))
            speed = _speed(model, text) if timed else None
            if base is not None:
                compared = _Base(str(against), base.info.file_bytes, _speed(base, text) if timed else None)
            show = stack.enter_context(_progress(name))
            for found in steps:
                show(found)
    finally:
        if found is not None:
            measured.append(_Measured(name, file_bytes, found, speed, compared))


def _speed(model: Model, text: str) -> float:
    """Tokens per second of decoding alone, after one run to warm up."""
    prompt = model.encode(text[: 16 * SPEED_PROMPT], special=False)[:SPEED_PROMPT]
    count = min(SPEED_TOKENS, model.n_ctx - len(prompt) - 1)
    params = GenerateParams(temperature=0, ignore_eos=True, cache=False, speculate=False)
    for tokens in (4, count):
        done = model.generate(prompt, params, max_tokens=max(2, tokens))
    return done.timings.decode_tokens_per_second


@contextmanager
def _progress(name: str) -> Iterator[Callable[[Evaluation], None]]:
    """A bar on a terminal's stderr, else a line for every tenth of the text."""
    label = Path(name).name
    with bars("MofNCompleteColumn", transient=True) as shown:

        def show(so_far: Evaluation) -> None:
            done, chunks = so_far.done, so_far.chunks
            kl = "" if so_far.mean_kl is None else f", mean KL {so_far.mean_kl:.5f}"
            figures = f"perplexity {so_far.perplexity:.4f}{kl}"
            drawn = shown.draw(label, done, chunks, f"{label[:40]} {figures}")
            if not drawn and done * 10 // chunks != (done - 1) * 10 // chunks:
                note(f"{label}: {done} of {chunks} contexts, {figures}")

        shown.draw(label, 0, None)
        yield show


def _report(measured: list[_Measured], about: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        plain = [{**each.to_dict(), **about} for each in measured]
        print_json(plain if len(plain) > 1 else plain[0])
    elif len(measured) == 1:
        print_facts([*_facts(measured[0]), *_told(about)])
    else:
        _table(measured)
        click.echo("")
        print_facts([("scored", _scored(measured[0].found)), *_told(about)])


def _about(name: str, raw: bytes, ctx: int, against: str | None) -> dict[str, Any]:
    """What the figures were measured with."""
    from datetime import datetime, timezone
    from hashlib import sha256
    from importlib import metadata

    versions = {}
    for package in ("edgellm", "llama-cpp-python", "onnxruntime"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "against": against,
        "ctx": ctx,
        "text": {"name": name, "bytes": len(raw), "sha256": sha256(raw).hexdigest()},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions,
    }


def _told(about: dict[str, Any]) -> list[tuple[str, str]]:
    """The same for people."""
    text = about["text"]
    return [
        ("text", f"{text['name']}, {text['bytes']:,} bytes, SHA-256 {text['sha256'][:16]}…"),
        ("measured", f"{about['date'].replace('T', ' ')[:16]} UTC"),
        ("versions", ", ".join(f"{name} {version}" for name, version in about["versions"].items())),
    ]


def _facts(each: _Measured) -> list[tuple[str, str]]:
    found = each.found
    facts = [("perplexity", _pair(found.perplexity, found.perplexity_error))]
    if found.mean_kl is not None:
        facts += [
            ("of the base", _pair(found.base_perplexity, found.base_perplexity_error)),
            ("mean KL", f"{_pair(found.mean_kl, found.mean_kl_error)}, {found.grade}"),
            ("median KL", f"{found.median_kl:.4g}"),
            ("99.9 % KL", f"{found.p999_kl:.4g}"),
            ("top-1 agreement", f"{_percent(found.top1_agreement, found.top1_agreement_error)} %"),
            ("RMS delta p", f"{_percent(found.rms_delta_p, found.rms_delta_p_error)} %"),
        ]
    facts.append(("scored", _scored(found)))
    if each.speed is not None:
        facts.append(("decode", f"{each.speed:.1f} tokens/s"))
    return facts


def _scored(found: Evaluation) -> str:
    contexts = f"{found.done} of {found.chunks}" if found.done < found.chunks else f"{found.chunks}"
    return f"{found.tokens} tokens in {contexts} contexts"


def _rows(measured: list[_Measured]) -> list[list[str]]:
    """Every column of every model, a header first and the base last."""
    compared = [each for each in measured if each.base is not None]
    header = ["model", "size", "tokens/s", "perplexity"]
    header += ["mean KL", "grade", "median KL", "99.9 % KL", "top-1 %", "RMS Δp %"] if compared else []
    rows = [header]
    for each in measured:
        found = each.found
        row = [Path(each.name).name, size(each.file_bytes), f"{each.speed:.1f}" if each.speed is not None else ""]
        row.append(_pair(found.perplexity, found.perplexity_error))
        if compared:
            row += [_pair(found.mean_kl, found.mean_kl_error), str(found.grade)]
            row += [f"{found.median_kl:.3g}", f"{found.p999_kl:.3g}"]
            row.append(_percent(found.top1_agreement, found.top1_agreement_error))
            row.append(_percent(found.rms_delta_p, found.rms_delta_p_error))
        if found.done < found.chunks:
            row[0] += f" ({found.done} of {found.chunks} contexts)"
        rows.append(row)
    if compared:
        found, base = compared[0].found, compared[0].base
        assert base is not None  # compared
        row = [f"{Path(base.name).name} (base)", size(base.file_bytes), f"{base.speed:.1f}" if base.speed else ""]
        rows.append([*row, _pair(found.base_perplexity, found.base_perplexity_error), "0", *[""] * 5])
    return rows


def _table(measured: list[_Measured]) -> None:
    """In a terminal that is too narrow, as several tables, each with the models' names."""
    rows = _rows(measured)
    widths = [max(len(row[i]) for row in rows) + 2 for i in range(len(rows[0]))]
    screen = shutil.get_terminal_size().columns if sys.stdout.isatty() else sum(widths)
    parts: list[list[int]] = [[0]]
    for i in range(1, len(widths)):
        if len(parts[-1]) > 1 and sum(widths[j] for j in [*parts[-1], i]) > screen + 2:
            parts.append([0])
        parts[-1].append(i)
    for number, columns in enumerate(parts):
        if number:
            click.echo("")
        header, *lines = [[row[i] for i in columns] for row in rows]
        print_table(header, lines, right=range(1, len(columns)), words=0)


def _pair(value: float | None, error: float | None) -> str:
    """A figure as precise as its error allows: 0.0552 ± 0.0013."""
    assert value is not None  # with a base, every figure is there
    if not error or not math.isfinite(error):
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _percent(value: float | None, error: float | None) -> str:
    assert value is not None  # with a base, every figure is there
    return _pair(100 * value, None if error is None else 100 * error)


def _plot(path: Path, measured: list[_Measured], about: dict[str, Any], warnings: list[str]) -> None:
    from edgellm.converters.plot import Point, Text, write

    points = []
    for each in measured:
        found = each.found
        quality, error = found.perplexity, found.perplexity_error
        if found.mean_kl is not None and found.mean_kl_error is not None:
            quality, error = found.mean_kl, found.mean_kl_error
        points.append(Point(Path(each.name).name, each.file_bytes, quality, error, each.speed or 0.0))
    compared = measured[0].found.mean_kl is not None
    notes = [f"{label}: {value}" for label, value in [("scored", _scored(measured[0].found)), *_told(about)]]
    title = f"{len(points)} models on {about['text']['name']}"
    text = Text(title, _rows(measured), [*notes, *(f"Warning: {each}" for each in warnings)])
    write(path, points, "mean KL divergence" if compared else "perplexity", text)
