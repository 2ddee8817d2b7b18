"""`edgellm eval`: how well models predict a text, and how far their predictions are from those of another model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.params import BACKENDS, CacheParams, LoadParams

if TYPE_CHECKING:
    from edgellm import Model
    from edgellm.converters.evaluate import Evaluation

SPEED_PROMPT, SPEED_TOKENS = 16, 48  # tokens that the decode speed is measured with


@dataclass(frozen=True)
class _Measured:
    """One model: its name as given, what was found, and, when several are compared, its decode speed in tokens/s."""

    name: str
    file_bytes: int
    found: Evaluation
    speed: float | None


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
@click.option("--threads", type=int, help="Default: the physical cores this process may use.")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", help="Engine; default auto.")
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
    from edgellm.cli.output import note
    from edgellm.converters.plot import check

    if plot is not None:
        check(plot)
    words = _read(text)
    params = LoadParams(ctx=ctx, cache=CacheParams(memory=0, disk=0), **options)
    timed = len(models) > 1 or plot is not None
    measured: list[_Measured] = []
    stopped = False
    for name in models:
        try:
            measured.append(_measure(name, against, params, words, chunks, timed))
        except _Stopped as stop:
            note("stopped: what is complete follows")
            measured += [stop.measured] if stop.measured else []
            stopped = True
            break
    if measured:
        _report(measured, as_json=as_json)
        if plot is not None:
            _plot(plot, measured, text)
    if stopped:
        raise KeyboardInterrupt


class _Stopped(Exception):
    """Ctrl-C, with what was found until then."""

    def __init__(self, measured: _Measured | None) -> None:
        self.measured = measured


def _read(text: Path) -> str:
    from edgellm.errors import InvalidParameter

    try:
        return text.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidParameter(f"--text {text}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InvalidParameter(f"--text {text}: not UTF-8: {error}") from None


def _measure(
    name: str, against: str | None, params: LoadParams, text: str, chunks: int | None, timed: bool
) -> _Measured:
    """Load, evaluate, close. Raises _Stopped on Ctrl-C."""
    from edgellm.cli.talk import open_model
    from edgellm.converters.evaluate import N_CTX, evaluations

    found: Evaluation | None = None
    speed: float | None = None
    size = 0
    try:
        with ExitStack() as stack:
            model = stack.enter_context(open_model(name, params))
            base = stack.enter_context(open_model(against, params)) if against is not None else None
            size = model.info.file_bytes
            n_ctx = params.ctx or N_CTX
            steps = stack.enter_context(closing(evaluations(model, text, base=base, n_ctx=n_ctx, chunks=chunks)))
            speed = _speed(model, text) if timed else None
            show = stack.enter_context(_progress(name))
            for found in steps:
                show(found)
    except KeyboardInterrupt:
        raise _Stopped(_Measured(name, size, found, speed) if found else None) from None
    assert found is not None  # there is at least one context
    return _Measured(name, size, found, speed)


def _speed(model: Model, text: str) -> float:
    """Tokens per second of decoding alone, after one run to warm up."""
    prompt = model.encode(text[: 16 * SPEED_PROMPT], special=False)[:SPEED_PROMPT]
    count = min(SPEED_TOKENS, model.n_ctx - len(prompt) - 1)
    for tokens in (4, count):
        done = model.generate(prompt, max_tokens=max(2, tokens), temperature=0, ignore_eos=True, cache=False)
    return done.timings.decode_tokens_per_second


@contextmanager
def _progress(name: str) -> Iterator[Callable[[Evaluation], None]]:
    """A bar on a terminal's stderr, else a line for every tenth of the text."""
    from edgellm.cli.output import bars, note

    label = Path(name).name
    if not sys.stderr.isatty():

        def plain(so_far: Evaluation) -> None:
            if so_far.done * 10 // so_far.chunks != (so_far.done - 1) * 10 // so_far.chunks:
                note(f"{label}: {so_far.done} of {so_far.chunks} contexts, {_brief(so_far)}")

        yield plain
        return
    from rich.progress import MofNCompleteColumn

    with bars(MofNCompleteColumn(), transient=True) as shown:
        shown.draw(label, 0, None)
        yield lambda so_far: shown.draw(label, so_far.done, so_far.chunks, f"{label[:40]} {_brief(so_far)}")


def _brief(so_far: Evaluation) -> str:
    kl = "" if so_far.mean_kl is None else f", mean KL {so_far.mean_kl:.5f}"
    return f"perplexity {so_far.perplexity:.4f}{kl}"


def _report(measured: list[_Measured], *, as_json: bool) -> None:
    from edgellm.cli.output import print_facts, print_json

    if as_json and len(measured) == 1:
        print_json(measured[0].found.to_dict())
    elif as_json:
        click.echo(json.dumps([_to_dict(each) for each in measured], indent=2, ensure_ascii=False))
    elif len(measured) == 1:
        print_facts(_facts(measured[0]))
    else:
        _table(measured)


def _to_dict(each: _Measured) -> dict[str, Any]:
    about = {"model": each.name, "file_bytes": each.file_bytes, "decode_tokens_per_second": each.speed}
    return {**about, **each.found.to_dict()}


def _facts(each: _Measured) -> list[tuple[str, str]]:
    found = each.found
    contexts = f"{found.done} of {found.chunks}" if found.done < found.chunks else f"{found.chunks}"
    facts = [("perplexity", f"{found.perplexity:.4f} ± {found.perplexity_error:.4f}")]
    if found.mean_kl is not None:
        facts += [
            ("mean KL", _kl(found.mean_kl, found.mean_kl_error)),
            ("median KL", f"{found.median_kl:.4g}"),
            ("99.9 % KL", f"{found.p999_kl:.4g}"),
            ("top-1 agreement", _percent(found.top1_agreement, found.top1_agreement_error)),
            ("RMS delta p", _percent(found.rms_delta_p, found.rms_delta_p_error)),
        ]
    facts.append(("scored", f"{found.tokens} tokens in {contexts} contexts"))
    if each.speed is not None:
        facts.append(("decode", f"{each.speed:.1f} tokens/s"))
    return facts


def _table(measured: list[_Measured]) -> None:
    from edgellm.cli.output import print_table, size

    compared = measured[0].found.mean_kl is not None
    header = ["model", "size", "tokens/s", "perplexity"]
    header += ["mean KL", "99.9 % KL", "top-1", "RMS Δp"] if compared else []
    rows = []
    for each in measured:
        found = each.found
        row = [Path(each.name).name, size(each.file_bytes), f"{each.speed:.1f}"]
        row.append(f"{found.perplexity:.3f} ± {found.perplexity_error:.3f}")
        if compared:
            row += [_kl(found.mean_kl, found.mean_kl_error), f"{found.p999_kl:.4g}"]
            row += [_percent(found.top1_agreement, None), _percent(found.rms_delta_p, None)]
        if found.done < found.chunks:
            row[0] += f" ({found.done} of {found.chunks} contexts)"
        rows.append(row)
    print_table(header, rows, right=range(1, len(header)))


def _kl(value: float | None, error: float | None) -> str:
    return f"{value:.4g} ± {error:.2g}"


def _percent(value: float | None, error: float | None) -> str:
    assert value is not None  # with a base, every figure is there
    return f"{100 * value:.2f} %" if error is None else f"{100 * value:.2f} ± {100 * error:.2f} %"


def _plot(path: Path, measured: list[_Measured], text: Path) -> None:
    from edgellm.converters.plot import Point, write

    points = []
    for each in measured:
        found = each.found
        quality, error = found.perplexity, found.perplexity_error
        if found.mean_kl is not None and found.mean_kl_error is not None:
            quality, error = found.mean_kl, found.mean_kl_error
        points.append(Point(Path(each.name).name, each.file_bytes, quality, error, each.speed or 0.0))
    compared = measured[0].found.mean_kl is not None
    write(path, points, "mean KL divergence" if compared else "perplexity", f"{len(points)} models on {text.name}")
