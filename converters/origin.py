"""Origin: whose model it is, and what of it goes into whatever it becomes.

GGUF      general.*  and  edgellm.origin.{files,texts,name_or_path}
folders   README.md, LICENSE ..., config.json's _name_or_path, and general.* in the metadata of the weights (GENERAL)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm.formats.confined import file_in, model_name
from edgellm.formats.origin import GENERAL, as_plain, base_models, card_of, general_of, of_card, parse_general

CARD = "README.md"
_FILES = re.compile(r"README\.md|(?:LICEN[CS]E|NOTICE|COPYING|USE_POLICY)(?:[.-][\w-]{1,32})?", re.IGNORECASE)
_LARGEST, _MOST = 256 << 10, 16  # bytes of such a file, and how many
_KEY = "edgellm.origin."
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Origin:
    """general: general.* keys. texts: the card and the licence, by file name. name_or_path: config.json's, where it
    names a repository (paths are somebody's own business)."""

    general: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    name_or_path: str | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """The key-values of a GGUF file."""
        made = dict(self.general)
        if self.texts:
            made |= {f"{_KEY}files": list(self.texts), f"{_KEY}texts": list(self.texts.values())}
        if self.name_or_path:
            made[f"{_KEY}name_or_path"] = self.name_or_path
        return made

    @property
    def files(self) -> dict[str, bytes]:
        """The files of a folder: those that there were, and a card if there was none."""
        texts = {CARD: card_of(self.general), **self.texts} if self.general else self.texts
        return {name: text.encode("utf-8", "replace") for name, text in texts.items()}

    @property
    def config(self) -> dict[str, str]:
        """What config.json says."""
        return {"_name_or_path": self.name_or_path} if self.name_or_path else {}

    @property
    def record(self) -> dict[str, str]:
        """The metadata of a folder's weights."""
        return {GENERAL: json.dumps(self.general)} if self.general else {}


def in_metadata(metadata: Mapping[str, Any]) -> Origin:
    """What the key-values of a GGUF file say."""
    given = metadata.get(f"{_KEY}name_or_path")
    return Origin(general_of(metadata), _texts_in(metadata), given if _is_repository(given) else None)


def beside(folder: Path, config: Mapping[str, Any], embedded: Mapping[str, str]) -> Origin:
    """What a folder says: in its card, in config.json, and in the metadata of its weights."""
    texts = _texts_beside(folder)
    said = config.get("_name_or_path")
    repository = str(said) if _is_repository(said) else None
    general = _merged(parse_general(embedded.get(GENERAL, "{}")), of_card(texts.get(CARD, "")))
    if repository and folder.resolve().parent.name != "snapshots":  # of which the folder tells the repository
        general.setdefault("general.name", repository.rpartition("/")[2])
    general.setdefault("general.name", model_name(folder))
    return Origin(general, texts, repository)


def _merged(embedded: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, Any]:
    """Both; where they differ in the licence or the base models, the card: it is what people edit."""
    made = {**card, **embedded}
    for group, differs in (
        ("general.license", any(embedded.get(key) != card[key] for key in card if key.startswith("general.license"))),
        ("general.base_model.", bool(base_models(card)) and base_models(card) != base_models(embedded)),
    ):
        if differs:
            made = {key: value for key, value in made.items() if not key.startswith(group)}
            made |= {key: value for key, value in card.items() if key.startswith(group)}
    return made


def _is_repository(value: object) -> bool:
    return isinstance(value, str) and _REPOSITORY.fullmatch(value) is not None


def _texts_beside(folder: Path) -> dict[str, str]:
    found = {}
    for name in sorted(path.name for path in folder.iterdir() if _FILES.fullmatch(path.name))[:_MOST]:
        path = file_in(folder, name)
        if path.is_file() and path.stat().st_size <= _LARGEST:
            found[CARD if name.lower() == CARD.lower() else name] = path.read_bytes().decode("utf-8", "replace")
    return found


def _texts_in(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Names that are not those of such files are somebody else's idea, and no file gets them."""
    names, texts = (as_plain(metadata.get(f"{_KEY}{key}")) for key in ("files", "texts"))
    if not isinstance(names, list) or not isinstance(texts, list) or len(names) != len(texts):
        return {}
    pairs = zip(names[:_MOST], texts, strict=False)
    return {
        name: text
        for name, text in pairs
        if isinstance(name, str) and isinstance(text, str) and _FILES.fullmatch(name) and len(text) <= _LARGEST
    }
