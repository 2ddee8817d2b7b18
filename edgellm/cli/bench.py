"""`edgellm bench`: prefill, decode, first token and memory of a model here, beside other engines."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.completion import complete_model
from edgellm.cli.locate import fetched
from edgellm.cli.output import note, print_json, print_table, values_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellm.bench.measure import Bench

BUSY = 0.5  # load per core before the start, above which the figures are noisy
RESTLESS = 0.05  # CPU seconds per second of a contestant that waits, above which it disturbs the others


@click.command("bench")
@click.argument("model", shell_complete=complete_model)
@click.option("--peers", is_flag=True, help="Measure the other engines that are installed here, too.")
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds to measure; default 5, with --quick 1.")
@click.option("--quick", is_flag=True, help="Small sizes: to see that it runs, not how fast.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with everything that was measured.")
def bench(model: str, *, peers: bool, rounds: int | None, quick: bool, as_json: bool) -> None:
    """Measure prefill, decode, time to the first token and memory of MODEL, on the CPU.

    edgellm is compared with a bare loop on llama.cpp's C API in interleaved rounds. Speeds drift with the machine: the
    ratios are what counts. Ctrl-C ends it with the rounds that are complete.
    """
    from edgellm import machine
    from edgellm.bench import measure
    from edgellm.bench.contestants import BARE_LOOP, EDGELLM
    from edgellm.bench.peers import installed

    path = str(fetched(model))
    others, absent = installed() if peers else ([], {})
    count = rounds or (1 if quick else 5)
    load = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else None
    if load is not None and load > BUSY:
        note(f"this machine is busy (load {load:.1f} per core): expect wide ranges")
    running = measure.Bench(
        path, [EDGELLM, BARE_LOOP, *others], measure.QUICK if quick else measure.FULL, machine.usable_cores()
    )
    stopped = False
    try:
        for number in running.rounds(count):
            note(f"round {number} of {count}" if number else f"{', '.join(running.names)}: warming up")
    except KeyboardInterrupt:
        stopped = True
        if not running.samples:
            raise
        note("stopped: the complete rounds follow")
    finally:
        running.close()
    report = _report(running, path, {**absent, **running.absent}, load)
    if as_json:
        print_json(report)
    else:
        _show(report)
    if stopped:
        raise KeyboardInterrupt


def _report(running: Bench, path: str, absent: dict[str, str], load: float | None) -> dict[str, Any]:
    """Everything that was measured, as plain values."""
    import platform
    import statistics
    from dataclasses import asdict

    import edgellm
    from edgellm import machine
    from edgellm.bench.bandwidth import weight_bytes

    info = edgellm.inspect(path)
    metrics = running.metrics()
    bandwidth = statistics.median(running.bandwidths)
    weights = weight_bytes(path)
    decode = metrics[2]
    share = {name: weights * speed / bandwidth for name in running.names if (speed := decode.median(name))}
    return {
        "model": {"path": path, **values_of(info, "name quantization file_bytes fingerprint")},
        "machine": {**machine.describe(), "load_per_core_before": load},
        "python": platform.python_version(),
        "sizes": asdict(running.sizes),
        "rounds": len(running.bandwidths),
        "contestants": running.settings,
        "absent": absent,
        "metrics": [metric.to_dict() for metric in metrics],
        "bandwidth": {
            "how": "numpy.any over an array of zero bytes, one thread per core used; best of 4 passes, once a round",
            "bytes_per_second": running.bandwidths,
            "median": bandwidth,
            "weight_bytes_per_token": weights,
            "decode_share": share,
        },
        "same_answers": running.same_answers(),
        "idle_cpu_share": running.idle_shares(),
        "samples": running.samples,
    }


def _show(report: dict[str, Any]) -> None:
    """The report as a table of at most 80 columns, and what a reader must know beside it."""
    rows = []
    for metric in report["metrics"]:
        title = f"{metric['title']}, {metric['unit']}"
        for name, of in metric["of"].items():
            rows.append([title if name == "edgellm" else "", name, _figure(of["median"]), *_ratio(of.get("ratio"))])
    model, rounds = report["model"], report["rounds"]
    click.echo(
        f"{model['name']}, {model['quantization']}: {f'medians of {rounds} rounds' if rounds > 1 else 'one round'}"
    )
    click.echo()
    print_table(["", "", "median", "edgellm", "range"], rows, right=[2, 3, 4])
    click.echo()
    for line in _remarks(report):
        click.echo(click.wrap_text(line, 80, subsequent_indent="  "))


def _remarks(report: dict[str, Any]) -> Iterator[str]:
    """What a reader must know beside the table."""
    yield "edgellm: how many times better it was within a round, median and range; above 1 it was better."
    bandwidth = report["bandwidth"]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in bandwidth["decode_share"].items())
    yield (
        f"Decoding at depth 0 reads {bandwidth['weight_bytes_per_token'] / 1e6:.0f} MB of weights a token; shares of "
        f"the measured {bandwidth['median'] / 1e9:.1f} GB/s: {shares}."
    )
    for name, settings in report["contestants"].items():
        if name not in report["absent"]:
            yield f"{name}: " + ", ".join(v if k == "what" else f"{k} {v}" for k, v in settings.items())
    for name, reason in report["absent"].items():
        yield f"{name}: {reason}"
    for name, same in report["same_answers"].items():
        if not same:
            yield f"{name} gave other tokens than edgellm."
    for name, share in report["idle_cpu_share"].items():
        if share > RESTLESS:
            yield f"{name} used {share:.0%} of a core while the others were measured."


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _ratio(ratio: dict[str, Any] | None) -> list[str]:
    if ratio is None:
        return ["", ""]
    if ratio["median"] is None:
        return ["-", ""]
    median, low, high = (f"{v:.2f}" if v < 10 else f"{v:.1f}" for v in (ratio["median"], ratio["low"], ratio["high"]))
    return [f"{median}x", f"{low}-{high}" if len(ratio["values"]) > 1 else ""]
