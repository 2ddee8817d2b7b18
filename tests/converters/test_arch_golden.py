"""Every key and the hash of every tensor of one seeded model per architecture, as recorded in golden/.

After a change on purpose: EDGELLM_GOLDEN=write pytest tests/converters/test_arch_golden.py, and read the difference.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_models import CONFIGS, checkpoint, convert

from edgellm.architectures.config import shortest
from edgellm.formats.gguf import GGUFFile

GOLDEN = Path(__file__).parent / "golden"
NAMES = [name for name in CONFIGS if "-" not in name or name == "phi3-longrope"]


def _plain(value: Any) -> Any:
    return shortest(value) if isinstance(value, float) else value.tolist() if isinstance(value, np.ndarray) else value


def _described(path: Path) -> dict[str, Any]:
    with GGUFFile.open(path) as file:
        texts = ("tokens", "token_type", "merges")
        keys = [key for key in file.metadata if key.rpartition(".")[2] not in texts]
        return {
            "keys": {key: [file.kind(key), _plain(file.metadata[key])] for key in keys},
            "tensors": {
                name: [list(info.shape), hashlib.sha256(file.data(name).tobytes()).hexdigest()[:16]]
                for name, info in file.tensors.items()
            },
        }


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str, tmp_path: Path) -> None:
    found = _described(convert(CONFIGS[name], checkpoint(CONFIGS[name]), tmp_path / "tiny.gguf"))
    recorded = GOLDEN / f"{name}.json"
    if os.environ.get("EDGELLM_GOLDEN") == "write":
        lines = [f'"{part}": {{\n' + ",\n".join(_line(*item) for item in found[part].items()) + "\n}" for part in found]
        recorded.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    expected = json.loads(recorded.read_text(encoding="utf-8"))
    assert found["keys"] == expected["keys"]
    assert list(found["tensors"].items()) == list(expected["tensors"].items())


def _line(key: str, value: Any) -> str:
    return f"{json.dumps(key)}: {json.dumps(value)}"
