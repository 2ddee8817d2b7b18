"""What is packed, for which Pythons and systems: pyproject.toml, the workflows and the scripts say the same."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import yaml
from source_tree import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGED = (("edgellm", "edgellm"), ("converters", "edgellm/converters"))
FLOW = ROOT / ".github" / "workflows"
pytestmark = pytest.mark.skipif(not FLOW.is_dir(), reason="an sdist: the workflows are not in it")


def flows() -> dict[str, dict[str, Any]]:
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(FLOW.glob("*.yml"))}


def steps(flow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in flow["jobs"].values() for step in job["steps"]]


def pythons() -> list[str]:
    """The versions of Python that the package says it runs on."""
    found = [line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if ":: Python :: 3." in line]
    assert len(found) >= 5
    return found


def packed(kind: str, folder: Path, **settings: str) -> Path:
    """The sdist or the wheel that the build backend makes; of a wheel what needs no compiler."""
    code = f"from scikit_build_core.build import build_{kind}; build_{kind}({str(folder)!r}, {settings!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [file] = folder.iterdir()
    return file


def sources(folder: str) -> dict[str, bytes]:
    """The files of a folder of the repository, those that are made or laid there aside."""
    made = (".so", ".pyd", ".pyc")
    return {
        path.relative_to(ROOT / folder).as_posix(): path.read_bytes()
        for path in sorted((ROOT / folder).rglob("*"))
        if path.is_file() and path.suffix not in made and (ROOT / "edgellm" / "converters") not in path.parents
    }


def test_wheels_and_trials_cover_the_pythons_promised() -> None:
    versions = pythons()
    assert PROJECT["project"]["requires-python"] == f">={versions[0]}"
    built = [name.removesuffix("-*") for name in PROJECT["tool"]["cibuildwheel"]["build"]]
    stable = PROJECT["tool"]["scikit-build"]["wheel"]["py-api"]
    tags = [f"cp{version.replace('.', '')}" for version in versions]
    assert built == tags[: tags.index(stable) + 1]  # the last one serves those that come after it
    assert flows()["release"]["jobs"]["try"]["strategy"]["matrix"]["python"] == versions
    assert f"versions=({' '.join(versions)})" in (ROOT / ".ci" / "matrix").read_text(encoding="utf-8")
    each = " ".join(version for version, tag in zip(versions, tags, strict=True) if tag in built)
    assert f"for version in {each};" in (ROOT / ".ci" / "wheels").read_text(encoding="utf-8")


def test_what_is_built_is_tried_and_then_published() -> None:
    jobs = flows()["release"]["jobs"]
    assert jobs["try"]["strategy"]["matrix"]["os"] == jobs["wheels"]["strategy"]["matrix"]["os"]
    assert set(jobs["publish"]["needs"]) == set(jobs) - {"publish"}
    assert jobs["publish"]["if"] == "startsWith(github.ref, 'refs/tags/v')"
    assert jobs["publish"]["permissions"]["id-token"] == "write"
    systems = {name.partition("-")[0] for name in jobs["wheels"]["strategy"]["matrix"]["os"]}
    classified = " ".join(PROJECT["project"]["classifiers"])
    names = {"ubuntu": "POSIX :: Linux", "macos": ":: MacOS", "windows": ":: Microsoft :: Windows"}
    assert {system for system, name in names.items() if name in classified} == systems


@pytest.mark.parametrize("name", sorted(path.stem for path in FLOW.glob("*.yml")))
def test_a_workflow_names_what_exists(name: str) -> None:
    flow = flows()[name]
    assert flow["permissions"] == {"contents": "read"}  # what more a job needs, it says
    for step in steps(flow):
        if "uses" in step:
            assert re.fullmatch(r"[\w./-]+@(release/)?v\d+", step["uses"])
        for path in re.findall(r"(?<!\S)(?:tests|\.ci)/[\w./]+", step.get("run", "")):
            assert (ROOT / path).exists(), path


def test_the_sdist_is_all_that_a_build_needs(tmp_path: Path) -> None:
    with tarfile.open(packed("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("edgellm", "converters", "native", "tests", "docs"):
        missing = {f"{folder}/{name}" for name in sources(folder)} - names
        assert not missing, missing
    assert {"CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"} <= names
    compiled = set(re.findall(r"native/[\w/]+\.cpp", (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")))
    assert len(compiled) > 30
    assert compiled <= names
    odd = [name for name in names if name.startswith((".ci", ".github", "build/")) or name.endswith((".so", ".gguf"))]
    assert not odd, odd


def test_the_wheel_is_the_package_and_nothing_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(packed("wheel", tmp_path, **{"wheel.cmake": "false", "wheel.py-api": "py3"})) as archive:
        there = {name: archive.read(name) for name in archive.namelist()}
    about = {name for name in there if name.startswith("edgellm-")}
    expected = {f"{inside}/{name}": data for folder, inside in PACKAGED for name, data in sources(folder).items()}
    for name in ("py.typed", "_native.pyi", "hub/catalog.toml", "serve/page/index.html", "converters/yardstick.txt"):
        assert f"edgellm/{name}" in expected
    assert {name: data for name, data in there.items() if name not in about} == expected
    [metadata] = [there[name].decode() for name in about if name.endswith("/METADATA")]
    parsed = Parser().parsestr(metadata)
    assert parsed["Requires-Python"] == PROJECT["project"]["requires-python"]
    assert any(name.endswith("/licenses/LICENSE") for name in about)
    [entries] = [there[name].decode() for name in about if name.endswith("/entry_points.txt")]
    assert "edgellm = edgellm.cli:main" in entries
