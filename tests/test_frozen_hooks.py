"""What the hooks for PyInstaller collect. A real build is `python tests/frozen/build.py`."""

from __future__ import annotations

import ast
import pkgutil
import runpy
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import edgellm
from edgellm import _pyinstaller

FOLDER = Path(_pyinstaller.hook_dirs()[0])


def collect_submodules(package: str, filter: Callable[[str], bool] = lambda name: True) -> list[str]:
    found = import_module(package)
    names = [package, *(module.name for module in pkgutil.walk_packages(found.__path__, f"{package}."))]
    return [name for name in names if filter(name)]


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Run a hook, with PyInstaller's helpers replaced by ones that collect the same."""
    helpers = ModuleType("PyInstaller.utils.hooks")
    helpers.__dict__["collect_submodules"] = collect_submodules
    helpers.__dict__["copy_metadata"] = lambda name: [(name, version(name))]
    helpers.__dict__["collect_data_files"] = lambda package, includes: [
        (str(path), "")
        for pattern in includes
        for path in Path(import_module(package).__file__ or "").resolve().parent.glob(pattern)
    ]
    for name in ("PyInstaller", "PyInstaller.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, helpers.__name__, helpers)
    return lambda name: runpy.run_path(str(FOLDER / f"hook-{name}.py"))


def test_what_is_imported_by_name_is_collected(hook: Any) -> None:
    found = hook("edgellm")
    names = set(found["hiddenimports"])
    rooms = set(edgellm._PLACES.values()) - {
        "jobs.rows",
        "jobs.mapper",
    }  # which brings the server, so who wants it imports it
    assert {f"edgellm.{room}" for room in rooms} <= names
    assert {"edgellm.child", "edgellm.errors", "edgellm.backends.llamacpp", "edgellm.backends.onnx"} <= names
    apart = ("edgellm.cli", "edgellm.bench", "edgellm.jobs", "edgellm.serve", "edgellm._pyinstaller")
    assert not {name for name in names if name.startswith(apart)}
    assert [Path(file).name for file, _ in found["datas"] if file.endswith(".toml")] == ["catalog.toml"]
    assert "llama-cpp-python" in dict(found["datas"])
    for name in names:
        import_module(name)


def test_the_command_line_comes_with_all_commands(hook: Any) -> None:
    from edgellm.cli import COMMANDS

    names = set(hook("edgellm.cli")["hiddenimports"])
    assert {f"edgellm.cli.{module}" for module, *_ in COMMANDS.values()} <= names


def test_the_server_comes_with_its_page(hook: Any) -> None:
    found = hook("edgellm.serve")
    assert {"edgellm.serve.app", "edgellm.serve.ollama.chat", "uvicorn.lifespan.on"} <= set(found["hiddenimports"])
    assert {"index.html", "app.js", "katex.js"} <= {Path(file).name for file, _ in found["datas"]}


def test_what_measures_a_conversion_comes_with_its_text(hook: Any) -> None:
    found = hook("edgellm.converters.yardstick")
    assert [Path(file).name for file, _ in found["datas"]] == ["yardstick.txt"]


def test_a_frozen_program_asks_whether_it_is_a_child() -> None:
    hooks = ast.literal_eval((FOLDER / "rthooks.dat").read_text(encoding="utf-8"))
    assert list(hooks) == ["edgellm"]
    for name in hooks["edgellm"]:
        runpy.run_path(str(FOLDER / "rthooks" / name))  # it does nothing here
