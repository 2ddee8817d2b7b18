"""Every key and every tensor of one seeded model per architecture: the digests in `arch_models.GOLDEN`.

They change when a file that edgellm writes does. What it is that changed: EDGELLM_GOLDEN=FOLDER writes the keys and the
hash of every tensor into a file per model; write one folder before the change and one after it, and compare them.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_models import CONFIGS, GOLDEN, checkpoint, convert

from edgellm.architectures.config import shortest
from edgellm.formats.gguf import GGUFFile

NAMES = [name for name in CONFIGS if "-" not in name or name == "phi3-longrope"]


def _plain(value: Any) -> Any:
    return shortest(value) if isinstance(value, float) else value.tolist() if isinstance(value, np.ndarray) else value


def _described(path: Path) -> tuple[str, str]:
    """A line for each key without the vocabulary's texts, and a line for each tensor in file order."""
    with GGUFFile.open(path) as file:
        texts = ("tokens", "token_type", "merges")
        keys = [key for key in file.metadata if key.rpartition(".")[2] not in texts]
        return (
            "".join(f"{key} {file.kind(key)} {json.dumps(_plain(file.metadata[key]))}\n" for key in sorted(keys)),
            "".join(f"{name} {info.shape} {_digest(file.data(name))}\n" for name, info in file.tensors.items()),
        )


def _digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str, tmp_path: Path) -> None:
    keys, tensors = _described(convert(CONFIGS[name], checkpoint(CONFIGS[name]), tmp_path / "tiny.gguf"))
    if folder := os.environ.get("EDGELLM_GOLDEN"):
        (Path(folder) / f"{name}.txt").write_text(keys + tensors, encoding="utf-8")
    found = f"{_digest(keys.encode())} {_digest(tensors.encode())}"
    how = "(of its keys, of its tensors); compare with what EDGELLM_GOLDEN=FOLDER writes on the commit before"
    assert found == GOLDEN.get(name), f"{name} has other digests {how}:\n{keys}{tensors}"
