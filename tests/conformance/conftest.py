"""One suite that every backend passes.

A new backend enters with a `Case` in `tests/backend_cases.py`: a function that writes a tiny model for it, and the
parameters that open it. Every test here then runs on it, through `open_backend` and `edgellm.load` alone, so the
registry in `edgellm/backends/__init__.py` has to know the file. What a backend cannot do, its `info` says
(`can_truncate`, `can_fork`, `can_embed`, `can_generate`); the suite then demands an `Unsupported` error, or False from
`truncate`. A backend is done when nothing here fails; what is special about it is tested in `tests/backends/`.
Where two engines meet: `test_conformance_engines.py`.

    opened    a backend, shared by the tests of a module, which leave no sequence open
    model     a Model of its own
    path      what opens the model, for tests that open it themselves
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from backend_cases import CASES, Case

import edgellm
from edgellm.backends.base import Backend, Sequence
from edgellm.errors import Busy
from edgellm.model import Model


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`case` is every case; in a module with `ONLY` every one whose field of that name is true."""
    if "case" in metafunc.fixturenames:
        only = getattr(metafunc.module, "ONLY", "name")
        chosen = [case for case in CASES if getattr(case, only)]
        metafunc.parametrize("case", chosen, ids=[case.name for case in chosen], scope="session")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model files that were written so far, by case."""
    return {}


@pytest.fixture(scope="session")
def path(case: Case, written: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if case.name not in written:
        written[case.name] = case.make(tmp_path_factory.mktemp(case.name))
    return written[case.name]


@pytest.fixture(scope="module")
def backends() -> Iterator[dict[str, Backend]]:
    """The backends that a module has open, by case."""
    held: dict[str, Backend] = {}
    yield held
    for backend in held.values():
        backend.close()


@pytest.fixture
def opened(case: Case, path: Path, backends: dict[str, Backend]) -> Iterator[Backend]:
    if case.name not in backends:
        backends[case.name] = case.open(path)
    backend = backends[case.name]
    room = places(backend) if case.generates else 0
    yield backend
    if case.generates and places(backend) < room:
        backends.pop(case.name).close()  # the next test gets one of its own
        pytest.fail("a sequence was left open")


def places(backend: Backend) -> int:
    """How many sequences can be opened now."""
    held: list[Sequence] = []
    with suppress(Busy):
        while True:
            held.append(backend.new_sequence())
    for sequence in held:
        sequence.close()
    return len(held)


@pytest.fixture
def model(case: Case, path: Path) -> Iterator[Model]:
    with edgellm.load(path, case.params) as loaded:
        yield loaded
