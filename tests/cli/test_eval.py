"""`edgellm eval` on tiny random models, and its report."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from tiny_models import tiny

from edgellm.cli import main
from edgellm.cli.eval import evaluate as command
from edgellm.converters import evaluate as evaluation
from edgellm.converters import plot
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.formats.ggml_types import GGMLType

KEYS = {"perplexity", "perplexity_error", "tokens"}
KL_KEYS = {"mean_kl", "mean_kl_error", "median_kl", "p999_kl", "top1_agreement", "top1_agreement_error"}
KL_KEYS |= {"rms_delta_p", "rms_delta_p_error"}


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
    assert set(json.loads(done.stdout)) == KEYS
    assert "contexts, perplexity" in done.stderr
    done = call(folder, "good.gguf", "--against", "exact.gguf", "--json", "--chunks", "2")
    found = json.loads(done.stdout)
    assert set(found) == KEYS | KL_KEYS
    assert found["tokens"] == 62
    assert 0 < found["mean_kl"] < 1e-3


def test_several_models_are_a_list_and_a_report(folder: Path) -> None:
    done = call(folder, "good.gguf", "coarse.gguf", "--against", "exact.gguf", "--json", "--plot", "report.html")
    good, coarse = json.loads(done.stdout)
    assert set(good) == KEYS | KL_KEYS | {"model", "file_bytes", "decode_tokens_per_second"}
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


def picture(page: str) -> ElementTree.Element:
    return ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])


def test_a_table_for_people(folder: Path) -> None:
    one = call(folder, "coarse.gguf", "--against", "exact.gguf").stdout
    assert [line.split("  ")[0] for line in one.splitlines()] == [
        "perplexity",
        "mean KL",
        "median KL",
        "99.9 % KL",
        "top-1 agreement",
        "RMS delta p",
        "scored",
    ]
    several = call(folder, "coarse.gguf", "good.gguf").stdout.splitlines()
    assert several[0].split() == ["model", "size", "tokens/s", "perplexity"]
    assert [line.split()[0] for line in several[1:]] == ["coarse.gguf", "good.gguf"]


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


POINTS = [plot.Point("<a> & b", 145_000_000, 0.003, 0.0001, 41.0), plot.Point("c", 92_000_000, 0.12, 0.002, 60.0)]


def test_a_wide_range_of_quality_is_logarithmic(tmp_path: Path) -> None:
    plot.write(tmp_path / "wide.html", POINTS, "mean KL divergence", "two <models>")
    page = (tmp_path / "wide.html").read_text(encoding="utf-8")
    assert "<models>" not in page
    svg = picture(page)
    texts = [text.text for text in svg.findall(".//{*}text")]
    assert {"<a> & b", "c", "0.002", "0.005", "0.1"} <= set(texts)
    inside = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in svg.findall(".//{*}circle")]
    assert all(0 < x < 2 * plot.WIDTH and plot.TOP <= y <= plot.HEIGHT - plot.BOTTOM for x, y in inside)


@pytest.mark.parametrize("quality", [0.0, 5.0, 1e-9])
def test_equal_figures_have_an_axis(tmp_path: Path, quality: float) -> None:
    plot.write(tmp_path / "equal.html", [plot.Point("a", 5, quality, 0.0, 3.0)] * 2, "perplexity")
    svg = picture((tmp_path / "equal.html").read_text(encoding="utf-8"))
    assert len(svg.findall(".//{*}circle")) == 4


def test_a_png_needs_matplotlib(tmp_path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(Unsupported, match=r"name an \.html file"):
            plot.check(tmp_path / "report.png")
    else:
        plot.write(tmp_path / "report.png", POINTS, "mean KL divergence")
        assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InvalidParameter, match="nothing to show"):
        plot.write(tmp_path / "report.html", [], "perplexity")
    assert list(tmp_path.glob("*.html")) == []
