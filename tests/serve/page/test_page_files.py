"""The page's files: what others made is what the manifest says, and what is ours keeps the house's limits."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from serve.page.stub import PAGE

VENDOR = PAGE / "vendor"
MANIFEST = json.loads((VENDOR / "manifest.json").read_text(encoding="utf-8"))
OURS = sorted(path for path in PAGE.iterdir() if path.is_file())


def test_what_others_made_is_what_the_manifest_says() -> None:
    there = {path.relative_to(VENDOR).as_posix() for path in VENDOR.rglob("*") if path.is_file()}
    assert there == {entry["file"] for entry in MANIFEST} | {"manifest.json"}
    for entry in MANIFEST:
        data = (VENDOR / entry["file"]).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (entry["sha256"], entry["bytes"]), entry["file"]
        assert entry["bytes"] < 1_000_000
        assert re.fullmatch(r"npm:[@\w./-]+@\d+\.\d+\.\d+", entry["package"])
        assert entry["version"] == entry["package"].rpartition("@")[2]


def test_every_licence_lies_beside() -> None:
    licensed = {entry["package"] for entry in MANIFEST if entry["file"].startswith("licences/")}
    assert {entry["package"] for entry in MANIFEST} == licensed
    assert all(entry["licence"] for entry in MANIFEST)


def test_nothing_is_inline() -> None:
    """The policy forbids it, and so an oversight would break the page."""
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]* src=)[^>]*>|<style|\son\w+=|\sstyle=", page) == []
    for source in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert (PAGE / source.removeprefix("page/")).is_file(), source


def test_modules_import_what_is_there() -> None:
    for path in OURS:
        if path.suffix == ".js":
            for name in re.findall(
                r'^(?:import|export|\}).*"([^"]+)";$', path.read_text(encoding="utf-8"), re.MULTILINE
            ):
                assert name.startswith("./"), f"{path.name} imports {name}"
                assert (PAGE / name).is_file(), f"{path.name} imports {name}"


def test_files_are_small_and_say_what_they_are() -> None:
    for path in OURS:
        if path.suffix in (".js", ".css"):
            lines = path.read_text(encoding="utf-8").splitlines()
            assert len(lines) < 400, path.name
            assert max(map(len, lines)) <= 120, path.name
            assert lines[0].startswith(("// ", "/* ")), f"{path.name} begins without a word about what it is"


def test_languages_are_those_that_lie_here() -> None:
    code = (PAGE / "code.js").read_text(encoding="utf-8")
    named = re.findall(r'"(\w+)"', re.search(r"LANGUAGES = \[(.*?)\]", code, re.DOTALL).group(1))  # type: ignore[union-attr]
    assert sorted(named) == sorted(path.stem for path in (VENDOR / "languages").iterdir())


def test_the_package_brings_the_page() -> None:
    """In a process of its own, which imports the installed package and not the sources."""
    found = subprocess.run(
        [sys.executable, "-c", "import edgellm; print(edgellm.__path__[0])"], check=True, capture_output=True, text=True
    )
    installed = Path(found.stdout.strip()) / "serve" / "page"
    if installed == PAGE:
        pytest.skip("edgellm runs from its sources here")
    files = {path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file()}
    assert {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()} == files
