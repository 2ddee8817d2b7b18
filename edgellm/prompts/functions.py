"""Tool: what a model may call, from a Python function or from a JSON object that describes one.

def weather(city: str, days: int = 1) -> str:
    \"\"\"The weather in a city.

    Args:
        city: Its name.
        days: How many days from today on.
    \"\"\"
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from edgellm.arguments import shown
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.prompts.messages import plain

NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")  # as OpenAI and Anthropic have it, whose names may be as long
MANY = 128  # tools of one answer
SchemaOf = Callable[[Any], Mapping[str, Any]]
"""The JSON Schema of a type."""


@dataclass(frozen=True)
class Tool:
    """A tool by its name. parameters: the JSON Schema of its arguments, an object. function: what it calls, if that is
    here; kinds: the types of its parameters, as far as it says them."""

    name: str
    description: str
    parameters: dict[str, Any]
    function: Callable[..., Any] | None = None
    kinds: Mapping[str, Any] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        """The JSON object by which templates know it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


def tools_of(values: Sequence[Any], schema_of: SchemaOf) -> list[Tool]:
    """Functions and JSON objects as tools. Raises InvalidParameter for what is neither, and for a name twice."""
    if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable):
        raise InvalidParameter("tools: a list of functions or of JSON objects is needed")
    found = [tool_of(value, schema_of, f"tools[{at}]") for at, value in enumerate(values)]
    if len(found) > MANY:
        raise InvalidParameter(f"tools: {len(found)} of them; {MANY} is the most")
    names = [each.name for each in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidParameter(f"tools: {twice!r} comes twice; each needs a name of its own")
    return found


def tool_of(value: Any, schema_of: SchemaOf, where: str = "tool") -> Tool:
    """One of them. where: names it in errors."""
    if isinstance(value, Tool):
        return value
    if isinstance(value, Mapping):
        return _from_object(value, where)
    if callable(value):
        return _from_function(value, schema_of, where)
    raise InvalidParameter(f"{where}: a function or a JSON object is needed, not {type(value).__name__}")


def _named(name: object, where: str) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidParameter(f"{where}: {shown(name)} is no name of a tool: letters, digits, _ and -, 128 at most")
    return name


def _from_object(value: Mapping[str, Any], where: str) -> Tool:
    given = plain(value, where)
    if "function" in given or given.get("type") == "function":
        if given.get("type", "function") != "function":
            raise InvalidParameter(f"{where}: a tool of type {shown(given['type'])}; only functions can be called here")
        given = given.get("function", {key: each for key, each in given.items() if key != "type"})
    if not isinstance(given, dict):
        raise InvalidParameter(f"{where}.function: a JSON object is needed")
    name = _named(given.get("name"), where)
    description = given.get("description")
    description = "" if description is None else description
    if not isinstance(description, str):
        raise InvalidParameter(f"{where}.description: a text is needed")
    parameters = given.get("parameters", given.get("input_schema"))
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    elif isinstance(parameters, dict):  # null stands for what is not there, as clients send all of their fields
        parameters = {key: each for key, each in parameters.items() if each is not None}
    _check_parameters(parameters, f"{where}.parameters")
    return Tool(name, description, parameters)


def _check_parameters(schema: object, where: str) -> None:
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise InvalidParameter(f"{where}: the JSON Schema of an object is needed")
    properties, required = schema.setdefault("properties", {}), schema.get("required", [])
    schema.setdefault("type", "object")
    if not isinstance(properties, dict) or not all(isinstance(each, (dict, bool)) for each in properties.values()):
        raise InvalidParameter(f"{where}.properties: a JSON object of schemas is needed")
    if not isinstance(required, list) or not all(isinstance(each, str) for each in required):
        raise InvalidParameter(f"{where}.required: a list of names is needed")


def _from_function(function: Callable[..., Any], schema_of: SchemaOf, where: str) -> Tool:
    inner = function
    while hasattr(inner, "func"):  # functools.partial
        inner = inner.func
    named = _named(getattr(inner, "__name__", type(inner).__name__), where)
    try:
        signature = inspect.signature(function)
        hints = get_type_hints(inner if inspect.isroutine(inner) else type(inner).__call__, include_extras=True)
    except Exception as error:  # names that are not there, and whatever else evaluating annotations raises
        raise InvalidParameter(f"{where}: the signature of {named} cannot be read: {error}") from error
    description, about = documented(inspect.getdoc(inner) or "")
    parameters: dict[str, Any] = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            parameters["additionalProperties"] = True
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise InvalidParameter(f"{where}: {named}: {name!r} cannot be given by its name, as tools are called")
        else:
            at = f"{where}: {named}: {name}"
            schema = _property(parameter, hints.get(name, Any), about.get(name), schema_of, at)
            _add_definitions(parameters, schema.pop("$defs", {}), at)
            parameters["properties"][name] = schema
            if parameter.default is parameter.empty:
                parameters["required"].append(name)
    if not parameters["required"]:
        del parameters["required"]
    kinds = {name: hints[name] for name in signature.parameters if hints.get(name, Any) is not Any}
    return Tool(named, description, parameters, function, kinds)


def _add_definitions(parameters: dict[str, Any], definitions: Mapping[str, Any], where: str) -> None:
    """What the schema of a parameter refers to stands at the top of all of them."""
    known = parameters.setdefault("$defs", {}) if definitions else {}
    for name, definition in definitions.items():
        if known.setdefault(name, definition) != definition:
            raise InvalidParameter(f"{where}: there are two types with the name {name}; give them names of their own")


def _property(
    parameter: inspect.Parameter, hint: Any, about: str | None, schema_of: SchemaOf, where: str
) -> dict[str, Any]:
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        about = next((note for note in notes if isinstance(note, str)), about)
    try:
        schema = {} if hint is Any else dict(schema_of(hint))
    except (InvalidParameter, Unsupported) as error:
        raise type(error)(f"{where}: {error}") from error
    if about:
        schema.setdefault("description", about)
    default = parameter.default
    if default is not parameter.empty and default is not None:
        with suppress(TypeError, ValueError):  # what JSON cannot say is not told
            schema.setdefault("default", json.loads(json.dumps(default, allow_nan=False)))
    return schema


_SECTION = re.compile(r"^(Args|Arguments|Parameters|Params|Other Parameters|Keyword Args):?\s*$")
_OTHER = re.compile(
    r"^(Returns?|Yields?|Raises|Examples?|Notes?|See Also|References|Warnings?|Attributes|Todo|Warns):?\s*$"
)
_FIELD = re.compile(r"^[:@](?:param|parameter|arg|argument|key|keyword)\s+(?:[^:]*?\s)?\*{0,2}(\w+)\s*:\s*(.*)$")
_ANY_FIELD = re.compile(r"^[:@]\w+.*?:")
_GOOGLE = re.compile(r"^\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")
_NUMPY = re.compile(r"^\*{0,2}(\w+(?:\s*,\s*\*{0,2}\w+)*)\s*(?::.*)?$")


def documented(text: str) -> tuple[str, dict[str, str]]:
    """What a docstring says of a function, and of each of its parameters: in the style of Google, NumPy, Sphinx or
    Epytext."""
    lines, about = text.splitlines(), dict[str, str]()
    said: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at].strip()
        underlined = at + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[at + 1].strip()) is not None
        if _SECTION.match(line) or _OTHER.match(line):
            stop = _section_end(lines, at + 1 + underlined, underlined)
            if _SECTION.match(line):
                about.update(_entries(lines[at + 1 + underlined : stop], _NUMPY if underlined else _GOOGLE))
            at = stop
            continue
        if _ANY_FIELD.match(line):
            stop = at + 1
            while stop < len(lines) and lines[stop].strip() and not _ANY_FIELD.match(lines[stop].strip()):
                stop += 1
            match = _FIELD.match(line)
            if match:
                about[match[1]] = " ".join([match[2], *(each.strip() for each in lines[at + 1 : stop])]).strip()
            at = stop
            continue
        said.append(lines[at])
        at += 1
    return "\n".join(said).strip(), about


def _section_end(lines: list[str], at: int, underlined: bool) -> int:
    """Where a section ends: at the next heading, or at text that is not indented."""
    while at < len(lines):
        line = lines[at]
        heading = _SECTION.match(line.strip()) or _OTHER.match(line.strip())
        if heading or (line.strip() and not line[:1].isspace() and (not underlined or _FIELD.match(line))):
            break
        at += 1
    return at


def _entries(lines: list[str], pattern: re.Pattern[str]) -> dict[str, str]:
    """Names and what is said of them: each at the smallest indent, what is said further in goes on."""
    filled = [line for line in lines if line.strip()]
    margin = min((len(line) - len(line.lstrip()) for line in filled), default=0)
    found, names = dict[str, list[str]](), list[str]()
    for line in filled:
        match = pattern.match(line.strip()) if len(line) - len(line.lstrip()) == margin else None
        if match:
            names = [name.strip().lstrip("*") for name in match[1].split(",")]
            found.update((name, [match[2]] if pattern is _GOOGLE else []) for name in names)
        else:
            for name in names:
                found[name].append(line.strip())
    return {name: " ".join(said).strip() for name, said in found.items()}
