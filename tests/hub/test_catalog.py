from __future__ import annotations

import re

import pytest

from edgellm.errors import InvalidParameter
from edgellm.hub.catalog import HuggingFaceSource, PyPISource, catalog, match, parse


def test_shipped_catalog_is_consistent() -> None:
    models = catalog()
    assert {"smollm2:135m", "gemma3:270m"} <= set(models)
    for model in models.values():
        assert re.fullmatch(r"[0-9a-f]{64}", model.sha256)
        assert re.fullmatch(r"[a-z0-9.-]+:[a-z0-9.-]+", model.name)
        assert model.file.endswith(".gguf")
        assert model.license
        assert model.sources
        for source in model.sources:
            if isinstance(source, PyPISource):
                assert sum(part.size for part in source.parts) == model.size
                for part in source.parts:
                    assert re.fullmatch(r"[0-9a-f]{64}", part.sha256)
                    assert part.wheel_size > 0
                if len(source.parts) == 1:
                    assert source.parts[0].sha256 == model.sha256
            else:
                assert isinstance(source, HuggingFaceSource)
                assert source.sha256 in (None, model.sha256)


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
