"""Which rows of which tensor of a GGUF file are which matrix or vector of the engine: read from the family's table.

The engine rotates the halves of a head. A file whose rows of q and k lie in the order of llama.cpp, which rotates
neighbours, says so in its table (`order`), and so its rows are read in the order of Hugging Face. Where that has
neighbours too, a head's pairs are put apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.architectures import Architecture, Hyper
from edgellm.formats.gguf import GGUFFile

MODEL = -1  # in place of a layer: what the model has once
FUSED = {  # tensors, and biases, whose rows are several matrices, and how many each has, as `Hyper.sizes` calls it
    "attn_qkv": (("attn_q", "q"), ("attn_k", "kv"), ("attn_v", "kv")),
    "ffn_up": (("ffn_gate", "ff"), ("ffn_up", "ff")),  # where it has rows for both
}


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Rows [start, stop) of a tensor (of a vector: elements); order: which of them each row of the engine is, None for
    the same order. role: GGUF's name without the layer and ".weight"."""

    tensor: str
    layer: int
    role: str
    start: int
    stop: int
    order: NDArray[np.int64] | None = None


def placed(file: GGUFFile, architecture: Architecture, hyper: Hyper) -> Iterator[Placed]:
    """Every tensor that the engine computes with, in file order."""
    sizes = hyper.sizes()
    for relation in architecture.relations(hyper, file.tensors):
        for part in relation.gguf:
            layer, role = _role(part.name)
            if role == "attn_norm" and hyper.parallel_residual and f"blk.{layer}.ffn_norm.weight" not in file.tensors:
                yield Placed(part.name, layer, "ffn_norm", 0, part.shape[0])  # one norm, which both read
            bias = ".bias" if role.endswith(".bias") else ""
            fused = FUSED.get(role.removesuffix(bias), ())
            if part.shape[0] == sum(sizes[size] for _, size in fused):
                start = 0
                for name, size in fused:
                    yield Placed(part.name, layer, name + bias, start, start + sizes[size])
                    start += sizes[size]
            else:
                rows, order = math.prod(part.shape[:-1] or part.shape), relation.inverse  # rows of all experts
                if hyper.rope and hyper.rope.neighbours and role.removesuffix(bias) in ("attn_q", "attn_k"):
                    order = apart(rows, hyper.head_dim, hyper.rope.dim)
                yield Placed(part.name, layer, role, 0, rows, order)


def apart(rows: int, head_dim: int, rotated: int) -> NDArray[np.int64]:
    """Where the rows of heads lie whose `rotated` first elements are pairs side by side, once they are two halves."""
    head = np.arange(head_dim)
    pairs = head[:rotated].reshape(-1, 2)
    order: NDArray[np.int64] = np.concatenate([pairs[:, 0], pairs[:, 1], head[rotated:]])
    return np.ravel(np.arange(0, rows, head_dim)[:, None] + order)


def _role(name: str) -> tuple[int, str]:
    """ "blk.3.attn_q.weight" as (3, "attn_q"), "output_norm.weight" as (MODEL, "output_norm")."""
    role = name.removesuffix(".weight")
    if not role.startswith("blk."):
        return MODEL, role
    _, layer, role = role.split(".", 2)
    return int(layer), role
