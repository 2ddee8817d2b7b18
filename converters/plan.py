"""Plan: what a conversion will make of every tensor, known before a weight is read.

`ConvertParams` says what is wanted, `choose_types` what each tensor of a GGUF file becomes, `Plan` what that means:
types, bytes, losses, fallbacks, the size of the file and the memory that running it takes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgellm import arguments
from edgellm.budget import default_context, work_bytes
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.tensor import Tensor

from .onnx.recipes import recipe_name
from .quant.fit import choose_under, data_bytes, fast_on_cpu
from .quant.recipes import TARGETS, Choice, Facts, choose, quantizable, target_of

KEEP = "keep"
_FLOATS = {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16}
# what the types of a checkpoint become when they are to be kept: ggml computes with neither
_NEAREST = {**_FLOATS, "F64": GGMLType.F32, "F8_E4M3": GGMLType.BF16, "F8_E5M2": GGMLType.BF16}
_UNQUANTIZED = {*_NEAREST, "computed"}
_LARGER = 1.02  # times the source's size: below that it is headers and norms


@dataclass(frozen=True)
class ConvertParams:
    """What is wanted. Raises InvalidParameter on construction.

    to: the format written. quant: a target such as "q4_k_m", or "keep" for the source's own types (safetensors: f32,
    f16, bf16 or keep; onnx: also int8 and int4, see `onnx.recipes`). fit: bytes that the file may have; the best mix is
    chosen. fast_on_cpu: no types that are slow on x86. imatrix: an importance matrix file; calibrate: a text to collect
    one with. pre: llama.cpp's name of the pre-tokenizer. strict: a type that rows do not fit is an error. verify:
    compare the result with the source. force: replace a file that exists.
    ONNX only: exact: products are computed in float32, though that is slower; max_context: tokens that the graph has
    room for, at most those the model was trained for; kv: what keys and values are kept in. "int8" takes a quarter of
    the memory; the scales come from running the model over `calibrate`, or over a short text of edgellm's own;
    exporter: "optimum" records what PyTorch computes, for families that edgellm does not describe, see `optimum`.
    """

    to: Literal["gguf", "onnx", "safetensors"] = "gguf"
    quant: str = KEEP
    fit: int | None = None
    fast_on_cpu: bool = False
    imatrix: Path | None = None
    calibrate: Path | None = None
    pre: str | None = None
    strict: bool = False
    verify: bool = True
    force: bool = False
    exact: bool = False
    max_context: int | None = None
    kv: Literal["f32", "int8"] = "f32"
    exporter: Literal["own", "optimum"] = "own"

    def __post_init__(self) -> None:
        self._check_types()
        object.__setattr__(self, "quant", self.quant.lower())
        if self.to == "onnx":
            self._check_onnx()
        elif self.quant != KEEP:
            object.__setattr__(self, "quant", target_of(self.quant).name)
        if self.fit is not None and self.quant != KEEP:
            raise InvalidParameter("fit chooses the types, so leave out quant")
        if self.imatrix is not None and self.calibrate is not None:
            raise InvalidParameter("imatrix and calibrate both give an importance matrix; leave out one of them")
        if self._keeps_weights and (self.imatrix is not None or (self.calibrate is not None and self.kv == "f32")):
            raise InvalidParameter(f"an importance matrix changes nothing for quant={self.quant!r}; choose another")
        if self.to != "onnx" and (self.exact or self.max_context is not None or self.kv != "f32"):
            raise InvalidParameter(
                "exact, max_context and kv say how an ONNX graph computes: leave them out, or write ONNX"
            )
        if self.exporter == "optimum":
            self._check_optimum()
        if self.to == "safetensors":
            if self.quant not in (KEEP, "f32", "f16", "bf16"):
                raise InvalidParameter(f"quant={self.quant!r}: safetensors hold f32, f16 or bf16 weights here")
            if self.fit or self.fast_on_cpu or self.imatrix or self.calibrate:
                raise InvalidParameter("fit, fast_on_cpu, imatrix and calibrate choose quantized types: write GGUF")

    def _check_types(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None:
                object.__setattr__(self, each.name, each.default)
            elif isinstance(each.default, bool):
                arguments.flag(each.name, value)
            elif each.name in ("imatrix", "calibrate"):
                object.__setattr__(self, each.name, arguments.path(each.name, value))
        arguments.text("quant", self.quant)
        arguments.one_of("to", self.to, ("gguf", "onnx", "safetensors"))
        arguments.one_of("kv", self.kv, ("f32", "int8"))
        arguments.one_of("exporter", self.exporter, ("own", "optimum"))
        if self.pre is not None:
            arguments.text("pre", self.pre)
        if self.fit is not None:
            arguments.whole("fit", self.fit, 1)
        if self.max_context is not None:
            arguments.whole("max_context", self.max_context, 16)

    def _check_onnx(self) -> None:
        object.__setattr__(self, "quant", recipe_name(self.quant))
        if self.fast_on_cpu or self.pre is not None:
            raise InvalidParameter("fast_on_cpu and pre have no meaning for ONNX; leave them out")

    def _check_optimum(self) -> None:
        if self.to != "onnx":
            raise InvalidParameter(f"exporter='optimum' writes ONNX, not {self.to}")
        if self.quant not in (KEEP, "f32", "int8"):
            raise InvalidParameter(f"quant={self.quant!r}: optimum writes f32 and int8; leave out exporter for others")
        names = ("fit", "imatrix", "calibrate", "strict", "exact", "max_context")
        given = [name for name in names if getattr(self, name)] + ["kv"] * (self.kv != "f32")
        if given:
            raise InvalidParameter(f"{', '.join(given)}: optimum has no such choice; leave out these, or exporter")

    @property
    def has_importance(self) -> bool:
        """Whether there will be an importance matrix."""
        return self.imatrix is not None or (self.calibrate is not None and not self._keeps_weights)

    @property
    def _keeps_weights(self) -> bool:
        """Whether no weight is quantized, so that none needs a matrix."""
        return self.fit is None and self.quant in (KEEP, "f32", "f16", "bf16")


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


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A tensor of the source that the result does not have, and why nothing is lost by that."""

    name: str
    why: str


@dataclass(frozen=True)
class Plan:
    """recipe: the target, or the one that `fit` found (its mix may have more bits here and there).

    source_bytes: the size of the source's weight files. file_bytes: the size to the byte; of a folder the sum, without
    the headers of its weight files. memory: bytes that running the file takes with a context of memory_ctx tokens; None
    for a folder. notes: what else is to be known.
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
        if self.tensor_bytes > _LARGER * self.source_bytes:
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


def is_exact(stored: str, target: str) -> bool:
    """Whether every weight of this source type stays the same number in the target type."""
    return stored == target or (target == "F32" and stored not in ("F64", "F8_E4M3", "F8_E5M2"))


def shifts_exactly(before: Sequence[Tensor], after: Tensor, shift: float) -> bool:
    """Whether small tensors, in the same order, hold the same numbers but for `shift`, without any rounding: true of
    most norms that were stored in 16 bits."""
    numbers = np.concatenate([tensor.rows(slice(None)).ravel() for tensor in before]).astype(np.float64)
    return np.array_equal(numbers + shift, after.rows(slice(None)).ravel().astype(np.float64))


def kept_type(tensors: Mapping[str, Tensor]) -> str:
    """The float type that most bytes of the matrices have, or become when they are kept: F32, F16 or BF16."""
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        if len(tensor.shape) > 1:
            sizes[_NEAREST.get(tensor.stored, GGMLType.F32).name] += math.prod(tensor.shape)
    return sizes.most_common(1)[0][0] if sizes else "F32"


def facts_of(metadata: Mapping[str, Any], has_imatrix: bool) -> Facts:
    """What recipes depend on, from the key-values of a GGUF file."""
    arch = str(metadata["general.architecture"])

    def number(key: str) -> int:
        value = np.ravel(metadata.get(f"{arch}.{key}", 0))  # some models have one number per layer: the first counts
        return int(value[0]) if value.size and value.dtype.kind in "iu" else 0

    n_head = number("attention.head_count")
    n_head_kv = number("attention.head_count_kv") or n_head
    return Facts(arch, number("block_count"), n_head, n_head_kv, number("expert_count"), has_imatrix)


def memory_needed(metadata: Mapping[str, Any], file_bytes: int) -> tuple[int, int]:
    """Bytes to run a GGUF file with its default context, and that context in tokens.

    What `edgellm.memory_needed` says of the finished file, from its key-values.
    """
    facts = facts_of(metadata, False)

    def total(key: str, default: int) -> int:
        """A number per layer, or one for each, summed over the layers."""
        value = np.ravel(metadata.get(f"{facts.architecture}.{key}", default)).astype(np.int64)
        return int(value.sum() if value.size > 1 else value[0] * facts.n_layer)

    def largest(key: str, default: int = 0) -> int:
        return int(np.max(metadata.get(f"{facts.architecture}.{key}", default)))

    n_embd, n_head = largest("embedding_length"), largest("attention.head_count")
    head = n_embd // n_head if n_head else 0
    kv = total("attention.head_count_kv", n_head)
    kv *= 2 * (largest("attention.key_length", head) + largest("attention.value_length", head))
    ctx = default_context(largest("context_length"))
    n_ff = largest("feed_forward_length", 4 * n_embd)
    return file_bytes + ctx * kv + work_bytes(ctx, n_head, n_embd, n_ff), ctx


def choose_types(
    tensors: Mapping[str, Tensor], facts: Facts, params: ConvertParams, header_bytes: int
) -> tuple[str, list[Choice]]:
    """The recipe and the type of each tensor of a GGUF file, in order; header_bytes: what is not tensors.

    Raises InvalidParameter (a size that is too small, a target that needs importance), Unsupported (strict).
    """
    shapes = [(name, tensor.shape) for name, tensor in tensors.items()]
    if params.fit is None:
        recipe = params.quant
        choices = _kept(tensors) if recipe == KEEP else _like_llama_cpp(choose(recipe, shapes, facts), tensors)
        choices = fast_on_cpu(choices) if params.fast_on_cpu else choices
    else:
        recipe, choices = _fitting(tensors, facts, params, params.fit - header_bytes)
    fallen = [choice for choice in choices if choice.fallback_from]
    if params.strict and fallen:
        first = fallen[0]
        raise Unsupported(
            f"strict: {len(fallen)} tensors cannot have the type that {recipe} wants, as {first.name} with rows of "
            f"{first.shape[-1]} ({first.type.name} instead of {(first.fallback_from or first.type).name}); choose "
            "q8_0, q4_0 or a float type, or allow it"
        )
    return recipe, choices


def _kept(tensors: Mapping[str, Tensor]) -> list[Choice]:
    """Every tensor as it is stored, or in the nearest type that ggml computes with."""
    choices = []
    for name, tensor in tensors.items():
        stored = _stored(tensor)
        if stored is None:
            stored = _NEAREST.get(tensor.stored, GGMLType.F32) if quantizable(name, tensor.shape) else GGMLType.F32
        choices.append(Choice(name, tensor.shape, stored))
    return choices


def _like_llama_cpp(choices: Sequence[Choice], tensors: Mapping[str, Tensor]) -> list[Choice]:
    """The choices, but what a GGUF file has that is never quantized keeps its type."""
    found = []
    for choice in choices:
        stored = _stored(tensors[choice.name])
        kept = stored is not None and not quantizable(choice.name, choice.shape)
        found.append(replace(choice, type=stored) if kept and stored is not None else choice)
    return found


def _fitting(
    tensors: Mapping[str, Tensor], facts: Facts, params: ConvertParams, budget: int
) -> tuple[str, list[Choice]]:
    """The source's own types if they fit, else the best mix that does."""

    def finish(choices: Sequence[Choice]) -> list[Choice]:
        made = _no_larger(_like_llama_cpp(choices, tensors), tensors)
        return fast_on_cpu(made) if params.fast_on_cpu else made

    kept = finish(_kept(tensors))
    if data_bytes(kept) <= budget:
        return KEEP, kept
    shapes = [(name, tensor.shape) for name, tensor in tensors.items()]
    asked = budget
    while True:  # fast types, and biases that are kept, may take more than the recipe's: ask for less until all fits
        try:
            fit = choose_under(asked, shapes, facts, lossless=kept_type(tensors).lower())
        except InvalidParameter as error:
            raise InvalidParameter(f"fit={params.fit} bytes: without the header, {error}") from None
        choices = finish(fit.choices)
        excess = data_bytes(choices) - budget
        if excess <= 0:
            return fit.target, choices
        asked -= max(excess // 8, budget // 64)  # less than the excess: a little less often makes another mix


def _no_larger(choices: Sequence[Choice], tensors: Mapping[str, Tensor]) -> list[Choice]:
    """The choices, but a quantized tensor that would not shrink stays as it is."""
    found = []
    for choice in choices:
        stored = _stored(tensors[choice.name])
        if stored is not None and stored.block_size > 1 and stored.nbytes(choice.shape) <= choice.nbytes:
            choice = replace(choice, type=stored, fallback_from=None, needs_importance=False)
        found.append(choice)
    return found


def _stored(tensor: Tensor) -> GGMLType | None:
    """The type of a tensor of a GGUF file; None for others."""
    stored = getattr(tensor, "type", None)
    return stored if isinstance(stored, GGMLType) else None


def file_type(choices: Sequence[Choice], recipe: str) -> int:
    """`general.file_type` of a file."""
    if recipe in TARGETS:
        return TARGETS[recipe].file_type
    sizes: Counter[GGMLType] = Counter()
    for choice in choices:
        sizes[choice.type] += choice.nbytes if quantizable(choice.name, choice.shape) else 0
    most = sizes.most_common(1)[0][0] if sizes else GGMLType.F32
    named = {target.base: target.file_type for target in reversed(TARGETS.values())}  # the first of each base
    return named.get(most, 0)
