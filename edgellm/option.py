"""An option, said once: default, rule and meaning are the metadata of its field in a dataclass.

`Params` checks the values by them, `of_options` adds them to the docstring, and the command line makes its flags and
`edgellm help options` of them. None stands for an option's default, everywhere.
"""

from __future__ import annotations

import copy
import json
import math
import os
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from edgellm.arguments import instance, is_int, is_real, path, refuse, shown, text, token_id, utf8_file
from edgellm.errors import InvalidParameter

P = TypeVar("P", bound="Params")
LARGEST = 2**63 - 1  # of the engines' integers


class Rule:
    """What the value of an option must be; `str` says it.

    metavar: what stands for the value behind a flag.
    gather: makes the value from a tuple of what the repeated flag gave; None where a flag gives the value.
    """

    metavar = ""
    gather: Callable[[tuple[Any, ...]], Any] | None = None

    def holds(self, value: Any) -> bool:
        raise NotImplementedError

    def kept(self, name: str, value: Any) -> Any:
        """`value` as option `name` keeps it. Raises InvalidParameter."""
        if not self.holds(value):
            raise refuse(name, value, str(self))
        return value

    def read(self, word: str) -> Any:
        """What a word of the command line stands for. Raises ValueError; InvalidParameter, if it is known why."""
        raise NotImplementedError


@dataclass(frozen=True)
class Whole(Rule):
    """A whole number from `low` to `high`, both included, in steps of `step`."""

    low: int
    high: int = LARGEST
    unit: str = ""
    step: int = 1
    metavar = "N"

    def __str__(self) -> str:
        what = "a whole number" if self.step == 1 else f"a multiple of {self.step}"
        what += f" of {self.unit}" if self.unit else ""
        if self.high == LARGEST:
            return f"{what}, at least {self.low}"
        power = f"2**{self.high.bit_length()} - 1"
        return f"{what} between {self.low} and {power if self.high >= 2**31 - 1 else self.high}"

    def holds(self, value: Any) -> bool:
        return is_int(value) and self.low <= value <= self.high and value % self.step == 0

    def read(self, word: str) -> int:
        return int(word)


@dataclass(frozen=True)
class Real(Rule):
    """A finite number from `low` to `high`, both included; `above`: but not `low` itself."""

    low: float
    high: float = math.inf
    unit: str = ""
    above: bool = False
    metavar = "X"

    def __str__(self) -> str:
        what = f"a number of {self.unit}" if self.unit else "a number"
        if self.above:
            return f"{what} above {self.low}"
        return f"{what}, at least {self.low}" if self.high == math.inf else f"{what} between {self.low} and {self.high}"

    def holds(self, value: Any) -> bool:
        return is_real(value) and self.low <= value <= self.high and not (self.above and value == self.low)

    def read(self, word: str) -> float:
        return float(word)


@dataclass(frozen=True)
class Auto(Rule):
    """The word auto, or what `rule` says."""

    rule: Rule

    def __post_init__(self) -> None:
        object.__setattr__(self, "metavar", f"{self.rule.metavar}|auto")

    def __str__(self) -> str:
        return f'"auto" or {self.rule}'

    def holds(self, value: Any) -> bool:
        return (isinstance(value, str) and value == "auto") or self.rule.holds(value)

    def read(self, word: str) -> Any:
        return word if word == "auto" else self.rule.read(word)


@dataclass(frozen=True)
class Choice(Rule):
    """One of `choices`, in its type as well; `unlisted` ones are taken and not offered."""

    choices: tuple[Any, ...]
    unlisted: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "metavar", f"[{'|'.join(map(str, self.choices))}]")

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.choices))}"

    def holds(self, value: Any) -> bool:
        return any(isinstance(value, type(each)) and value == each for each in self.choices + self.unlisted)

    def read(self, word: str) -> Any:
        if word not in self.choices + self.unlisted:
            raise ValueError(word)
        return word


class Flag(Rule):
    """On or off."""

    def __str__(self) -> str:
        return "True or False"

    def holds(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Strings(Rule):
    """Non-empty strings of at most `longest` characters, `least` of them; one alone counts as a list of one."""

    longest: int = LARGEST
    least: int = 0
    metavar = "TEXT"
    gather = tuple

    def __str__(self) -> str:
        limit = "" if self.longest == LARGEST else f" of at most {self.longest} characters"
        return f"non-empty strings{limit}{f', at least {self.least}' if self.least else ''}"

    def kept(self, name: str, value: Any) -> tuple[str, ...]:
        try:
            items = (value,) if isinstance(value, str) else tuple(value)
        except TypeError:
            raise refuse(name, value, str(self)) from None
        if len(items) < self.least:
            raise refuse(name, value, str(self))
        for item in items:
            if not (isinstance(item, str) and 0 < len(item) <= self.longest):
                raise refuse(name, item, str(self))
        return tuple(text(name, item) for item in items)

    def read(self, word: str) -> str:
        return word


@dataclass(frozen=True)
class Text(Rule):
    """A text that is not empty; on the command line, of a file if `file`."""

    file: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "metavar", "FILE" if self.file else "TEXT")

    def __str__(self) -> str:
        return "a text that is not empty"

    def kept(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise refuse(name, value, str(self))
        return text(name, value)

    def read(self, word: str) -> str:
        return utf8_file("file", Path(word)).decode("utf-8") if self.file else word


class Schema(Rule):
    """A JSON Schema, or a class that stands for one; on the command line a file."""

    metavar = "FILE"

    def __str__(self) -> str:
        return "a JSON Schema as a dict, a pydantic model, a dataclass or a TypedDict"

    def holds(self, value: Any) -> bool:
        return isinstance(value, (Mapping, bool, type))

    def kept(self, name: str, value: Any) -> Any:
        """A copy, so that nobody changes the options of a generation that has begun."""
        value = super().kept(name, value)
        try:
            return copy.deepcopy(dict(value)) if isinstance(value, Mapping) else value
        except (TypeError, ValueError, RecursionError) as error:
            raise refuse(name, value, f"plain JSON ({error})") from None

    def read(self, word: str) -> Any:
        try:
            return json.loads(utf8_file("file", Path(word)))
        except (ValueError, RecursionError) as error:
            if isinstance(error, InvalidParameter):
                raise
            raise InvalidParameter(f"file {word}: not JSON: {error}") from None


class Biases(Rule):
    """Token ids mapped to what is added to their logits."""

    metavar = "ID=BIAS"
    gather = dict

    def __str__(self) -> str:
        return "token ids mapped to numbers (-inf forbids a token)"

    def kept(self, name: str, value: Any) -> dict[int, float]:
        """A copy, so that nobody changes the options of a generation that has begun."""
        if not isinstance(value, Mapping):
            raise refuse(name, value, str(self))
        biases = {}
        for token, bias in value.items():
            if not is_real(bias) and not (isinstance(bias, float) and bias == -math.inf):
                raise refuse(f"{name}[{shown(token)}]", bias, "a number (-inf forbids a token)")
            biases[token_id(name, token)] = float(bias)
        return biases

    def read(self, word: str) -> tuple[int, float]:
        token, _, bias = word.partition("=")
        return int(token), float(bias)


class Adapters(Rule):
    """Adapters, each a path or (path, scale), in a list, or by the names that requests have for them; in a list the
    name is the file's, without its ending."""

    metavar = "PATH[=SCALE]"
    gather = tuple

    def __str__(self) -> str:
        return "paths of adapters, or pairs of a path and a number, in a list, or in a dict by name"

    def kept(self, name: str, value: Any) -> tuple[tuple[str, str, float], ...]:
        """(name, path, scale) of each."""
        if isinstance(value, (str, os.PathLike)):
            value = [value]
        if not isinstance(value, (list, tuple, Mapping)):
            raise refuse(name, value, str(self))
        listed = value.items() if isinstance(value, Mapping) else [(None, each) for each in value]
        found: dict[str, tuple[str, str, float]] = {}
        for called, each in listed:
            parts = each if isinstance(each, tuple) else (each,)
            if len(parts) == 3 and isinstance(parts[0], str):  # as this keeps them
                called, parts = parts[0], parts[1:]
            scale = parts[1] if len(parts) == 2 else 1.0
            if not 1 <= len(parts) <= 2 or not is_real(scale):
                raise refuse(name, each, str(self))
            where = path(name, parts[0])
            called = text(name, where.name.removesuffix(".gguf") if called is None else called)
            if not called or called in found:
                raise refuse(name, each, "of a name that no other one has; give a dict to name them")
            found[called] = called, str(where), float(scale)
        return tuple(found.values())

    def read(self, word: str) -> Any:
        where, equals, scale = word.rpartition("=")
        return (where, float(scale)) if equals and not Path(word).exists() else (word, 1.0)


@dataclass(frozen=True)
class Kind(Rule):
    """An object of a class."""

    kind: type

    def __str__(self) -> str:
        return f"a {self.kind.__name__}"

    def holds(self, value: Any) -> bool:
        return isinstance(value, self.kind)


@dataclass(frozen=True)
class Option:
    """One option, as its field's metadata has it.

    help: its meaning, with the unit; no full stop behind it.
    unset: what None does, where that is the default.
    section: of the help page; "" where the command line has no flag of this name.
    spelling: of that flag, where it is not the name's.
    """

    name: str
    default: Any
    rule: Rule
    help: str
    unset: str = ""
    section: str = ""
    spelling: str = ""

    @property
    def flag(self) -> str:
        """--max-tokens for max_tokens."""
        return "--" + (self.spelling or self.name.replace("_", "-"))

    @property
    def meaning(self) -> str:
        """A sentence: what it does, and its default unless that is to do nothing."""
        default = f": {self.unset}" if self.unset else _spelled(self.default)
        return f"{self.help}; default{default}." if default else f"{self.help}."

    @property
    def explained(self) -> str:
        """Its meaning and its rule, as sentences."""
        rule = str(self.rule)
        return f"{self.meaning} {rule[0].upper()}{rule[1:]}."


def option(default: Any, rule: Rule, help: str, *, unset: str = "", section: str = "", spelling: str = "") -> Any:
    """A field of a dataclass that is an option; an empty dict as default is made anew. What may be a dict is not
    hashed."""
    about = {"option": Option("", default, rule, help, unset, section, spelling)}
    if default == {}:
        return field(default_factory=dict, hash=False, metadata=about)
    return field(default=default, hash=False if isinstance(rule, Schema) else None, metadata=about)


@dataclass(frozen=True, slots=True)
class Params:
    """The base of a frozen dataclass whose fields are options; `of_options` decorates it."""

    OPTIONS: ClassVar[Mapping[str, Option]] = {}

    def __post_init__(self) -> None:
        for name, each in self.OPTIONS.items():
            value = getattr(self, name)
            if value is None:
                value = each.default
            object.__setattr__(self, name, value if value is None else each.rule.kept(name, value))


def of_options(kind: type[P]) -> type[P]:
    """A decorator: the options of the fields by name, and behind the docstring."""
    kind.OPTIONS = {each.name: replace(each.metadata["option"], name=each.name) for each in fields(kind)}
    said = [f"{name}: {each.explained}" for name, each in kind.OPTIONS.items()]
    paragraphs = [textwrap.fill(each, 100, subsequent_indent="    ", break_on_hyphens=False) for each in said]
    kind.__doc__ = "\n".join([f"{kind.__doc__}\n", *paragraphs])
    return kind


def build(kind: type[P], options: Mapping[str, Any], base: P | None = None) -> P:
    """A params object from keyword options, on top of `base` if given.

    Raises InvalidParameter; for an unknown name it lists the known ones.
    """
    unknown = [name for name in options if name not in kind.OPTIONS]
    if unknown:
        raise InvalidParameter(f"unknown option {unknown[0]!r}; {kind.__name__} has: {', '.join(kind.OPTIONS)}")
    if base is None:
        return kind(**options)
    instance("params", base, kind, "; give single options as keywords")
    return replace(base, **options) if options else base


def _spelled(value: Any) -> str:
    """A default behind a space; nothing for None, False and what is empty."""
    if isinstance(value, tuple):
        return "".join(f" {json.dumps(item)}" for item in value)
    if isinstance(value, (str, int, float)) and value is not False:
        return f" {value:g}" if isinstance(value, float) else f" {value}"
    return ""
