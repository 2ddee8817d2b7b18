"""unknown: what to say of a checkpoint whose family is not known: which known one is nearest, and what differs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from ..errors import InvalidModelFile, Unsupported
from .architecture import Architecture
from .table import Either, Weight

_SHOWN = 6


class _Difference(NamedTuple):
    """shared: tensors that both have; missing: that the family has and the checkpoint has not; more: the contrary.
    keys: why its numbers cannot be read as the family's, None where they can."""

    shared: int
    missing: list[str]
    more: list[str]
    keys: str | None


def unknown(values: Mapping[str, Any], names: Collection[str], known: Iterable[Architecture]) -> str:
    """The message for a config.json of a family that is not among the known ones. names: its tensors, none: of which
    nothing is known."""
    families = {one.model_type: one for one in known if one.fits(values)}
    text = values.get("text_config")
    compared = text if isinstance(text, dict) else values
    differences = {name: _difference(compared, names, one) for name, one in families.items()}
    name = min(differences, key=lambda each: _distance(differences[each]))
    found = differences[name]
    said = [found.keys] if found.keys else []
    said += [f"tensors that it does not have: {_listed(found.more)}"] if found.more else []
    said += [f"tensors that only it has: {_listed(found.missing)}"] if found.missing else []
    what = f"nearest is {name}, but {'; '.join(said)}"
    if names and not found.shared:
        what = "none that can be is near it"
    elif not said:
        both = " and tensors" if names else ""
        what = f"its keys{both} are those of {name}: if it computes the same, that is its name"
    return (
        f"config.json: model_type {str(values.get('model_type'))[:64]!r} cannot be converted; {what}. Other ways: a "
        "GGUF file of the model, which llama.cpp may run as it is, or --to onnx --exporter optimum. These can be "
        "converted: " + ", ".join(sorted(families))
    )


def _distance(found: _Difference) -> tuple[int, int]:
    """Tensors first; of families that differ in as many, the one whose keys are read, or all but a few."""
    unread = 0 if found.keys is None else 1 + found.keys.count(",") if found.keys.startswith("unknown keys") else 99
    return len(found.missing) + len(found.more), unread


def _difference(values: Mapping[str, Any], names: Collection[str], family: Architecture) -> _Difference:
    keys = None
    try:
        family.hyper_from_config({**values, "model_type": family.model_type})
    except (InvalidModelFile, Unsupported) as error:
        keys = str(error).removeprefix("config.json: ").split(";")[0]
    if not names:
        return _Difference(0, [], [], keys)
    there = {_form(name) for name in names if not family.skips(name)}
    usual, possible = _forms(family, names, there)
    return _Difference(len(usual & there), sorted(usual - there), sorted(there - usual - possible), keys)


def _forms(family: Architecture, names: Collection[str], there: Collection[str]) -> tuple[set[str], set[str]]:
    """The tensors that the family always has, and those that it may have, with {i} and {e} for numbers."""
    usual: set[str] = set()
    possible: set[str] = set()
    prefix = family.prefix(names)
    for line in (*family.before, *family.layer, *family.after):
        ways = (line.usual, line.other) if isinstance(line, Either) else ((line,),)
        spelled = [[(one, _form(name.replace("{m}", prefix))) for one in way for name, _ in one.hf] for way in ways]
        chosen = next((way for way in reversed(spelled) if any(form in there for _, form in way)), spelled[0])
        for one, form in chosen:
            (possible if _may_lack(one) else usual).add(form)
    return usual, possible


def _may_lack(line: Weight) -> bool:
    return line.optional or line.untied


def _form(name: str) -> str:
    """ "layers.3.experts.1.up" and "layers.{i}.experts.{e}.up" as "layers.*.experts.*.up"."""
    return re.sub(r"\.(\d+|\{[ie]\})(?=\.)", ".*", name)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
