"""pooling_files: how a sentence-transformers folder says how the vectors of an encoder's tokens become one."""

from __future__ import annotations

import json

from edgellm.architectures import Hyper

POOLING = "1_Pooling/config.json"


def pooling_files(hyper: Hyper) -> dict[str, bytes]:
    """What sentence-transformers writes of an encoder: how one vector is made of the tokens' ones."""
    kind = hyper.pooling if hyper.pooling in ("mean", "cls", "last") else "mean"
    modes = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
    flags = {f"pooling_mode_{name}": name == modes[kind] for name in modes.values()}
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    return {
        POOLING: json.dumps({"word_embedding_dimension": hyper.n_embd, **flags}, indent=2).encode(),
        "modules.json": json.dumps(modules, indent=2).encode(),
    }
