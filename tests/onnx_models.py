"""Small models as ONNX files, and passes of ONNX Runtime over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_models import CONFIGS, LLAMA, LONGROPE, Array, arrays, whole
from numpy.typing import NDArray

from edgellm.architectures import Hyper, from_config, to_gguf
from edgellm.converters.onnx.graph.floats import FloatMatrix, Floats
from edgellm.converters.onnx.graph.matrix import Matrix
from edgellm.converters.onnx.graph.model import model_graph
from edgellm.formats.onnx_writer import write_onnx

onnxruntime = pytest.importorskip("onnxruntime")

Cache = dict[str, NDArray[np.float32]]

VARIANTS: dict[str, dict[str, Any]] = {
    **CONFIGS,
    # heads that the attention of ONNX Runtime does not rotate itself, and some of which it rotates a part
    "llama-24": {**LLAMA, "hidden_size": 96},
    "phi3-longrope-16": {
        **LONGROPE,
        "hidden_size": 128,
        "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 32,
    },
}


class ArrayWeights:
    """Weights over the Hugging Face tensors of a config.json."""

    def __init__(
        self, config: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]], dtype: Floats = "F32"
    ) -> None:
        architecture, self.hyper = from_config(config)
        self._dtype = dtype
        self.found: dict[str, NDArray[np.float32]] = {}
        for relation in architecture.relations(self.hyper, list(tensors)):
            for part, tensor in to_gguf(relation, arrays(tensors)):
                values = whole(tensor)
                if part.name.split(".")[-2] in ("attn_q", "attn_k") and relation.inverse is not None:
                    values = values[relation.inverse]
                if "_exps." in part.name:
                    names = (part.name.replace("_exps.", f".{e}.") for e in range(len(values)))
                    self.found |= dict(zip(names, values, strict=True))
                else:
                    self.found[part.name] = values

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def matrix(self, *names: str) -> Matrix:
        return FloatMatrix("+".join(names), [Array(self.found[name]) for name in names], self._dtype)

    def stackable(self, *names: str) -> bool:
        return all(name in self.found for name in names)

    def vector(self, name: str) -> NDArray[np.float32]:
        return self.found[name]


def opened(path: Path) -> Any:
    """A session of one thread, without warnings in between."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Runner:
    """A decoder's file, opened."""

    def __init__(self, path: Path, hyper: Hyper) -> None:
        self.session = opened(path)
        self.hyper = hyper

    def empty(self, batch: int = 1, length: int = 0) -> Cache:
        shape = batch, self.hyper.n_head_kv, length, self.hyper.head_dim
        names = (f"past_key_values.{i}.{part}" for i in range(self.hyper.n_layer) for part in ("key", "value"))
        return {name: np.zeros(shape, np.float32) for name in names}

    def run(
        self, rows: Sequence[Sequence[int]], lengths: Sequence[int], cache: Cache, keep: int | None = None
    ) -> tuple[NDArray[np.float32], Cache]:
        """One pass with a growing cache; lengths: of each row, the new tokens included. (logits, the cache after it)"""
        feeds = {"input_ids": np.array(rows, np.int64), "attention_mask": mask(lengths), **cache}
        if keep is not None:
            feeds["num_logits_to_keep"] = np.array([keep], np.int64)
        logits, *present = self.session.run(None, feeds)
        return logits, dict(zip(cache, present, strict=True))

    def run_shared(self, rows: Sequence[Sequence[int]], lengths: Sequence[int], cache: Cache) -> NDArray[np.float32]:
        """One pass that writes into the cache it reads: (batch, n_kv, capacity, head_dim) each."""
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", np.array(rows, np.int64))
        binding.bind_cpu_input("attention_mask", mask(lengths))
        binding.bind_output("logits")
        for name, values in cache.items():
            present = name.replace("past_key_values", "present")
            where = "cpu", 0, np.float32, values.shape, values.ctypes.data
            binding.bind_input(name, *where)
            binding.bind_output(present, *where)
        self.session.run_with_iobinding(binding)
        found: NDArray[np.float32] = binding.get_outputs()[0].numpy()
        return found


def mask(lengths: Sequence[int]) -> NDArray[np.int64]:
    """1 for each token of a row, padding on the right: (batch, the longest)."""
    return (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)


def write(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, NDArray[np.float32]],
    dtype: Floats = "F32",
    n_ctx: int | None = None,
) -> Hyper:
    """Write the ONNX file of Hugging Face tensors."""
    weights = ArrayWeights(config, tensors, dtype)
    hyper = weights.hyper
    write_onnx(path, model_graph(hyper, weights, n_ctx))
    return hyper
