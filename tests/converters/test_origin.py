"""Name, licence and base model on every way between the formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import gguf
import pytest
from click.testing import CliRunner
from hf_models import folder_of
from tiny_models import tiny

import edgellm
from edgellm.cli.show import show
from edgellm.converters import ConvertParams, TargetParams, convert, read
from edgellm.converters.origin import Origin
from edgellm.formats.origin import base_models, card_of, front_matter, general_of, licence, of_card

README = """\
---
license: other  # see below
license_name: small-1.0
license_link: 'https://example.org/LICENSE'
base_model:
- Example/Base-1B
- "Other/Adapter"
language: [en, "de"]
widget:
  - text: hello
    license: not this one
---
# A model
"""
FILES = {"README.md": README, "LICENSE": "Do as you like, but say so.\n", "NOTICE.txt": "Made by Example.\n"}
WAYS: dict[str, Callable[[Path, Path], Path]] = {
    "gguf": lambda source, target: convert(source, target / "model.gguf", _plain()).path,
    "q8_0": lambda source, target: convert(source, target / "model.gguf", _plain(quant="q8_0")).path,
    "onnx": lambda source, target: convert(source, target / "onnx", _plain(to="onnx")).path,
    "huggingface": lambda source, target: convert(source, target / "folder", _plain(to="safetensors")).path,
}


def _plain(**options: str) -> TargetParams:
    return ConvertParams(verify=False, **options)  # type: ignore[arg-type]


def way(source: Path, to: str, place: Path) -> Path:
    target = place / str(len(list(place.iterdir())))
    target.mkdir()
    return WAYS[to](source, target)


def origin(path: Path) -> Origin:
    with closing(read(path)) as checkpoint:
        return checkpoint.origin


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = folder_of(tmp_path / "source")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": "Example/Tiny-1M"}), encoding="utf-8")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def shown(path: Path) -> dict[str, str]:
    result = CliRunner().invoke(show, [str(path)], catch_exceptions=False)
    return dict(line.split("  ", 1) for line in result.stdout.splitlines() if not line.startswith(" "))


@pytest.mark.parametrize(
    "ways",
    [
        ["gguf", "huggingface"],
        ["onnx", "gguf"],
        ["gguf", "q8_0", "onnx", "onnx"],
        ["gguf", "onnx", "gguf", "huggingface", "onnx", "gguf"],
    ],
    ids="-".join,
)
def test_every_way_around(ways: list[str], source: Path, tmp_path: Path) -> None:
    expected = origin(source)
    assert expected.general["general.name"] == "Tiny-1M"
    assert expected.texts == FILES
    at = source
    for to in ways:
        at = way(at, to, tmp_path)
        assert origin(at) == expected
        if to == "huggingface" or to == "onnx":
            assert {name: (at / name).read_text(encoding="utf-8") for name in FILES} == FILES
            assert json.loads((at / "config.json").read_text(encoding="utf-8"))["_name_or_path"] == "Example/Tiny-1M"
        if to != "huggingface":
            facts = {label: value.strip() for label, value in shown(at).items()}
            assert facts["name"] == "Tiny-1M"
            assert facts["licence"] == "small-1.0 (https://example.org/LICENSE)"
            assert facts["made from"] == "Example/Base-1B, Other/Adapter"
        if at.suffix == ".gguf":
            fields = {key: field.contents() for key, field in gguf.GGUFReader(at).fields.items()}
            assert (fields["general.license"], fields["general.license.name"]) == ("other", "small-1.0")
            assert fields["general.base_model.1.organization"] == "Other"
            assert fields["general.languages"] == ["en", "de"]


def test_what_a_gguf_file_of_others_says(tmp_path: Path) -> None:
    """Keys that no card has come back too, and folders get a card that says the rest."""
    made = tiny()
    said = {"general.name": "Some: model", "general.license": "mit", "general.author": "Ä", "general.version": "v2"}
    said |= {"general.description": "It does.", "general.quantized_by": "somebody", "general.tags": ["a", "b: c"]}
    made.metadata |= said
    source = made.write(tmp_path / "source.gguf")
    expected = origin(source).general
    assert {key: expected[key] for key in said} == said
    for first in ("onnx", "huggingface"):
        folder = way(source, first, tmp_path)
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert front_matter(card)["license"] == "mit"
        assert front_matter(card)["model_name"] == "Some: model"
        assert front_matter(card)["tags"] == ["a", "b: c"]
        back = origin(way(folder, "gguf", tmp_path)).general
        assert back == expected
    assert not (folder / "LICENSE").exists()


def test_what_people_edit_counts(source: Path, tmp_path: Path) -> None:
    folder = way(source, "onnx", tmp_path)
    card = README.replace("license: other  # see below", "license: apache-2.0").replace("license_name", "x")
    (folder / "README.md").write_text(card.replace("license_link", "y"), encoding="utf-8")
    assert edgellm.inspect(folder).license == "apache-2.0"
    general = origin(way(folder, "gguf", tmp_path)).general
    assert licence(general) == "apache-2.0"
    assert "general.license.name" not in general


def test_names_of_files_are_not_believed(tmp_path: Path) -> None:
    made = tiny()
    names = ["../evil", "LICENSE/../../evil", "LICENSE", "config.json", "/etc/LICENSE", "LICENSE.", "license.md"]
    made.metadata |= {"edgellm.origin.files": names, "edgellm.origin.texts": ["x"] * len(names)}
    made.metadata["edgellm.origin.name_or_path"] = "/home/somebody/model"
    source = made.write(tmp_path / "source.gguf")
    assert sorted(origin(source).texts) == ["LICENSE", "license.md"]
    assert origin(source).name_or_path is None
    made.metadata["edgellm.origin.texts"] = ["x"]
    assert origin(made.write(tmp_path / "other.gguf")).texts == {}


def test_names(tmp_path: Path) -> None:
    """Of a snapshot in the Hugging Face cache the repository's, of a folder its own; paths are no names."""
    snapshot = folder_of(tmp_path / "models--Org--Thing" / "snapshots" / "abc")
    assert origin(snapshot).general["general.name"] == "Thing"
    plain = folder_of(tmp_path / "plain")
    config = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    for path in ("/fsx/me/checkpoint", "./out/x", "C:\\models\\x", "a/b/c", 5):
        (plain / "config.json").write_text(json.dumps({**config, "_name_or_path": path}), encoding="utf-8")
        assert origin(plain) == Origin({"general.name": "plain"})


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"license": "mit"}, "mit"),
        ({"license": "other", "license.name": "gemma"}, "gemma"),
        ({"license.link": "https://x"}, "https://x"),
        ({"license": "other", "license.link": "https://x"}, "other (https://x)"),
        ({"license": "cc-by-4.0", "license.name": "CC", "license.link": "u"}, "cc-by-4.0 (u)"),
        ({"license": ["mit"]}, None),
        ({}, None),
    ],
)
def test_licences(said: dict[str, object], expected: str | None) -> None:
    assert licence({f"general.{key}": value for key, value in said.items()}) == expected


def test_cards_say_what_they_are_made_of() -> None:
    general = {"general.name": 'a "b" # c', "general.license": "mit", "general.languages": ["en"]}
    general |= {
        "general.base_model.count": 1,
        "general.base_model.0.name": "B",
        "general.base_model.0.organization": "A",
    }
    found = of_card(card_of(general))
    assert {key: found[key] for key in general} == general
    assert base_models(found) == ("A/B",)


@pytest.mark.parametrize("text", ["", "---", "---\n---", "# no front", "---\nlicense:\n---\n", "---\n: x\n- y\n---\n"])
def test_cards_without_anything_of_use(text: str) -> None:
    assert of_card(text) == {}


def test_what_is_no_text_is_left_out() -> None:
    odd = {"general.name": b"x", "general.tags": [1], "general.author": None, "general.file_type": 7, "llama.x": "y"}
    assert general_of({**odd, "general.version": "1"}) == {"general.version": "1"}
    assert base_models({"general.base_model.count": 10**9, "general.base_model.0.repo_url": "u"}) == ("u",)
    assert base_models({"general.base_model.count": "2"}) == ()
