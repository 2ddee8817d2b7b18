"""What each tensor of a model is stored as in ONNX: by recipe, as the source has it, or the best mix under a size.

f32 f16 bf16     floats; what is computed is float32
int8, int8_64    whole numbers of 8 bits with a scale for each block of 32, or 16 to 256, of a row
int4, int4_64    the same of 4 bits with a zero point each; the output, and an embedding that also is it, get 8
int4_s           4 bits and a scale throughout: smaller, a little faster, and worse (also int4_s_64)
keep             floats as they are; the types of GGUF in whatever holds their numbers exactly
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgellm.errors import InvalidParameter, Unsupported
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.tensor import Tensor, blocked

from ..numbers import NEAREST, WIDTH
from ..quant.fit import SENSITIVITY
from ..quant.recipes import Shape, quantizable, role_of
from .graph.carrier import BLOCKS, Carrier, carrier_of
from .graph.floats import Floats

KEEP = "keep"
_FLOATS: dict[str, Floats] = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_LADDER = ("int8", "int4", "int4_64", "int4_128")  # best first


@dataclass(frozen=True, slots=True)
class Choice:
    """How a tensor is stored: a float type, or a carrier. fallback_from: the name of what its rows did not fit."""

    name: str
    shape: Shape
    storage: Carrier | Floats
    fallback_from: str | None = None

    @property
    def label(self) -> str:
        """What users see: "F16", "INT4/32"."""
        return self.storage if isinstance(self.storage, str) else self.storage.name

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""
        if isinstance(self.storage, str):
            return WIDTH[self.storage] * math.prod(self.shape)
        return self.storage.nbytes(self.shape)


def recipe_name(name: str) -> str:
    """The name as this file spells it. Raises InvalidParameter for one that is not offered."""
    wanted = name.lower()
    match = re.fullmatch(r"(int8|int4(?:_s)?)(?:_(\d+))?", wanted)
    if wanted in (KEEP, *_FLOATS) or (match and (match[2] is None or int(match[2]) in BLOCKS)):
        return wanted.removesuffix("_32") if match else wanted
    blocks = ", ".join(map(str, BLOCKS))
    raise InvalidParameter(
        f"quantization {name!r} is not offered for ONNX; choose keep, f32, f16, bf16, int8, int4 or int4_s, the last "
        f"three also with a block size ({blocks}), as int4_128"
    )


def choose(recipe: str, tensors: Mapping[str, Tensor]) -> list[Choice]:
    """How every tensor (GGUF name) is stored. Raises Unsupported for a type that keep cannot."""
    if recipe == KEEP:
        return [_kept(name, tensor) for name, tensor in tensors.items()]
    if recipe in _FLOATS:
        floats = _FLOATS[recipe]
        return [Choice(n, t.shape, floats if quantizable(n, t.shape) else "F32") for n, t in tensors.items()]
    kind, _, block = recipe.replace("_s", "s").partition("_")
    bits: Literal[4, 8] = 8 if kind == "int8" else 4
    base = Carrier(bits, int(block or 32), zero_points=kind == "int4")
    tied = "output.weight" not in tensors and "output_norm.weight" in tensors  # an encoder has no output
    found = []
    for name, tensor in tensors.items():
        if not quantizable(name, tensor.shape):
            found.append(Choice(name, tensor.shape, "F32"))
            continue
        role = role_of(name)
        head = role == "output" or (role == "embedding" and tied)
        eight = Carrier(8, 32 if tensor.shape[-1] % 64 else 64)  # larger blocks cost no accuracy at 8 bits
        found.append(_fitted(name, tensor.shape, eight if head and kind == "int4" else base))
    return found


def choose_under(budget: int, tensors: Mapping[str, Tensor]) -> tuple[str, list[Choice]]:
    """The recipe and the choices whose arrays take at most `budget` bytes and lose least.

    As the source has it where that fits; else the best recipe that does, and what it leaves is spent on 8 bits for one
    tensor after another, the most sensitive first. Raises InvalidParameter when even the smallest is too large.
    """
    smallest = 0
    for recipe in (KEEP, *_LADDER):
        choices = choose(recipe, tensors)
        smallest = sum(choice.nbytes for choice in choices)
        if smallest <= budget:
            return recipe, choices if recipe == KEEP else _spend(budget - smallest, choices)
    raise InvalidParameter(
        f"{max(budget, 0) / 1e6:.1f} MB are too few for this model: {_LADDER[-1]}, its smallest form, needs "
        f"{smallest / 1e6:.1f} MB"
    )


def _spend(left: int, choices: Sequence[Choice]) -> list[Choice]:
    mix = list(choices)
    for index in sorted(range(len(mix)), key=lambda index: SENSITIVITY.index(role_of(mix[index].name))):
        before = mix[index]
        if isinstance(before.storage, Carrier) and before.storage.bits == 4:
            after = _fitted(before.name, before.shape, Carrier(8, 32))
            if after.nbytes - before.nbytes <= left:
                mix[index], left = after, left - (after.nbytes - before.nbytes)
    return mix


def _fitted(name: str, shape: Shape, wanted: Carrier) -> Choice:
    """The carrier with the largest block, up to its own, that divides rows; F32 where none does."""
    for block in reversed(BLOCKS):
        if block <= wanted.block and shape[-1] % block == 0:
            return Choice(name, shape, replace(wanted, block=block), None if block == wanted.block else wanted.name)
    return Choice(name, shape, "F32", wanted.name)


def _kept(name: str, tensor: Tensor) -> Choice:
    if not quantizable(name, tensor.shape):
        return Choice(name, tensor.shape, "F32")
    if blocked(tensor) and tensor.exact and tensor.type is not None and tensor.type.block_size > 1:
        carrier = carrier_of(tensor.type)
        if carrier is None:
            raise Unsupported(
                f"tensor {name!r} is {tensor.type.name}, which no ONNX operator holds exactly; choose int8, int4 or f32"
            )
        return Choice(name, tensor.shape, carrier)
    return Choice(name, tensor.shape, _FLOATS[NEAREST.get(tensor.stored, GGMLType.F32).name.lower()])
