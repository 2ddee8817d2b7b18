"""Converters: checkpoints become the files that edgellm runs, in one streaming pass.

from edgellm.converters import ConvertParams, convert, plan

wanted = ConvertParams(quant="q4_k_m")
print(plan("SmolLM2-135M", wanted).file_bytes)
convert("SmolLM2-135M", "smollm2.gguf", wanted)
"""

from __future__ import annotations

from .convert import Conversion, convert, plan
from .model import LeftOut, Model
from .params import ConvertParams, GGUFParams, ONNXParams, OptimumParams, SafetensorsParams, TargetParams
from .plan import Plan, Planned
from .read import read
from .verify import Verification

__all__ = [
    "Conversion",
    "ConvertParams",
    "GGUFParams",
    "LeftOut",
    "Model",
    "ONNXParams",
    "OptimumParams",
    "Plan",
    "Planned",
    "SafetensorsParams",
    "TargetParams",
    "Verification",
    "convert",
    "plan",
    "read",
]
