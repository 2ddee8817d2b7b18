"""What is wanted of a conversion: options for each target, and ConvertParams, which takes those of all by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, get_args

from edgellm import arguments
from edgellm.errors import InvalidParameter

from .onnx.recipes import recipe_name
from .quant.recipes import target_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

KEEP = "keep"
FLOATS = (KEEP, "f32", "f16", "bf16")
To = Literal["gguf", "onnx", "safetensors"]
Exporter = Literal["own", "optimum"]
KV = Literal["f32", "int8"]

_CHECKS: dict[str, Callable[[Any], object]] = {
    "quant": lambda value: arguments.text("quant", value),
    "pre": lambda value: arguments.text("pre", value),
    "adapters": lambda value: None,  # `adapter_folders` has looked at them
    "fit": lambda value: arguments.whole("fit", value, 1),
    "max_context": lambda value: arguments.whole("max_context", value, 16),
    "kv": lambda value: arguments.one_of("kv", value, get_args(KV)),
}
_GRAPH = ("exact", "max_context", "kv")


AdapterFolder = str | os.PathLike[str] | tuple[str | os.PathLike[str], float]


class ConvertOptions(TypedDict, total=False):
    """ConvertParams' options as keywords, for type checkers; None is an option's default."""

    to: To | None
    quant: str | None
    fit: int | None
    fast_on_cpu: bool | None
    imatrix: Path | None
    calibrate: Path | None
    pre: str | None
    strict: bool | None
    verify: bool | None
    force: bool | None
    exact: bool | None
    max_context: int | None
    kv: KV | None
    exporter: Exporter | None
    adapters: Sequence[AdapterFolder] | None


@dataclass(frozen=True)
class TargetParams:
    """What every target takes. Raises InvalidParameter on construction; None is an option's default.

    quant: "keep" for the source's own types, or another name. verify: compare the result with the source. force:
    replace a file that exists. to: the format written; lacks: what is said of options that are not the target's.
    """

    to: ClassVar[To]
    lacks: ClassVar[str] = "no option of this target; leave it out"
    quant: str = KEEP
    verify: bool = True
    force: bool = False

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None:
                object.__setattr__(self, each.name, each.default)
            elif isinstance(each.default, bool):
                arguments.flag(each.name, value)
            elif each.name in ("imatrix", "calibrate"):
                object.__setattr__(self, each.name, arguments.path(each.name, value))
            else:
                _CHECKS[each.name](value)
        object.__setattr__(self, "quant", self._name(self.quant.lower()))

    def _name(self, quant: str) -> str:
        """The name of types as this file spells it. Raises InvalidParameter for one that the target has not."""
        return quant if quant == KEEP else target_of(quant).name


@dataclass(frozen=True)
class MergingParams(TargetParams):
    """What targets take that are made of a model's tensors.

    adapters: folders of PEFT that are merged into a Hugging Face folder's weights first, in turn, each a path or (path,
    scale); read back they are pairs.
    """

    adapters: tuple[tuple[Path, float], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapters", adapter_folders(self.adapters))
        super().__post_init__()


def adapter_folders(given: Any) -> tuple[tuple[Path, float], ...]:
    """Adapters as `MergingParams` keeps them. Raises InvalidParameter."""
    rule = "a list of folders, or of pairs of a folder and a number"
    if given is None:
        return ()
    if not isinstance(given, (list, tuple)):
        raise arguments.refuse("adapters", given, rule)
    found = []
    for each in given:
        folder, scale = each if isinstance(each, (list, tuple)) and len(each) == 2 else (each, 1.0)
        if not arguments.is_real(scale):
            raise arguments.refuse("adapters", each, rule)
        found.append((arguments.path("adapters", folder), float(scale)))
    return tuple(found)


@dataclass(frozen=True)
class MixParams(MergingParams):
    """What targets take that store each tensor as suits it.

    fit: bytes that the result may have; the best mix is chosen. imatrix: an importance matrix file; calibrate: a text
    to collect one with. strict: a type that rows do not fit is an error.
    """

    fit: int | None = None
    imatrix: Path | None = None
    calibrate: Path | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fit is not None and self.quant != KEEP:
            raise InvalidParameter("fit chooses the types, so leave out quant")
        if self.imatrix is not None and self.calibrate is not None:
            raise InvalidParameter("imatrix and calibrate both give an importance matrix; leave out one of them")
        if self._keeps_weights and (self.imatrix is not None or (self.calibrate is not None and not self._measures)):
            raise InvalidParameter(f"an importance matrix changes nothing for quant={self.quant!r}; choose another")

    @property
    def has_importance(self) -> bool:
        """Whether there will be an importance matrix."""
        return self.imatrix is not None or (self.calibrate is not None and not self._keeps_weights)

    @property
    def _keeps_weights(self) -> bool:
        """Whether no weight is quantized, so that none needs a matrix."""
        return self.fit is None and self.quant in FLOATS

    @property
    def _measures(self) -> bool:
        """Whether `calibrate` is for something else as well."""
        return False


@dataclass(frozen=True)
class GGUFParams(MixParams):
    """A GGUF file. quant: a target such as "q4_k_m". fast_on_cpu: no types that are slow on x86. pre: llama.cpp's name
    of the pre-tokenizer."""

    to = "gguf"
    fast_on_cpu: bool = False
    pre: str | None = None


@dataclass(frozen=True)
class ONNXParams(MixParams):
    """An ONNX folder. quant: also int8 and int4, see `onnx.recipes`. exact: products are computed in float32, though
    that is slower. max_context: tokens that the graph has room for, at most those the model was trained for. kv: what
    keys and values are kept in; "int8" takes a quarter of the memory, and the scales come from running the model over
    `calibrate`, or over a short text of edgellm's own."""

    to = "onnx"
    lacks = "no meaning for ONNX; leave it out"
    exact: bool = False
    max_context: int | None = None
    kv: KV = "f32"

    def _name(self, quant: str) -> str:
        return recipe_name(quant)

    @property
    def _measures(self) -> bool:
        return self.kv != "f32"


@dataclass(frozen=True)
class SafetensorsParams(MergingParams):
    """A Hugging Face folder. quant: f32, f16, bf16 or keep."""

    to = "safetensors"
    lacks = "safetensors hold f32, f16 or bf16 weights here, and nothing else is chosen; leave it out, or write GGUF"

    def _name(self, quant: str) -> str:
        if quant not in FLOATS:
            raise InvalidParameter(f"quant={quant!r}: safetensors hold f32, f16 or bf16 weights here")
        return quant


@dataclass(frozen=True)
class OptimumParams(TargetParams):
    """An ONNX folder that optimum makes: it records what PyTorch computes, for families that edgellm does not describe.
    quant: keep, f32 or int8."""

    to = "onnx"
    lacks = "optimum has no such choice; leave out these, or exporter"

    def _name(self, quant: str) -> str:
        if quant not in (KEEP, "f32", "int8"):
            raise InvalidParameter(f"quant={quant!r}: optimum writes f32 and int8; leave out exporter for others")
        return quant


_TARGETS: dict[str, type[TargetParams]] = {kind.to: kind for kind in (GGUFParams, ONNXParams, SafetensorsParams)}
_DEFAULTS = {each.name: each.default for kind in (ONNXParams, GGUFParams) for each in fields(kind)}


def ConvertParams(**options: Unpack[ConvertOptions]) -> TargetParams:  # noqa: N802  (it makes an object)
    """What is wanted, for the target that `to` and `exporter` name: GGUFParams without them.

    to: the format written. exporter: who makes an ONNX graph. The others are the target's.
    Raises InvalidParameter for an option that the target does not have, unless it is the default, or that nothing has.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    to, exporter = given.pop("to", "gguf"), given.pop("exporter", "own")
    arguments.one_of("to", to, get_args(To))
    arguments.one_of("exporter", exporter, get_args(Exporter))
    if exporter == "optimum" and to != "onnx":
        raise InvalidParameter(f"exporter='optimum' writes ONNX, not {to}")
    kind = OptimumParams if exporter == "optimum" else _TARGETS[to]
    known = {each.name for each in fields(kind)}
    others = {name: given.pop(name) for name in _DEFAULTS if name in given and name not in known}
    # a default is one of its type too: 0 is not False
    wrong = [n for n, value in others.items() if (type(value), value) != (type(_DEFAULTS[n]), _DEFAULTS[n])]
    if exporter == "own" and any(name in _GRAPH for name in wrong):
        raise InvalidParameter(
            "exact, max_context and kv say how an ONNX graph computes: leave them out, or write ONNX"
        )
    if wrong:
        raise InvalidParameter(f"{', '.join(wrong)}: {kind.lacks}")
    if unknown := sorted(given.keys() - known):
        raise InvalidParameter(
            f"{', '.join(unknown)}: no such option; there are {', '.join(ConvertOptions.__annotations__)}"
        )
    return kind(**given)
