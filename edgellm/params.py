"""LoadParams and GenerateParams: the options of edgellm, validated on construction.

Options travel in these frozen dataclasses; the command line, the server and the Python API build the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

from edgellm.errors import InvalidParameter

T = TypeVar("T")

KV_TYPES = ("f16", "f32", "q8_0")
BACKENDS = ("auto", "llamacpp", "onnx", "echo")
OVERFLOW = ("error", "drop-oldest")


def _check(ok: bool, name: str, value: object, rule: str) -> None:
    if not ok:
        raise InvalidParameter(f"{name}={value!r}: must be {rule}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class CacheParams:
    """Where the state of earlier prompts is kept. 0 bytes switch a tier off.

    memory: bytes of parked state in host memory; None is 1 GiB, or an eighth of the available memory if that is less.
    disk: bytes on disk, shared by all models and processes; None is 4 GB, or 10 % of the free space if that is less.
    """

    memory: int | None = None
    disk: int | None = None

    def __post_init__(self) -> None:
        for name in ("memory", "disk"):
            value = getattr(self, name)
            _check(value is None or (_is_int(value) and value >= 0), name, value, "a number of bytes")


@dataclass(frozen=True, slots=True)
class LoadParams:
    """What needs a reload of the model when it changes.

    ctx: tokens one sequence may hold; None is the smaller of the trained length, 8,192 and what fits in memory.
    kv_type: element type of the KV cache; None is f16 with llama.cpp, and what the graph has with ONNX Runtime.
    threads: compute threads; None is the number of physical cores this process may use.
    gpu_layers: layers offloaded to a GPU the engine was built for; "auto" offloads what fits.
    flash_attention: None chooses per device (off on a CPU, where it was measured slower).
    micro_batch: tokens of one prefill pass; a multiple of 4, at least 16.
    trust: skip the trial load in a child process for files whose header is outside the known-good ranges.
    cache: where the state of earlier prompts is kept.
    offline: never touch the network, not even for a catalog name that is not here yet.
    """

    ctx: int | None = None
    kv_type: Literal["f16", "f32", "q8_0"] | None = None
    threads: int | None = None
    gpu_layers: int | Literal["auto"] = "auto"
    flash_attention: bool | None = None
    micro_batch: int = 512
    backend: Literal["auto", "llamacpp", "onnx", "echo"] = "auto"
    trust: bool = False
    offline: bool = False
    cache: CacheParams = field(default_factory=CacheParams)

    def __post_init__(self) -> None:
        if self.ctx is not None:
            _check(
                _is_int(self.ctx) and 16 <= self.ctx < 2**31, "ctx", self.ctx, "a whole number of tokens, at least 16"
            )
        ok = self.kv_type is None or self.kv_type in KV_TYPES
        _check(ok, "kv_type", self.kv_type, f"one of {', '.join(KV_TYPES)}")
        if self.threads is not None:
            _check(_is_int(self.threads) and 1 <= self.threads <= 512, "threads", self.threads, "between 1 and 512")
        if self.gpu_layers != "auto":
            _check(
                _is_int(self.gpu_layers) and self.gpu_layers >= 0, "gpu_layers", self.gpu_layers, '"auto" or at least 0'
            )
        ok = _is_int(self.micro_batch) and 16 <= self.micro_batch <= 8192 and self.micro_batch % 4 == 0
        _check(ok, "micro_batch", self.micro_batch, "a multiple of 4 between 16 and 8192")
        _check(self.backend in BACKENDS, "backend", self.backend, f"one of {', '.join(BACKENDS)}")


@dataclass(frozen=True, slots=True)
class GenerateParams:
    """Sampling and stopping of one generation.

    max_tokens: None goes on until a stop or the end of the context.
    temperature: 0 is greedy. top_k 0, top_p 1, min_p 0 and typical_p 1 switch a filter off.
    repeat_penalty, frequency_penalty, presence_penalty look at the last `penalty_last_n` tokens (-1: all).
    dry_*: the DRY repetition penalty (multiplier 0 is off); xtc_*: XTC (probability 0 is off).
    logit_bias: token id to an additive bias; -inf forbids the token.
    seed: None draws one, which the Completion reports.
    stop: strings that end the answer and are not part of it.
    logprobs: None, or how many of the likeliest tokens to report beside the chosen one (0-100).
    overflow: "error", or "drop-oldest" to drop a chat's oldest turns (reported in the Completion).
    timeout: seconds after which the answer ends with finish reason "timeout".
    cache: whether known state is used and this request's is kept: True, False, or "memory" for what must never reach
    the disk nor be found by others' prompts.
    """

    max_tokens: int | None = None
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_last_n: int = -1
    dry_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: Sequence[str] = ()
    logprobs: int | None = None
    ignore_eos: bool = False
    overflow: Literal["error", "drop-oldest"] = "error"
    timeout: float | None = None
    cache: bool | Literal["memory"] = True

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _check(_is_int(self.max_tokens) and self.max_tokens >= 0, "max_tokens", self.max_tokens, "at least 0")
        unit = "between 0 and 1"
        for name in ("top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold"):
            value = getattr(self, name)
            _check(_is_real(value) and 0 <= value <= 1, name, value, unit)
        for name in ("temperature", "dry_multiplier"):
            value = getattr(self, name)
            _check(_is_real(value) and value >= 0, name, value, "at least 0")
        _check(
            _is_real(self.repeat_penalty) and self.repeat_penalty > 0, "repeat_penalty", self.repeat_penalty, "above 0"
        )
        _check(_is_real(self.dry_base) and self.dry_base >= 1, "dry_base", self.dry_base, "at least 1")
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            _check(_is_real(value) and -2 <= value <= 2, name, value, "between -2 and 2")
        for name, low in (("top_k", 0), ("penalty_last_n", -1), ("dry_last_n", -1), ("dry_allowed_length", 0)):
            value = getattr(self, name)
            _check(_is_int(value) and value >= low, name, value, f"a whole number, at least {low}")
        if self.seed is not None:
            _check(_is_int(self.seed) and 0 <= self.seed < 2**64, "seed", self.seed, "between 0 and 2**64 - 1")
        if self.logprobs is not None:
            _check(_is_int(self.logprobs) and 0 <= self.logprobs <= 100, "logprobs", self.logprobs, "between 0 and 100")
        if self.timeout is not None:
            _check(_is_real(self.timeout) and self.timeout > 0, "timeout", self.timeout, "a positive number of seconds")
        _check(self.cache in (True, False, "memory"), "cache", self.cache, 'True, False or "memory"')
        _check(self.overflow in OVERFLOW, "overflow", self.overflow, f"one of {', '.join(OVERFLOW)}")
        object.__setattr__(self, "stop", _strings("stop", self.stop))
        object.__setattr__(self, "dry_breakers", _strings("dry_breakers", self.dry_breakers))
        for token, bias in self.logit_bias.items():
            ok = _is_int(token) and isinstance(bias, (int, float)) and not math.isnan(bias) and bias != math.inf
            _check(ok, "logit_bias", {token: bias}, "token ids mapped to numbers (-inf forbids a token)")


def _strings(name: str, value: Sequence[str]) -> tuple[str, ...]:
    """A string alone counts as a list of one; empty strings are refused."""
    items = (value,) if isinstance(value, str) else tuple(value)
    _check(all(isinstance(item, str) and item for item in items), name, value, "non-empty strings")
    return items


def build(kind: type[T], options: Mapping[str, Any], base: T | None = None) -> T:
    """A params object from keyword options, on top of `base` if given.

    Raises InvalidParameter; for an unknown name it lists the known ones.
    """
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InvalidParameter(f"unknown option {unknown[0]!r}; {kind.__name__} has: {', '.join(known)}")
    if base is None:
        return kind(**options)
    return replace(base, **options) if options else base  # type: ignore[type-var]
