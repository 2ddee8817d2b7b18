from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Running, running

from edgellm.converters import ConvertParams, convert


@pytest.fixture(scope="package")
def minilm(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 as a GGUF file."""
    path = tmp_path_factory.mktemp("served") / "minilm.gguf"
    convert(minilm_folder, path, ConvertParams(quant="q8_0"))
    return path


@pytest.fixture(scope="package")
def server(smollm2: Path, minilm: Path) -> Iterator[Running]:
    """SmolLM2, under the names "smollm2" and what its file is called, and MiniLM as "minilm"."""
    with running(smollm2, minilm, alias=(f"smollm2={smollm2}", f"claude-*={smollm2}")) as found:
        yield found
