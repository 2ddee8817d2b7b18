"""Which graph a folder means: the same one for whoever shows, runs and converts it.

The folder is an export of optimum with its weights in the graph (tests/fixtures/onnx/README.md); the other graphs in it
are copies that say who they are, so that the fingerprints differ.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import pytest

import edgellm
from edgellm import converters
from edgellm.backends import open_backend
from edgellm.converters import ConvertParams, convert
from edgellm.errors import EdgeLLMError, InvalidModelFile, ModelNotFound, Unsupported
from edgellm.formats.onnx_folder import find
from edgellm.params import LoadParams

FIXTURE = Path(__file__).parents[1] / "fixtures" / "onnx" / "optimum"
VARIANTS = ("onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_q4.onnx", "onnx/model_quantized.onnx")


@dataclass(frozen=True)
class Case:
    """graphs: the .onnx files of the folder. js, genai: its transformers.js_config and genai_config.json, if any.
    expected: the graph that is meant, or the error and what its message says."""

    graphs: tuple[str, ...]
    expected: str | tuple[type[EdgeLLMError], str]
    js: dict[str, Any] | None = None
    genai: dict[str, Any] = field(default_factory=dict)


def genai(filename: Any) -> dict[str, Any]:
    return {"model": {"type": "llama", "decoder": {"filename": filename}}}


PAST = ("onnx/decoder_model.onnx", "onnx/decoder_with_past_model.onnx")
CASES = {
    "one beside the configuration": Case(("model.onnx",), "model.onnx"),
    "one in the folder onnx": Case(("onnx/model.onnx",), "onnx/model.onnx"),
    "one of any name": Case(("onnx/decoder_model_merged.onnx",), "onnx/decoder_model_merged.onnx"),
    "one, and a type that is not there": Case(("model.onnx",), "model.onnx", js={"dtype": "q4"}),
    "two": Case(
        ("model.onnx", "onnx/model.onnx"),
        (Unsupported, r"several models.*give one as the path: model\.onnx, onnx/model\.onnx"),
    ),
    "decoders with and without past": Case(PAST, (Unsupported, "decoder_model.onnx, onnx/decoder_with_past_model")),
    "variants": Case(VARIANTS, (Unsupported, "give one as the path: " + ", ".join(VARIANTS))),
    "variants, q4": Case(VARIANTS, "onnx/model_q4.onnx", js={"dtype": "q4"}),
    "variants, fp32": Case(VARIANTS, "onnx/model.onnx", js={"dtype": "fp32"}),
    "variants, q8": Case(VARIANTS, "onnx/model_quantized.onnx", js={"dtype": "q8"}),
    "variants, by part": Case(VARIANTS, "onnx/model_fp16.onnx", js={"dtype": {"embed": "q4", "model": "fp16"}}),
    "variants, another part": Case(VARIANTS, (Unsupported, "several models"), js={"dtype": {"embed": "q4"}}),
    "variants, a type that is not there": Case(VARIANTS, (Unsupported, "several models"), js={"dtype": "bnb4"}),
    "transformers.js looks in onnx": Case(("model.onnx", "onnx/model.onnx"), "onnx/model.onnx", js={"dtype": "fp32"}),
    "genai, one": Case(("model.onnx",), "model.onnx", genai=genai("model.onnx")),
    "genai, two": Case(("model.onnx", "onnx/model.onnx"), "model.onnx", genai=genai("model.onnx")),
    "genai, any name": Case(("model.onnx", "onnx/text.onnx"), "onnx/text.onnx", genai=genai("./onnx/text.onnx")),
    "genai before transformers.js": Case(
        VARIANTS, "onnx/model_fp16.onnx", js={"dtype": "q4"}, genai=genai("onnx/model_fp16.onnx")
    ),
    "genai, missing": Case(
        ("model.onnx",), (ModelNotFound, "other.onnx: genai_config.json names this file"), genai=genai("other.onnx")
    ),
    "genai, out of the folder": Case(
        ("model.onnx",), (InvalidModelFile, "not the plain name of a file"), genai=genai("../model.onnx")
    ),
    "genai, no name": Case(("model.onnx",), "model.onnx", genai=genai(3)),
    "genai, no decoder": Case(("model.onnx",), "model.onnx", genai={"model": ["decoder"]}),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    made: Case = request.param
    return made


def build(folder: Path, case: Case) -> Path:
    shutil.copytree(FIXTURE, folder, ignore=shutil.ignore_patterns("*.onnx"))
    graph = onnx.load(FIXTURE / "model.onnx")
    for name in case.graphs:
        graph.doc_string = name
        (folder / name).parent.mkdir(exist_ok=True)
        onnx.save(graph, folder / name)
    if case.js is not None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "transformers.js_config": case.js}))
    if case.genai:
        (folder / "genai_config.json").write_text(json.dumps(case.genai))
    return folder


def shown(path: Path) -> str:
    return edgellm.inspect(path).fingerprint


def run(path: Path) -> str:
    with closing(open_backend(path, LoadParams(threads=1))) as backend:
        return backend.info.fingerprint


def converted(path: Path) -> str:
    with closing(converters.read(path)) as checkpoint:
        return checkpoint.fingerprint


READERS = (shown, run, converted)


def check(folder: Path, case: Case) -> None:
    if isinstance(case.expected, str):
        assert find(folder).model == folder / case.expected
        for read in READERS:
            assert read(folder) == read(folder / case.expected)
        return
    error, words = case.expected
    messages = set()
    for read in READERS:
        with pytest.raises(error, match=words) as raised:
            read(folder)
        assert type(raised.value) is error
        messages.add(str(raised.value))
    assert len(messages) == 1


def test_show_run_and_convert_agree(case: Case, tmp_path: Path) -> None:
    check(build(tmp_path / "model", case), case)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_links_change_no_choice(case: Case, tmp_path: Path) -> None:
    real, folder = build(tmp_path / "real", case), tmp_path / "model"
    for path in real.rglob("*.*"):
        link = folder / path.relative_to(real)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(path, link.parent))
    check(folder, case)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_graph_that_was_not_fetched_is_named_alike(tmp_path: Path) -> None:
    case = Case((), (ModelNotFound, r"model_q4\.onnx: a link to .*; fetch the file"))
    folder = build(tmp_path / "model", case)
    (folder / "model_q4.onnx").symlink_to("gone")
    check(folder, case)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_graphs_that_are_not_meant_need_not_be_there(tmp_path: Path) -> None:
    case = Case(("model.onnx",), "model.onnx", genai=genai("model.onnx"))
    folder = build(tmp_path / "model", case)
    (folder / "model_q4.onnx").symlink_to("gone")
    check(folder, case)


@pytest.mark.parametrize(("graph", "root"), [("onnx/model.onnx", ""), ("deep/onnx/model.onnx", "deep/onnx")])
def test_a_graph_belongs_to_the_folder_of_its_configuration(tmp_path: Path, graph: str, root: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(FIXTURE, folder / root)
    (folder / graph).parent.mkdir(parents=True, exist_ok=True)
    (folder / root / "model.onnx").rename(folder / graph)
    assert find(folder / graph).root == folder / root
    for read in READERS:
        assert read(folder / graph) == read(folder / root)


def test_a_relative_path_of_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build(tmp_path / "model", Case(("onnx/model.onnx",), "onnx/model.onnx"))
    monkeypatch.chdir(folder / "onnx")
    for read in READERS:
        assert read(Path("model.onnx")) == read(folder)


def test_nothing_there_is_the_same_error(tmp_path: Path) -> None:
    messages = set()
    for read in READERS:
        with pytest.raises(ModelNotFound, match="no such file or folder") as raised:
            read(tmp_path / "gone.onnx")
        messages.add(str(raised.value))
    assert len(messages) == 1


def test_a_choice_is_told_with_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = build(tmp_path / "model", CASES["variants, q4"])
    words = (
        "onnx/model_q4.onnx is the model, as transformers.js_config says; the folder also holds onnx/model.onnx, "
        "onnx/model_fp16.onnx, onnx/model_quantized.onnx"
    )
    with caplog.at_level("INFO", "edgellm.onnx"):
        run(folder)
    assert words in caplog.text
    made = convert(folder, tmp_path / "model.gguf", ConvertParams(quant="f16", verify=False))
    assert words in made.plan.notes
    assert not find(folder / "onnx" / "model_q4.onnx").choice  # who names one has chosen
