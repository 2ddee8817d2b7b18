"""`edgellm eval` on tiny random models, and its report."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import re
import sys
import threading
from collections.abc import Generator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from tiny_models import tiny

from edgellm.cli import main
from edgellm.cli.eval import _Base, _Measured, _pair, _table
from edgellm.cli.eval import evaluate as command
from edgellm.converters import evaluate as evaluation
from edgellm.converters import evidence, plot
from edgellm.converters.evidence import shortcomings
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.formats.ggml_types import GGMLType

COLUMNS = [
    "model",
    "size",
    "tokens/s",
    "perplexity",
    "mean KL",
    "grade",
    "median KL",
    "99.9 % KL",
    "top-1 %",
    "RMS Δp %",
]
KEYS = {"perplexity", "perplexity_error", "tokens"}
KL_KEYS = {"mean_kl", "mean_kl_error", "median_kl", "p999_kl", "top1_agreement", "top1_agreement_error"}
KL_KEYS |= {"rms_delta_p", "rms_delta_p_error", "base_perplexity", "base_perplexity_error"}
KL_KEYS |= {"grade", "base_file_bytes"}
ABOUT = {"model", "file_bytes", "contexts", "against", "ctx", "text", "date", "versions", "warnings"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    for name, kind in (("exact", GGMLType.F32), ("good", GGMLType.Q8_0), ("coarse", GGMLType.Q4_0)):
        tiny(weights=kind).write(folder / f"{name}.gguf")
    words = "".join(f"{i}: hello world, the other {i * i % 97}. " for i in range(16))
    (folder / "text.txt").write_text(words, encoding="utf-8")
    return folder


def call(folder: Path, *arguments: str) -> Result:
    models = [str(folder / a) if a.endswith((".gguf", ".html", ".txt")) else a for a in arguments]
    return CliRunner().invoke(
        command, [*models, "--ctx", "64", "--text", str(folder / "text.txt")], catch_exceptions=False
    )


def test_json_of_one_model_has_the_agreed_keys(folder: Path) -> None:
    done = call(folder, "good.gguf", "--json")
    assert set(json.loads(done.stdout)) == KEYS | ABOUT
    assert "contexts, perplexity" in done.stderr
    done = call(folder, "good.gguf", "--against", "exact.gguf", "--json", "--chunks", "2")
    found = json.loads(done.stdout)
    assert set(found) == KEYS | KL_KEYS | ABOUT
    assert (found["tokens"], found["contexts"], found["ctx"], found["grade"]) == (62, 2, 64, "excellent")
    raw = (folder / "text.txt").read_bytes()
    assert found["text"] == {"name": "text.txt", "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    assert abs(datetime.now(timezone.utc) - datetime.fromisoformat(found["date"])).days == 0
    assert found["versions"]["edgellm"]
    alone = json.loads(call(folder, "exact.gguf", "--json", "--chunks", "2").stdout)
    assert found["base_perplexity"] == pytest.approx(alone["perplexity"])
    assert found["base_perplexity_error"] == pytest.approx(alone["perplexity_error"])
    assert found["base_file_bytes"] == alone["file_bytes"]
    assert 0 < found["mean_kl"] < 1e-3


def test_several_models_are_a_list_and_a_report(folder: Path) -> None:
    done = call(folder, "good.gguf", "coarse.gguf", "--against", "exact.gguf", "--json", "--plot", "report.html")
    good, coarse = json.loads(done.stdout)
    assert set(good) == KEYS | KL_KEYS | ABOUT | {"decode_tokens_per_second"}
    assert good["file_bytes"] == (folder / "good.gguf").stat().st_size
    assert good["decode_tokens_per_second"] > 0
    assert good["mean_kl"] < coarse["mean_kl"]
    svg = picture((folder / "report.html").read_text(encoding="utf-8"))
    circles = svg.findall(".//{*}circle")
    assert len(circles) == 4
    left_to_right = [float(circle.attrib["cx"]) for circle in circles[:2]]
    down = [float(circle.attrib["cy"]) for circle in circles[:2]]
    assert left_to_right[0] > left_to_right[1]  # the good one is larger
    assert down[0] > down[1]  # and lower is better
    page = (folder / "report.html").read_text(encoding="utf-8")
    header = page[page.index("<th>") : page.index("</th></tr>") + 5]
    assert re.findall("<th>(.*?)</th>", header) == COLUMNS
    for words in ("exact.gguf (base)", "contexts", "text.txt", good["text"]["sha256"][:16], good["date"][:10]):
        assert words in page


def picture(page: str) -> ElementTree.Element:
    return ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])


def test_a_table_for_people(folder: Path) -> None:
    one = call(folder, "coarse.gguf", "--against", "exact.gguf").stdout
    assert [line.split("  ")[0] for line in one.splitlines()] == [
        "perplexity",
        "of the base",
        "mean KL",
        "median KL",
        "99.9 % KL",
        "top-1 agreement",
        "RMS delta p",
        "scored",
        "text",
        "measured",
        "versions",
    ]
    several = call(folder, "coarse.gguf", "good.gguf").stdout.splitlines()
    assert several[0].split() == ["model", "size", "tokens/s", "perplexity"]
    assert [line.split()[0] for line in several[1:3]] == ["coarse.gguf", "good.gguf"]
    compared = call(folder, "coarse.gguf", "good.gguf", "--against", "exact.gguf").stdout.splitlines()
    assert re.split("  +", compared[0]) == COLUMNS
    base, alone = re.split("  +", compared[3]), call(folder, "exact.gguf").stdout.splitlines()[0]
    assert base[0] == "exact.gguf (base)"
    assert base[3] == alone.split(maxsplit=1)[1]  # the same figure as by itself
    assert [line.split()[0] for line in compared[5:9]] == ["scored", "text", "measured", "versions"]


def test_a_narrow_terminal_gets_several_tables(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluation.Evaluation(
        3, 3, 93, 271.2, 12.3, 0.055, 0.0013, 0.03, 0.4, 0.88, 0.01, 0.059, 0.001, 270.0, 12.0
    )
    measured = [_Measured(name, 10**6, found, 41.0, _Base("f16.gguf", 10**7, 20.0)) for name in ("a.gguf", "b.gguf")]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    _table(measured)
    lines = re.sub(".*?m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 60
    assert sum("f16.gguf (base)" in line for line in lines) >= 2
    for column in COLUMNS:
        assert any(column in line for line in lines), column


def test_pairs_are_as_precise_as_their_errors() -> None:
    pairs = [(0.05523, 0.00131), (15.8812, 0.7551), (270.4, 12.3), (0.0, 0.0), (math.inf, math.nan)]
    assert [_pair(*pair) for pair in pairs] == ["0.0552 ± 0.0013", "15.88 ± 0.76", "270 ± 12", "0", "inf"]


def test_a_short_text_is_warned_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what would be enough: the same error shrinks with the root of the tokens."""
    monkeypatch.setattr(evidence, "PERPLEXITY", 1e-3)
    done = call(folder, "good.gguf", "coarse.gguf", "--json", "--chunks", "2")
    found = json.loads(done.stdout)
    assert found[0]["warnings"] == found[1]["warnings"]
    (warning,) = found[0]["warnings"]
    assert f"warning: {warning}" in done.stderr
    worst = max(each["perplexity_error"] / each["perplexity"] for each in found)
    assert f"± {100 * worst:.1f} %" in warning
    needed = int(re.findall(r"a text of ([\d,]+) tokens", warning)[0].replace(",", ""))
    assert needed == pytest.approx(2 * 64 * (worst / 1e-3) ** 2, rel=0.1)


def test_models_that_cannot_be_told_apart() -> None:
    def made(kl: float, error: float, tokens: int = 255) -> evaluation.Evaluation:
        return evaluation.Evaluation(1, 1, tokens, 20.0, 0.1, kl, error)

    near = shortcomings({"a": made(0.050, 0.002), "b": made(0.052, 0.002), "c": made(0.3, 0.01)}, 512)
    assert len(near) == 1
    assert near[0].startswith("a and b are too near")
    assert "a text of 4,100 tokens" in near[0]  # 512 tokens, 8 times as many
    assert shortcomings({"a": made(0.050, 0.002), "b": made(0.09, 0.002)}, 512) == []
    assert "± 20 %; for ± 10 % it takes a text of 2,100 tokens" in shortcomings({"a": made(0.05, 0.01)}, 512)[0]
    assert shortcomings({"same": made(0.0, 0.0)}, 512) == []
    assert shortcomings({}, 512) == []


def test_ctrl_c_keeps_what_is_complete(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = evaluation.evaluations

    def stopped(*arguments: Any, **options: Any) -> Generator[evaluation.Evaluation]:
        yield next(original(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluations", stopped)
    done = CliRunner().invoke(
        command, [str(folder / "good.gguf"), "--text", str(folder / "text.txt"), "--ctx", "64"], standalone_mode=False
    )
    assert isinstance(done.exception, KeyboardInterrupt) or done.exit_code == 1
    assert "stopped" in done.stderr
    assert "scored      31 tokens in 1 of" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with names")
def test_a_text_may_come_through_a_pipe(folder: Path, tmp_path: Path) -> None:
    pipe, text = tmp_path / "pipe", (folder / "text.txt").read_bytes()
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(text,))
    writer.start()
    arguments = [str(folder / "good.gguf"), "--text", str(pipe), "--ctx", "64", "--chunks", "1", "--json"]
    found = json.loads(CliRunner().invoke(command, arguments, catch_exceptions=False).stdout)
    writer.join()
    assert found["text"] == {"name": "pipe", "bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}


def test_mistakes_are_told_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = str(folder / "text.txt")
    (folder / "latin.txt").write_bytes(b"Gr\xfc\xdfe")
    model = str(folder / "good.gguf")
    for arguments, words in (
        ([model, "--text", str(folder / "missing.txt")], "cannot be read"),
        ([model, "--text", str(folder / "latin.txt")], "not UTF-8"),
        ([model, "--text", text, "--plot", "report.pdf"], "an .html or a .png file"),
        ([model, "--text", text, "--plot", "nowhere/report.html"], "not a folder"),
        ([model, "--text", text], "2 contexts of 512 need 1024"),
    ):
        with pytest.raises(SystemExit) as leaving:
            main(["eval", *arguments])
        assert leaving.value.code == 2
        captured = capsys.readouterr()
        assert words in captured.err
        assert captured.out == ""


NOTHING = plot.Text("nothing", [["model"], ["a"]], ["a note"])
POINTS = [plot.Point("<a> & b", 145_000_000, 0.003, 0.0001, 41.0), plot.Point("c", 92_000_000, 0.12, 0.002, 60.0)]


def test_a_wide_range_of_quality_is_logarithmic(tmp_path: Path) -> None:
    plot.write(tmp_path / "wide.html", POINTS, "mean KL divergence", plot.Text("two <models>", [["<a>"]], ["<b>"]))
    page = (tmp_path / "wide.html").read_text(encoding="utf-8")
    assert "<models>" not in page
    assert "<a>" not in page
    assert "<b>" not in page
    svg = picture(page)
    texts = [text.text for text in svg.findall(".//{*}text")]
    assert {"<a> & b", "c", "0.002", "0.005", "0.1"} <= set(texts)
    inside = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in svg.findall(".//{*}circle")]
    assert all(0 < x < 2 * plot.WIDTH and plot.TOP <= y <= plot.HEIGHT - plot.BOTTOM for x, y in inside)


@pytest.mark.parametrize("quality", [0.0, 5.0, 1e-9])
def test_equal_figures_have_an_axis(tmp_path: Path, quality: float) -> None:
    plot.write(tmp_path / "equal.html", [plot.Point("a", 5, quality, 0.0, 3.0)] * 2, "perplexity", NOTHING)
    svg = picture((tmp_path / "equal.html").read_text(encoding="utf-8"))
    assert len(svg.findall(".//{*}circle")) == 4


def test_a_png_needs_matplotlib(tmp_path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(Unsupported, match=r"name an \.html file"):
            plot.check(tmp_path / "report.png")
    else:
        plot.write(tmp_path / "report.png", POINTS, "mean KL divergence", NOTHING)
        assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InvalidParameter, match="nothing to show"):
        plot.write(tmp_path / "report.html", [], "perplexity", NOTHING)
    assert list(tmp_path.glob("*.html")) == []
