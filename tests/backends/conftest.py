"""What the tests of the engines have in common."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny ONNX models, by the layout of their cache."""
    from tiny_onnx import write_decoder, write_encoder  # brings the package onnx, which other engines' tests do without

    root = tmp_path_factory.mktemp("onnx")
    return {
        "shared": write_decoder(root / "shared"),
        "copied": write_decoder(root / "copied", "concat"),
        "plain": write_decoder(root / "plain", keep=False),  # GroupQueryAttention, and logits of every token
        "encoder": write_encoder(root / "encoder"),
    }
