"""A report of several models: file size against quality, and speed against quality.

    write("report.html", points, "mean KL divergence", Text("three models", rows))

HTML holds the picture as inline SVG and the figures as a table, and needs nothing else. PNG needs matplotlib.
"""

from __future__ import annotations

import html
import importlib
import importlib.util
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import InvalidParameter, Unsupported
from edgellm.formats.writing import whole_file

WIDTH, HEIGHT = 460, 340  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 34, 46  # margins around the plot of a panel
LOG_FROM = 10.0  # largest / smallest value from which the quality axis is logarithmic

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2em auto; padding: 0 1em; }
body { color: #1b1f24; background: #fff; }
svg { max-width: 100%; height: auto; }
svg text { font-size: 12px; fill: currentColor; }
svg .title { font-weight: 600; }
svg .axis { stroke: currentColor; }
svg .grid { stroke: currentColor; opacity: 0.15; }
svg .error { stroke: #2563a8; stroke-width: 1.5; }
svg circle { fill: #2563a8; }
table { border-collapse: collapse; }
th, td { padding: 0.2em 1em 0.2em 0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
@media (prefers-color-scheme: dark) {
  body { color: #e6e8eb; background: #16181c; }
  svg circle { fill: #6db3f2; }
  svg .error { stroke: #6db3f2; }
}"""


@dataclass(frozen=True, slots=True)
class Point:
    """One model. file_bytes: its size; quality: lower is better, with its standard error; speed: tokens per second."""

    label: str
    file_bytes: int
    quality: float
    error: float
    speed: float


@dataclass(frozen=True, slots=True)
class Text:
    """What stands beside the picture. rows: of a table whose first one is its header; notes: lines below it."""

    title: str
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


# what the panels show quality against
_PANELS: tuple[tuple[str, Callable[[Point], float]], ...] = (
    ("file size, MB", lambda point: point.file_bytes / 1e6),
    ("decode speed, tokens/s", lambda point: point.speed),
)


@dataclass(frozen=True, slots=True)
class _Axis:
    """Maps values to pixels, `low` to `start` and `high` to `end`. ticks: values and their texts."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[tuple[float, str]]
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return self.start + share * (self.end - self.start)


def check(path: str | os.PathLike[str]) -> None:
    """Whether `write` can make this file, before there are figures. Raises InvalidParameter, Unsupported."""
    path = Path(path)
    if path.suffix.lower() not in (".html", ".png"):
        raise InvalidParameter(f"{path}: a report is an .html or a .png file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InvalidParameter(f"{path}: {path.parent} is not a folder that can be written to")
    if path.suffix.lower() == ".png" and importlib.util.find_spec("matplotlib") is None:
        raise Unsupported(f"{path}: a PNG needs matplotlib, which is not installed; name an .html file or install it")


def write(path: str | os.PathLike[str], points: Sequence[Point], quality: str, text: Text) -> None:
    """Write the report; quality names the figure of the points. The file appears under its name when it is complete.

    Raises InvalidParameter (no points, another kind of file), Unsupported (PNG without matplotlib),
    CannotWrite.
    """
    check(path)
    path = Path(path)
    if not points:
        raise InvalidParameter(f"{path}: there is nothing to show")
    make = _png if path.suffix.lower() == ".png" else _page
    made = make(points, quality, text)
    with whole_file(path) as file:
        file.write(made)


def _page(points: Sequence[Point], quality: str, text: Text) -> bytes:
    heading = html.escape(text.title)
    header, *rows = [[html.escape(cell) for cell in row] for row in text.rows]
    lines = [f"<tr><th>{'</th><th>'.join(header)}</th></tr>"]
    lines += [f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in rows]
    table = "\n".join(lines)
    notes = "\n".join(f"<p>{html.escape(note)}</p>" for note in text.notes)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{heading}</title>
<style>
{_STYLE}
</style></head><body>
<h1>{heading}</h1>
{_svg(points, quality)}
<p>Further down is better, further left in the first panel, further right in the second. Bars are standard errors.</p>
<table>
{table}
</table>
{notes}
</body></html>
""".encode()


def _svg(points: Sequence[Point], quality: str) -> str:
    panels = "\n".join(_panel(points, quality, number) for number in range(len(_PANELS)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(quality)} against file size and decode speed">\n{panels}\n</svg>'
    )


def _panel(points: Sequence[Point], quality: str, number: int) -> str:
    """One scatter, the first on the left."""
    what, value = _PANELS[number]
    left, right, bottom = number * WIDTH + LEFT, (number + 1) * WIDTH - RIGHT, HEIGHT - BOTTOM
    x, y = _linear_axis([value(p) for p in points], left, right), _quality_axis(points, bottom, TOP)
    parts = [f'<text class="title" x="{left}" y="20">{html.escape(quality)} / {what}</text>']
    for tick, text in y.ticks:
        at = f"{y(tick):.1f}"
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{left - 6}" y="{at}" text-anchor="end" dominant-baseline="middle">{text}</text>')
    for tick, text in x.ticks:
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
    parts.append(f'<path class="axis" fill="none" d="M{left} {TOP}V{bottom}H{right}"/>')
    parts.append(f'<text x="{(left + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{what}</text>')
    for p in points:
        px, py, low, high = x(value(p)), y(p.quality), y(p.quality - p.error), y(p.quality + p.error)
        parts.append(f'<line class="error" x1="{px:.1f}" x2="{px:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4"/>')
        side, move = ("end", -8) if px > left + 0.6 * (right - left) else ("start", 8)
        parts.append(f'<text x="{px + move:.1f}" y="{py - 6:.1f}" text-anchor="{side}">{html.escape(p.label)}</text>')
    return "\n".join(parts)


def _is_wide(points: Sequence[Point]) -> bool:
    """Whether the axis of quality is logarithmic."""
    values = [p.quality for p in points]
    return min(values) > 0 and max(values) / min(values) >= LOG_FROM


def _quality_axis(points: Sequence[Point], start: float, end: float) -> _Axis:
    if not _is_wide(points):
        return _linear_axis([v for p in points for v in (p.quality - p.error, p.quality + p.error)], start, end)
    low, high = min(p.quality for p in points) / 1.5, max(p.quality for p in points) * 1.5
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**power for power in powers for m in (1, 2, 5)]
    return _Axis(low, high, start, end, [(tick, f"{tick:g}") for tick in ticks if low <= tick <= high], True)


def _linear_axis(values: Sequence[float], start: float, end: float) -> _Axis:
    """A tenth of space on either side, and three to eight round ticks."""
    low, high = min(values), max(values)
    space = (high - low) / 10 or abs(high) / 10 or 1.0
    low, high = low - space, high + space
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    while (high - low) / step > 8:
        step *= 2 if round(math.log10(step) % 1, 3) != 0.301 else 2.5
    ticks = [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return _Axis(low, high, start, end, [(tick, f"{tick:.6g}") for tick in ticks])


def _png(points: Sequence[Point], quality: str, text: Text) -> bytes:
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(11, 5 + 0.25 * (len(text.rows) + len(text.notes))), layout="constrained"
    )
    figure.suptitle(text.title)
    for axes, (what, value) in zip(figure.subplots(1, 2, sharey=True), _PANELS, strict=True):
        for p in points:
            axes.errorbar(value(p), p.quality, yerr=p.error, fmt="o", color="#2563a8")
            axes.annotate(p.label, (value(p), p.quality), xytext=(5, 5), textcoords="offset points")
        axes.set(xlabel=what, ylabel=quality, yscale="log" if _is_wide(points) else "linear")
        axes.grid(alpha=0.2)
    widths = [max(map(len, column)) for column in zip(*text.rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in text.rows]
    figure.supxlabel("\n".join([*lines, "", *text.notes]), fontsize=7, family="monospace", x=0.01, ha="left")
    made = io.BytesIO()
    figure.savefig(made, format="png", dpi=150)
    return made.getvalue()
