"""Limits of the house: how large a file, a class and a function may grow, and that no modules import each other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from source_tree import ROOT, files, imports_of, module_of

LINES = 419  # of a file
ATTRIBUTES = 15  # that a class sets on self
PARAMETERS = 7  # of a function, besides self
NAME = 59  # characters of a test's name
ROOMS = ("edgellm", "converters", "native")


def offenders(root: Path) -> list[str]:
    """What breaks a limit, by where it is."""
    found = []
    for path in files(root):
        where, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        lines = len(text.splitlines())
        if lines > LINES:
            found.append(f"{where}: too many lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and len(set(_own(node))) > ATTRIBUTES:
                found.append(f"{where}: {node.name} sets too many attributes")
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and len(_parameters(node)) > PARAMETERS:
                found.append(f"{where}: {node.name} has too many parameters")
    for path in sorted(root.glob("tests/**/*.py")):
        names = re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        found += [
            f"{path.relative_to(root).as_posix()}: {name} is too long a name" for name in names if len(name) > NAME
        ]
    return found + [f"{', '.join(circle)}: import each other" for circle in circles(root)]


def _own(node: ast.AST) -> Iterator[str]:
    """The attributes that a class sets on self, those of classes inside it aside."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            continue
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store) and ast.unparse(child.value) == "self":
            yield child.attr
        yield from _own(child)


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    named = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return named[1:] if named[:1] in (["self"], ["cls"]) else named


def circles(root: Path) -> list[list[str]]:
    """Groups of modules each of which imports the others, through whichever; imports for type hints aside."""
    graph = {
        module_of(path, root): {item.module for item in imports_of(path, root) if item.where != "hints"}
        for path in files(root)
    }
    reached = {module: _reachable(graph, module) for module in graph}
    groups = {frozenset(n for n in reached[m] if n in graph and m in reached[n]) for m in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """Every module that this one imports, itself or through others."""
    found: set[str] = set()
    left = [start]
    while left:
        new = graph.get(left.pop(), set()) - found
        found |= new
        left += new
    return found


def test_the_house_keeps_its_limits() -> None:
    assert offenders(ROOT) == []


def test_the_map_names_files_that_exist() -> None:
    """docs/architecture.md: every file of its tree by name, the ten to read first by path."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/]+\.(?:py|h|cpp|toml)\b", page.split("```")[1])) - {"llama.cpp"}
    there = {f"/{path.relative_to(ROOT).as_posix()}" for room in ROOMS for path in (ROOT / room).rglob("*.*")}
    assert len(named) > 80
    assert [name for name in sorted(named) if not any(path.endswith(f"/{name}") for path in there)] == []
    first = re.findall(r"^\d+\. `([\w/]+\.py)`:", page, re.MULTILINE)
    assert len(first) == 10
    assert [name for name in first if f"/{name}" not in there] == []


def _class(count: int) -> str:
    """A class that sets so many attributes, one of them twice, and has another class inside it."""
    names = [f"self.a{i}" for i in range(count)]
    return (
        "class Wide:\n"
        "    class Other:\n        def __init__(self) -> None:\n            self.other = 1\n"
        f"    def __init__(self) -> None:\n        {names[0]}: int = 0\n        {names[0]} += 1\n"
        f"        {', '.join(names[1:3])} = 1, 2\n"
        f"        for {names[3]} in ():\n            pass\n"
        f"    def more(self) -> None:\n        other.attribute = self.read\n        {' = '.join(names[4:])} = 1\n"
    )


def _function(count: int, first: str = "self") -> str:
    names = [f"a{i}" for i in range(count)]
    return f"class A:\n    async def wide({first}, {names[0]}, /, {names[1]}, *rest, {', '.join(names[2:])}): ...\n"


NAMED = "def test_" + "a" * 54 + "() -> None: ...\n"


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ({"edgellm/long.py": "a = 1\n" * 420}, "edgellm/long.py: too many lines"),
        ({"converters/long.py": "a = 1\n" * 420}, "converters/long.py: too many lines"),
        ({"edgellm/a.py": _class(16)}, "edgellm/a.py: Wide sets too many attributes"),
        ({"edgellm/a.py": _function(8)}, "edgellm/a.py: wide has too many parameters"),
        ({"edgellm/a.py": _function(7, "one")}, "edgellm/a.py: wide has too many parameters"),
        (
            {"tests/deep/test_a.py": NAMED.replace("test_", "test_a")},
            f"tests/deep/test_a.py: test_{'a' * 55} is too long",
        ),
        (
            {"edgellm/a.py": "from edgellm import b", "edgellm/b.py": "def f():\n    from edgellm.a import x"},
            "edgellm.a, edgellm.b: import each other",
        ),
        (
            {
                "edgellm/kv/a.py": "from . import b",
                "edgellm/kv/b.py": "import edgellm.kv.c",
                "edgellm/kv/c.py": "from .a import x\nfrom .d import y",
                "edgellm/kv/d.py": "",
            },
            "edgellm.kv.a, edgellm.kv.b, edgellm.kv.c: import each other",
        ),
    ],
)
def test_what_breaks_a_limit_is_found(tmp_path: Path, written: dict[str, str], complaint: str) -> None:
    _write(tmp_path, written)
    [found] = offenders(tmp_path)
    assert found.startswith(complaint)


@pytest.mark.parametrize(
    "written",
    [
        {"edgellm/long.py": "a = 1\n" * 419},
        {"tests/long.py": "a = 1\n" * 420},
        {"edgellm/a.py": _class(15)},
        {"edgellm/a.py": _function(7) + _function(7, "cls") + _function(6, "one")},
        {"tests/test_a.py": NAMED, "edgellm/a.py": NAMED.replace("test_", "test_a")},
        {
            "edgellm/a.py": "from edgellm import b",
            "edgellm/b.py": "if TYPE_CHECKING:\n    from edgellm.a import x\n    def f():\n        import edgellm.a",
        },
    ],
)
def test_what_keeps_the_limits_passes(tmp_path: Path, written: dict[str, str]) -> None:
    _write(tmp_path, written)
    assert offenders(tmp_path) == []


def _write(root: Path, written: Mapping[str, str]) -> None:
    for name, text in written.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
