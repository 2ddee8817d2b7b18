"""Plan: what a conversion will make of every tensor, known before a weight is read: types, bytes, losses, fallbacks,
the size of the file and the memory that running it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgellm.budget import default_context, work_bytes

from .model import LeftOut, Model
from .numbers import ADAPTED, NEAREST, integers
from .params import KEEP

_UNQUANTIZED = {*NEAREST, "computed"}
_LARGER = 1.02  # times the source's size: below that it is headers and norms


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor of the result. source, target: storage types; source is "computed" for one made from the numbers.

    exact: every weight stays the number it is; of a quantized source the one that ggml's dequantize gives, a float32.
    fallback_from: the type it would have, if its rows were whole blocks of that.
    """

    name: str
    shape: tuple[int, ...]
    source: str
    target: str
    nbytes: int
    exact: bool
    fallback_from: str | None = None


@dataclass(frozen=True)
class Plan:
    """recipe: the target, or the one that `fit` found (its mix may have more bits here and there).

    source_bytes: the size of the source's weight files. file_bytes: the size to the byte; of a folder the sum, without
    the headers of its weight files. memory: bytes that running the file takes on any engine, with a context of
    memory_ctx tokens; None for a folder. notes: what else is to be known.
    """

    source: str
    source_format: str
    source_fingerprint: str
    architecture: str
    format: str
    recipe: str
    tensors: tuple[Planned, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    source_bytes: int
    file_bytes: int
    memory: int | None = None
    memory_ctx: int | None = None

    @property
    def n_params(self) -> int:
        """Weights of all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Over all tensors, scales included."""
        return 8 * self.tensor_bytes / self.n_params

    @property
    def fallbacks(self) -> tuple[Planned, ...]:
        """The tensors whose rows the wanted type cannot hold."""
        return tuple(tensor for tensor in self.tensors if tensor.fallback_from)

    @property
    def exact(self) -> bool:
        """Whether no weight changes."""
        return all(tensor.exact for tensor in self.tensors)

    @property
    def requantized(self) -> tuple[Planned, ...]:
        """The tensors that are quantized already and lose weights a second time."""
        again = (one for one in self.tensors if not {one.source, one.target} & _UNQUANTIZED)
        return tuple(one for one in again if not one.exact)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is hardly meant to be, and what to do instead."""
        keeping = "" if self.recipe == KEEP else "leave its types as they are (--quant keep)"
        found = []
        if self.requantized:
            kinds = ", ".join(sorted({f"{one.source} to {one.target}" for one in self.requantized}))
            instead = f", or {keeping}" if keeping else ""
            found.append(
                f"{len(self.requantized)} tensors are quantized a second time ({kinds}), and both losses add up: "
                f"convert the model that the source was made of{instead}"
            )
        sums = any(one.source.endswith(ADAPTED) for one in self.tensors)  # which have more digits than their terms
        if self.tensor_bytes > _LARGER * self.source_bytes and not sums:
            why = f"and no better: {keeping}"
            if self.format == "safetensors":
                why = "because only floats are written there" + ("; `--quant f16` halves it" * (self.recipe == "f32"))
            elif not keeping:
                why = f"because {self.format} has no type as small that holds the same numbers; others lose some"
            sizes = f"{self.tensor_bytes / 1e6:.1f} MB of weights, from {self.source_bytes / 1e6:.1f} MB"
            found.append(f"the result is larger than the source ({sizes}), {why}")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        whole = {**asdict(self), "warnings": self.warnings}
        totals = {"parameters": self.n_params, "tensor_bytes": self.tensor_bytes, "exact": self.exact}
        return {**whole, **totals, "bits_per_weight": self.bits_per_weight, "fallbacks": len(self.fallbacks)}


def of_source(model: Model) -> dict[str, Any]:
    """What a Plan says of the model that is converted."""
    size = sum(path.stat().st_size for path in model.weight_files)
    said = {"source": str(model.path), "source_format": model.format, "source_fingerprint": model.fingerprint}
    return {**said, "source_bytes": size}


def memory_needed(metadata: Mapping[str, Any], file_bytes: int) -> tuple[int, int]:
    """Bytes to run a GGUF file with its default context on any engine, and that context in tokens.

    What `edgellm.memory_needed` says of the finished file on llama.cpp, from its key-values; edgellm's own engine takes
    less.
    """
    arch = str(metadata["general.architecture"])

    def numbers(key: str, default: int) -> list[int]:
        return integers(metadata.get(f"{arch}.{key}")).tolist() or [default]

    def largest(key: str, default: int = 0) -> int:
        return max(numbers(key, default))

    n_embd, n_head = largest("embedding_length"), largest("attention.head_count")
    head = n_embd // n_head if n_head else 0
    heads = numbers("attention.head_count_kv", n_head)  # of each layer, or one for all
    kv = sum(heads) if len(heads) > 1 else heads[0] * largest("block_count")
    kv *= 2 * (largest("attention.key_length", head) + largest("attention.value_length", head))
    ctx = default_context(largest("context_length"))
    n_ff = largest("feed_forward_length", 4 * n_embd)
    return file_bytes + ctx * kv + work_bytes(ctx, n_head, n_embd, n_ff), ctx
