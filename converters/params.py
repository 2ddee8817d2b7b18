"""ConvertParams: what is wanted of a conversion."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from edgellm import arguments
from edgellm.errors import InvalidParameter

from .onnx.recipes import recipe_name
from .quant.recipes import target_of

KEEP = "keep"


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
