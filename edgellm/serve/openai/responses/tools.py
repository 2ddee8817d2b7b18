"""Offered: the tools of a request that a model is told of: functions, and those in namespaces.

Tools of other types are run by OpenAI or written in forms of its own; they are left out, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgellm.errors import InvalidParameter, Unsupported
from edgellm.serve.openai import wire

LONGEST = 64  # characters of a function's name
FIELDS = ("name", "description", "parameters", "strict")


@dataclass
class Offered:
    """functions: as a model is told of them. shown: as the Response shows them. left_out: the types of the others.
    spaces: namespace and name of those that have one, by the name that the model is told. choice: in one word."""

    functions: list[dict[str, Any]] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)
    spaces: dict[str, tuple[str, str]] = field(default_factory=dict)
    choice: str = "auto"

    def told(self, call: Mapping[str, Any]) -> str:
        """The name by which the model knows the function of a call."""
        space, name = call.get("namespace"), str(call.get("name"))
        return told(space, name) if isinstance(space, str) and space else name

    def named(self, name: str) -> dict[str, str]:
        """What a call of a function says it is."""
        if name not in self.spaces:
            return {"name": name}
        space, inner = self.spaces[name]
        return {"name": inner, "namespace": space}

    @property
    def shown_choice(self) -> Any:
        """As the Response shows it."""
        plain = self.choice in ("auto", "none", "required")
        return self.choice if plain else {"type": "function", "name": self.choice}


def told(space: str, name: str) -> str:
    """The name of a function in a namespace, as Codex writes those of MCP servers: mcp__files__read."""
    whole = f"{space.removesuffix('__')}__{name}"
    return whole if len(whole) <= LONGEST else name


def offered(tools: Sequence[Mapping[str, Any]], choice: Any) -> Offered:
    """Raises InvalidParameter, Unsupported."""
    found = Offered()
    for at, tool in enumerate(tools):
        kind = str(tool.get("type", "function"))
        if kind == "function":
            function = _function(tool, f"tools[{at}]")
            found.shown.append({"type": "function", **function})
            _offer(found, function, function["name"])
        elif kind == "namespace":
            _offer_all(found, tool, f"tools[{at}]")
        else:
            found.left_out.add(kind)
    _choose(found, choice)
    return found


def _offer(found: Offered, function: Mapping[str, Any], name: str) -> None:
    about = {key: value for key, value in function.items() if key != "strict" and value is not None}
    found.functions.append({"type": "function", "function": {**about, "name": name}})


def _offer_all(found: Offered, space: Mapping[str, Any], where: str) -> None:
    name, listed = space.get("name"), space.get("tools")
    if not isinstance(name, str) or not isinstance(listed, list):
        raise InvalidParameter(f"{where}: a namespace needs a name and a list of tools")
    inner = []
    for at, tool in enumerate(listed):
        kind = str(tool.get("type", "function")) if isinstance(tool, dict) else ""
        if kind != "function":
            found.left_out.add(kind)
            continue
        function = _function(tool, f"{where}.tools[{at}]")
        inner.append({"type": "function", **function})
        found.spaces[told(name, function["name"])] = (name, function["name"])
        _offer(found, function, told(name, function["name"]))
    about = str(space.get("description") or "")
    found.shown.append({"type": "namespace", "name": name, "description": about, "tools": inner})


def _function(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    inner = tool.get("function", tool)  # as chat completions have it
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise InvalidParameter(f"{where}: a function needs a name")
    return {key: inner.get(key) for key in FIELDS}


def _choose(found: Offered, choice: Any) -> None:
    kind = choice.get("type", "function") if isinstance(choice, Mapping) else "function"
    if kind == "allowed_tools":
        _allow(found, choice)
        choice = choice.get("mode", "auto")
    elif kind != "function":
        raise Unsupported(f"tool_choice: a tool of type {str(kind)[:50]!r} cannot be called here")
    found.choice = wire.choice_of(choice, [each["function"]["name"] for each in found.functions])


def _allow(found: Offered, choice: Mapping[str, Any]) -> None:
    """The model is told of those alone that it may call."""
    listed = choice.get("tools")
    if not isinstance(listed, list):
        raise InvalidParameter("tool_choice: allowed_tools needs a list of tools")
    names = [each.get("name") for each in listed if isinstance(each, dict)]
    found.functions = [each for each in found.functions if each["function"]["name"] in names]
