"""The user's settings: `config.toml` in the state folder, which people write and edgellm reads.

model = "small"              what `edgellm run` runs when it is given none
keep = true                  conversations and what was typed are kept; by default they are not

[aliases]                    other names of models, wherever a model is named
small = "smollm2:135m"

[presets.translator]         what `edgellm run translator` runs: a model, a system prompt, options of `run`
model = "small"
system = "Translate into French."
temperature = 0
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm.errors import InvalidParameter
from edgellm.files import read_file
from edgellm.home import home

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

TABLES = ("aliases", "presets")


@dataclass(frozen=True, slots=True)
class Preset:
    """A model and options of `run` by their names, a system prompt among them; both are optional."""

    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Config:
    """What config.toml says; the defaults stand for what it leaves out, and for a file that is not there."""

    model: str | None = None
    keep: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    presets: Mapping[str, Preset] = field(default_factory=dict)

    def names(self) -> dict[str, str]:
        """The aliases and presets, and what each of them is."""
        aliases = {name: f"alias of {model}" for name, model in self.aliases.items()}
        models = {name: preset.model or self.model for name, preset in self.presets.items()}
        return aliases | {name: f"preset of {model}" if model else "preset" for name, model in models.items()}

    def named(self, model: str) -> str:
        """What an alias stands for, or the name itself. Raises InvalidParameter for aliases that go in a circle."""
        seen = [model]
        while (model := self.aliases.get(model, model)) not in seen:
            seen.append(model)
        if model != seen[-1]:
            raise InvalidParameter(f"{config_path()}: the aliases {' → '.join([*seen, model])} go in a circle")
        return model


def config_path() -> Path:
    """Where the file is looked for."""
    return home("config.toml")


def read_config() -> Config:
    """The settings. Raises InvalidParameter, with the place, for a file that cannot be read or says what none means."""
    path = config_path()
    try:
        table = tomllib.loads(read_file(path).decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return Config()
    except OSError as error:
        raise InvalidParameter(f"{path}: cannot be read: {error.strerror or error}; mend it or remove it") from error
    except ValueError as error:
        raise InvalidParameter(f"{path}: {error}; mend it or remove it") from error
    try:
        return _config(table)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidParameter(f"{path}: {error}") from None


def _config(table: dict[str, Any]) -> Config:
    tables = {name: dict(_take(table, name, dict, f"is not a table: write [{name}]") or {}) for name in TABLES}
    aliases, presets = tables["aliases"], {}
    for name in list(tables["presets"]):
        preset = dict(_take(tables["presets"], name, dict, f"is not a table: write [presets.{name}]", "presets."))
        presets[name] = Preset(_take(preset, "model", str, "is not a text in quotes", f"presets.{name}."), preset)
    for name, model in aliases.items():
        if not isinstance(model, str) or not model:
            raise ValueError(f"aliases.{name} is not the name of a model, in quotes")
    model, keep = _take(table, "model", str, "is not a text in quotes"), _take(table, "keep", bool, "is true or false")
    if table:
        raise ValueError(f"{next(iter(table))!r} is no setting; there are model, keep, aliases and presets")
    return Config(model, bool(keep), aliases, presets)


def _take(table: dict[str, Any], name: str, kind: type, rule: str, where: str = "") -> Any:
    """A setting, taken out of its table; None where it is not. ValueError for one that is not of its kind."""
    found = table.pop(name, None)
    if found is not None and not isinstance(found, kind):
        raise ValueError(f"{where}{name} {rule}")
    return found
