from __future__ import annotations

import re

import pytest

from edgellm.errors import InvalidParameter
from edgellm.hub import huggingface
from edgellm.hub.catalog import CatalogModel, HuggingFaceSource, PyPISource, catalog, match, parse

LICENCES = {
    "Apache-2.0",
    "MIT",
    "Gemma Terms of Use",
    "LFM Open License v1.0",
    "Llama 3.1 Community License",
    "Llama 3.2 Community License",
}


@pytest.mark.parametrize("model", catalog().values(), ids=lambda model: model.name)
def test_entries_are_well_formed(model: CatalogModel) -> None:
    assert re.fullmatch(r"[a-z0-9.-]+:[a-z0-9.-]+", model.name)
    assert re.fullmatch(r"[A-Z].{10,44}[A-Za-z0-9]", model.description)  # one line of a terminal of 80 columns
    assert model.license in LICENCES
    assert re.fullmatch(r"[^/]+\.gguf", model.file)
    assert re.search(rf"[._-]{model.type}[._-]", model.file, re.IGNORECASE)
    assert 50_000_000 < model.size < 6_000_000_000  # for machines of 8 to 16 GB
    for source in model.sources:
        if isinstance(source, PyPISource):
            assert sum(part.size for part in source.parts) == model.size
            assert all(re.fullmatch(r"[0-9a-f]{64}", part.sha256) and part.wheel_size > 0 for part in source.parts)
            if len(source.parts) == 1:
                assert source.parts[0].sha256 == model.sha256
        else:
            assert huggingface.parse(f"hf:{source.repo}") == (source.repo, None)
            assert source.sha256 in (None, model.sha256)
            assert source.file == model.file or model.sha256
    if model.sha256 is None:
        assert len(model.sources) == 1
    else:
        assert re.fullmatch(r"[0-9a-f]{64}", model.sha256)


def test_entries_stand_once() -> None:
    models = catalog().values()
    assert {"smollm2:135m", "gemma3:270m", "qwen3:4b", "llama3.2:3b"} <= set(catalog())
    assert len({model.name.casefold() for model in models}) == len(models)
    assert len({str(model.sources) for model in models}) == len(models)
    assert len({model.size for model in models}) == len(models)  # a size copied with the lines around it


def test_shipped_catalog_describes_the_real_files() -> None:
    """Values published with the files: the wheel's own SHA256SUMS, and the package's page."""
    assert catalog()["gemma3:270m"].sha256 == "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
    assert catalog()["smollm2:135m"].size == 98362432
    assert all(
        source.sha256 is None
        for m in catalog().values()
        for source in m.sources
        if source.__class__ is HuggingFaceSource
    )


@pytest.mark.parametrize(
    "sources",
    [
        "[]",
        '[{kind = "pypi", parts = []}]',
        '[{kind = "huggingface", repo = "a/b", file = "c"}, {kind = "huggingface", repo = "d/e", file = "c"}]',
    ],
)
def test_without_a_hash_there_is_one_source_a_repository(sources: str) -> None:
    text = '[models."x:1"]\ndescription = ""\nlicense = ""\ntype = ""\nfile = ""\nsize = 1\nsources = '
    with pytest.raises(ValueError, match="x:1 has no sha256"):
        parse(text + sources)


def test_unknown_source_kind_and_missing_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="ftp"):
        parse('[models.x]\nsources = [{kind = "ftp"}]')
    with pytest.raises(TypeError):
        parse("[models.x]\nsources = []")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a:1", "a:1"), ("A:1", "a:1"), ("a", None), ("b", "b:1"), ("B", "b:1"), ("c", None), ("b:", None), ("", None)],
)
def test_match(name: str, expected: str | None) -> None:
    known = ["a:1", "a:2", "b:1"]
    if name == "a":
        with pytest.raises(InvalidParameter, match="a:1, a:2"):
            match(name, known)
    else:
        assert match(name, known) == expected
