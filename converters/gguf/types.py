"""What each tensor of a GGUF file is stored as: kept, by recipe, or the best mix under a size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgellm.errors import InvalidParameter, Unsupported
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.tensor import Tensor, blocked

from ..numbers import NEAREST, integers, kept_type
from ..params import KEEP, GGUFParams
from ..quant.fit import choose_under, data_bytes, fast_on_cpu
from ..quant.recipes import TARGETS, Choice, Facts, choose, quantizable


def facts_of(metadata: Mapping[str, Any], has_imatrix: bool) -> Facts:
    """What recipes depend on, from the key-values of a GGUF file."""
    arch = str(metadata["general.architecture"])

    def number(key: str) -> int:
        return next(iter(integers(metadata.get(f"{arch}.{key}")).tolist()), 0)  # of one for each layer the first counts

    n_head = number("attention.head_count")
    n_head_kv = number("attention.head_count_kv") or n_head
    return Facts(arch, number("block_count"), n_head, n_head_kv, number("expert_count"), has_imatrix)


def choose_types(
    tensors: Mapping[str, Tensor], facts: Facts, params: GGUFParams, header_bytes: int
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
            stored = NEAREST.get(tensor.stored, GGMLType.F32) if quantizable(name, tensor.shape) else GGMLType.F32
        choices.append(Choice(name, tensor.shape, stored))
    return choices


def _like_llama_cpp(choices: Sequence[Choice], tensors: Mapping[str, Tensor]) -> list[Choice]:
    """The choices, but what a GGUF file has that is never quantized keeps its type."""
    found = []
    for choice in choices:
        stored = None if quantizable(choice.name, choice.shape) else _stored(tensors[choice.name])
        found.append(choice if stored is None else replace(choice, type=stored))
    return found


def _fitting(tensors: Mapping[str, Tensor], facts: Facts, params: GGUFParams, budget: int) -> tuple[str, list[Choice]]:
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
    return tensor.type if blocked(tensor) else None


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
