"""Tables of tensors: one line per weight, with `{i}` for the layer, `{e}` for an expert and `{m}` for the prefix that
checkpoints put before the model's own names. Dimensions are words: `Hyper.sizes` says what they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .hyper import Hyper
from .relation import Part, Relation

Order = Callable[[Hyper], "NDArray[np.int64]"]


@dataclass(frozen=True)
class Weight:
    """A line of a table; gguf, hf: (name, dimensions) of each part. `{e}` in a name stands for one part per expert.

    order, shift, transposed: as in Relation. optional: left out where neither side has it. untied: where the output is
    not the embedding. later: in all layers but the first.
    """

    gguf: tuple[tuple[str, str], ...]
    hf: tuple[tuple[str, str], ...]
    order: Order | None = None
    shift: float = 0.0
    transposed: bool = False
    optional: bool = False
    untied: bool = False
    later: bool = False


@dataclass(frozen=True)
class Either:
    """Two spellings of the same weights; `other` is taken where the checkpoint has one of its Hugging Face names."""

    usual: tuple[Weight, ...]
    other: tuple[Weight, ...]


Line = Weight | Either


def weight(gguf: str, hf: str, dims: str, **how: Any) -> Weight:
    """One tensor on each side, both called `.weight`; dims are those of GGUF, where a transposed one differs."""
    stored = " ".join(reversed(dims.split())) if how.get("transposed") else dims
    return Weight(((gguf + ".weight", dims),), ((hf + ".weight", stored),), **how)


EMBEDDING: tuple[Line, ...] = (weight("token_embd", "{m}embed_tokens", "vocab embd"),)
OUTPUT: Line = Either(
    (weight("output", "lm_head", "vocab embd", untied=True),),
    (weight("output", "language_model.lm_head", "vocab embd", untied=True),),
)
HEAD: tuple[Line, ...] = (weight("output_norm", "{m}norm", "embd"), OUTPUT)


def biased(gguf: str, hf: str, dims: str, bias: str = "always", **how: Any) -> tuple[Weight, Weight]:
    """A weight and its bias, as long as the weight's rows are many; bias: "always" or "optional"."""
    rest = {**how, "transposed": False, "optional": bias == "optional"}
    rows = dims.split()[0]
    return weight(gguf, hf, dims, **how), Weight(((gguf + ".bias", rows),), ((hf + ".bias", rows),), **rest)


def interleave(heads: str) -> Order:
    """The order of each head's rows that llama.cpp rotates in: halves become pairs. heads: the field of Hyper."""

    def order(hyper: Hyper) -> NDArray[np.int64]:
        n: int = getattr(hyper, heads)
        rows: NDArray[np.int64] = np.arange(n * hyper.head_dim).reshape(n, 2, hyper.head_dim // 2)
        return np.ravel(rows.swapaxes(1, 2))

    return order


def expand(table: tuple[Line, ...], hyper: Hyper, names: Collection[str], prefix: str, i: int) -> Iterator[Relation]:
    """The relations of one layer; names: the tensors that exist, on either side."""
    for line in _chosen(table, hyper, names, prefix, i):
        if line.later and i == 0:
            continue
        order = _ordered(line.order, hyper) if line.order else None
        sides = _parts(line.hf, hyper, prefix, i), _parts(line.gguf, hyper, prefix, i)
        yield Relation(*sides, order, line.shift, line.transposed)


def stored(table: tuple[Line, ...], hyper: Hyper, names: Collection[str], layers: range) -> Iterator[Part]:
    """The GGUF tensors of some layers, all of which have the optional ones that layer 0 has among `names`."""
    chosen = list(_chosen(table, hyper, names, "", 0))
    there = ((i, line) for i in layers for line in chosen if i or not line.later)
    return (part for i, line in there for part in _parts(line.gguf, hyper, "", i))


def spellings(
    table: tuple[Line, ...], hyper: Hyper, prefix: str, i: int
) -> Iterator[tuple[Part, list[tuple[Part, ...]]]]:
    """Each tensor of another spelling, and the usual parts of each GGUF tensor that it becomes, one after the other."""
    for line in table:
        if not isinstance(line, Either):
            continue
        usual = {name: one.hf for one in line.usual for name, _ in one.gguf}
        for other in line.other:
            if len(other.hf) == 1 and all(name in usual for name, _ in other.gguf):
                groups = [_parts(usual[name], hyper, prefix, i) for name, _ in other.gguf]
                yield _parts(other.hf, hyper, prefix, i)[0], groups


def _chosen(table: tuple[Line, ...], hyper: Hyper, names: Collection[str], prefix: str, i: int) -> Iterator[Weight]:
    for line in table:
        lines: tuple[Weight, ...] = (line,) if isinstance(line, Weight) else line.usual
        if isinstance(line, Either):
            there = (name for other in line.other for name, _ in other.hf)
            if any(_fill(name, prefix, i, 0) in names for name in there):
                lines = line.other
        for one in lines:
            if one.untied and hyper.tied:
                continue
            if one.optional:
                own = (_fill(name, prefix, i, 0) for name, _ in (*one.hf, *one.gguf))
                if not any(name in names for name in own):
                    continue
            yield one


def _parts(listed: tuple[tuple[str, str], ...], hyper: Hyper, prefix: str, i: int) -> tuple[Part, ...]:
    sizes = hyper.sizes()
    return tuple(
        Part(_fill(name, prefix, i, e), tuple(sizes[word] for word in dims.split()))
        for name, dims in listed
        for e in (range(hyper.n_expert) if "{e}" in name else [0])
    )


@lru_cache(maxsize=8)
def _ordered(order: Order, hyper: Hyper) -> NDArray[np.int64]:
    """One array for all layers."""
    return order(hyper).astype(np.int64)


def _fill(name: str, prefix: str, i: int, e: int) -> str:
    return name.replace("{m}", prefix).replace("{i}", str(i)).replace("{e}", str(e))
