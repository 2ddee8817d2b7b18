"""The source files of edgellm and what they import, from their syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[1]
Where = Literal["top", "function", "hints"]


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    where: Where
    """At the top of the file, inside a function, or for type hints alone, which is no import at all when it runs."""


def files(root: Path) -> list[Path]:
    return sorted(path for folder in ("edgellm", "converters") for path in (root / folder).rglob("*.py"))


def module_of(file: Path, root: Path) -> str:
    """edgellm/kv/store.py is edgellm.kv.store, converters/plan.py is edgellm.converters.plan."""
    parts = file.relative_to(root).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "edgellm" else ("edgellm", *parts))


def imports_of(file: Path, root: Path) -> Iterator[Import]:
    """Every import of a file, with relative ones resolved and submodules named in full."""
    module = module_of(file, root)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST, where: Where) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, where)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(full if is_module(full, root) else base, node.lineno, where)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            where = "hints"
        elif where == "top" and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            where = "function"
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.expr, ast.expr_context)):
                yield from visit(child, where)

    yield from visit(ast.parse(file.read_text(encoding="utf-8")), "top")


def is_module(name: str, root: Path) -> bool:
    parts = name.split(".")
    if parts[0] != "edgellm":
        return False
    path = root.joinpath(*parts[1:] if parts[1:2] == ["converters"] else parts)
    return any(path.with_suffix(suffix).is_file() for suffix in (".py", ".pyi")) or path.is_dir()
