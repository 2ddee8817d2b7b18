"""Pooling: how the vectors of a text's tokens become one, read from the files of sentence-transformers.

modules.json lists Transformer, Pooling and maybe Normalize, each with its folder; the pooling's config.json says which
kind. https://sbert.net/docs/package_reference/sentence_transformer/models.html
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.formats.onnx_folder import ModelFolder

log = logging.getLogger("edgellm.onnx")

KINDS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}


@dataclass(frozen=True, slots=True)
class Pooling:
    """kind: "mean", "cls" (the first token), "last", "max", or "none" where the graph gives one vector itself."""

    kind: str
    normalize: bool

    def __call__(self, hidden: NDArray[np.float32], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors (n, n_embd) of hidden states (n, tokens, n_embd), of which the first `lengths` (n,) tokens count;
        with kind "none" the vectors themselves."""
        if self.kind == "none":
            vectors = hidden
        elif self.kind == "cls":
            vectors = hidden[:, 0]
        elif self.kind == "last":
            vectors = hidden[np.arange(len(hidden)), lengths - 1]
        else:
            inside = (np.arange(hidden.shape[1]) < lengths[:, None])[:, :, None]
            if self.kind == "max":
                vectors = np.where(inside, hidden, -np.inf).max(1)
            else:
                vectors = np.where(inside, hidden, 0).sum(1, np.float32) / lengths[:, None].astype(np.float32)
        if self.normalize:
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(norms, 1e-12)
        return vectors.astype(np.float32, copy=False)


def pooling_of(folder: ModelFolder, *, pooled: bool) -> Pooling:
    """How the model of this folder pools. pooled: the graph's output is one vector per text, to be left as it is.

    Without these files it is the mean, not normalized, and the log says so. Raises Unsupported for other kinds and
    modules, InvalidModelFile.
    """
    if pooled:
        return Pooling("none", False)
    path = folder.file("modules.json")
    if path is None:
        log.warning("%s does not say how it pools (no modules.json): the mean of all tokens is taken", folder.root)
        return Pooling("mean", False)
    modules = _modules(folder)
    known = {"Transformer", "Pooling", "Normalize"}
    types = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    unknown = [name for name in types if name not in known]
    if unknown or types.count("Pooling") != 1:
        raise Unsupported(
            f"{path}: the modules are {', '.join(types)[:200]}; edgellm knows {', '.join(sorted(known))}, one Pooling"
        )
    place = str(modules[types.index("Pooling")].get("path", "1_Pooling")).strip("/")
    config = folder.json(f"{place}/config.json" if place else "config.json")
    named = config.get("pooling_mode")
    kinds = [named] if isinstance(named, str) else [kind for key, kind in KINDS.items() if config.get(key) is True]
    others = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    kind = {"lasttoken": "last"}.get(kinds[0], kinds[0]) if len(kinds) == 1 else None
    if kind not in KINDS.values() or (not isinstance(named, str) and len(others) != 1):
        raise Unsupported(f"{folder.root / place}: pools by {others or kinds}; edgellm knows mean, cls, last and max")
    return Pooling(str(kind), "Normalize" in types)


def _modules(folder: ModelFolder) -> list[Mapping[str, Any]]:
    where = folder.root / "modules.json"
    try:
        modules = json.loads(folder.text("modules.json") or "")
    except (ValueError, RecursionError) as error:
        raise InvalidModelFile(f"{where}: not JSON: {str(error)[:200]}; fetch or write the file again") from None
    if not isinstance(modules, list) or not all(isinstance(module, Mapping) for module in modules):
        raise InvalidModelFile(f"{where}: a list of modules is expected; fetch or write the file again")
    return modules
