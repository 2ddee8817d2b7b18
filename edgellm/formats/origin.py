"""Whose model it is: what the general.* keys of a GGUF file and the front matter of a model card say.

    general.name, general.license, general.license.name, general.license.link,
    general.base_model.count, general.base_model.0.name, .organization, .repo_url ...

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

GENERAL = "edgellm.general"  # metadata of an ONNX graph and of safetensors files: these keys as a JSON object
MOST_BASES = 64
_HUB = "https://huggingface.co/"
_TEXTS = {"model_name": "name", "license": "license", "license_name": "license.name", "license_link": "license.link"}
_LISTS = {"language": "languages", "tags": "tags"}  # keys of a model card's front matter and of general.*
_NO_ORIGIN = {
    f"general.{key}" for key in ("architecture", "type", "file_type", "quantization_version", "alignment", "size_label")
}


def general_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The general.* keys of a GGUF file that say whose it is, with strings, numbers and lists of strings as values."""
    found: dict[str, Any] = {}
    for key, value in metadata.items():
        if key.startswith("general.") and key not in _NO_ORIGIN:
            plain = as_plain(value)
            strings = isinstance(plain, list) and all(isinstance(each, str) for each in plain)
            if isinstance(plain, (str, int, float)) or strings:
                found[key] = plain
    return found


def as_plain(value: Any) -> Any:
    """A value of a GGUF file as JSON has it: arrays as lists, their strings decoded."""
    if isinstance(value, (str, bytes)):
        return value
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Sequence):
        return [each.decode("utf-8", "replace") if isinstance(each, bytes) else each for each in value]
    return value


def parse_general(text: str) -> dict[str, Any]:
    """The keys that `GENERAL` holds; {} where it holds something else."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return general_of(values) if isinstance(values, dict) else {}


def licence(general: Mapping[str, Any]) -> str | None:
    """One line: "apache-2.0", "Llama 3.2 (https://...)"; None where nothing is stated."""
    kind, name, link = (_text(general.get(f"general.license{part}")) for part in ("", ".name", ".link"))
    stated = name if name and kind in ("", "other") else kind
    if stated and link:
        return f"{stated} ({link})"
    return stated or link or None


def base_models(general: Mapping[str, Any]) -> tuple[str, ...]:
    """What it was made from: "ORG/NAME", a name, or an address."""
    count = general.get("general.base_model.count", 0)
    found = []
    for i in range(min(count, MOST_BASES) if isinstance(count, int) else 0):
        organization, name, link = (
            _text(general.get(f"general.base_model.{i}.{part}")) for part in ("organization", "name", "repo_url")
        )
        if link.startswith(_HUB):
            found.append(link.removeprefix(_HUB))
        elif name or link:
            found.append(f"{organization}/{name}" if organization and name else name or link)
    return tuple(found)


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def of_card(text: str) -> dict[str, Any]:
    """The general.* keys that the front matter of a README says."""
    front = front_matter(text)
    found: dict[str, Any] = {}
    for key, ours in _TEXTS.items():
        if isinstance(value := front.get(key), str) and value:
            found[f"general.{ours}"] = value
    for key, ours in _LISTS.items():
        if values := _listed(front.get(key)):
            found[f"general.{ours}"] = values
    bases = _listed(front.get("base_model"))[:MOST_BASES]
    if bases:
        found["general.base_model.count"] = len(bases)
    for i, base in enumerate(bases):
        organization, _, name = base.rpartition("/")
        found[f"general.base_model.{i}.name"] = name
        if organization and "/" not in organization:
            found[f"general.base_model.{i}.organization"] = organization
            found[f"general.base_model.{i}.repo_url"] = _HUB + base
    return found


def card_of(general: Mapping[str, Any]) -> str:
    """A README that says what the keys say."""
    front = {key: general.get(f"general.{ours}") for key, ours in _TEXTS.items()}
    front["base_model"] = list(base_models(general))
    front |= {key: general.get(f"general.{ours}") for key, ours in _LISTS.items()}
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items() if value]
    title = _text(general.get("general.name")) or "Model"
    described = _text(general.get("general.description"))
    return "\n".join(["---", *lines, "---", "", f"# {title}", "", *([described, ""] if described else [])])


def front_matter(text: str) -> dict[str, str | list[str]]:
    """The strings and lists of strings at the top level of a README's front matter; other YAML is passed over."""
    matched = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", text, re.DOTALL)
    found: dict[str, str | list[str]] = {}
    listing: list[str] | None = None
    for line in matched[1].splitlines() if matched else ():
        if listing is not None and (item := re.fullmatch(r"\s*-\s+(.*)", line)):
            listing.append(_scalar(item[1]))
            continue
        listing = None
        if not (pair := re.fullmatch(r"([\w-]+):(?:\s+(.*))?", line)):
            continue
        key, value = pair[1], (pair[2] or "").strip()
        if not value or value.startswith("#"):
            found[key] = listing = []
        elif value.startswith("["):
            parts = re.findall(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|[^\s,\[\]][^,\]]*', value)
            found[key] = [_scalar(part) for part in parts]
        else:
            found[key] = _scalar(value)
    return found


def _scalar(value: str) -> str:
    """A YAML scalar as text, without its quotes or the comment behind it."""
    value = value.strip()
    if value.startswith('"'):
        try:
            quoted = json.JSONDecoder().raw_decode(value)[0]
            return str(quoted)
        except ValueError:
            return value.strip('"')
    if value.startswith("'"):
        return value[1:].partition("'")[0]
    return re.split(r"\s#", value)[0].strip()


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else [each for each in value or () if each]
