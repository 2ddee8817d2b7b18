"""LoadParams and GenerateParams: the options of edgellm, validated on construction.

Options travel in these frozen dataclasses; the command line, the server and the Python API build the same ones. None
stands for an option's default, everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal, TypedDict, TypeVar

from edgellm.arguments import flag, instance, is_int, is_real, one_of, refuse, shown, text, token_id
from edgellm.errors import InvalidParameter

T = TypeVar("T")

KV_TYPES = ("f16", "f32", "q8_0")
BACKENDS = ("auto", "llamacpp", "onnx", "echo")
OVERFLOW = ("error", "drop-oldest")
MAX_BREAKER = 40  # characters of a breaker of DRY, as in llama.cpp, which cuts longer ones


def _check(ok: bool, name: str, value: object, rule: str) -> None:
    if not ok:
        raise refuse(name, value, rule)


def _put_defaults(params: object) -> None:
    for each in fields(params):  # type: ignore[arg-type]
        if getattr(params, each.name) is None:
            default = each.default if each.default_factory is MISSING else each.default_factory()
            object.__setattr__(params, each.name, default)


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
            _check(value is None or (is_int(value) and 0 <= value < 2**63), name, value, "a number of bytes")


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
        _put_defaults(self)
        if self.ctx is not None:
            _check(
                is_int(self.ctx) and 16 <= self.ctx < 2**31, "ctx", self.ctx, "a whole number of tokens, at least 16"
            )
        if self.kv_type is not None:
            one_of("kv_type", self.kv_type, KV_TYPES)
        if self.threads is not None:
            _check(is_int(self.threads) and 1 <= self.threads <= 512, "threads", self.threads, "between 1 and 512")
        if not isinstance(self.gpu_layers, str) or self.gpu_layers != "auto":
            ok = is_int(self.gpu_layers) and 0 <= self.gpu_layers < 2**31
            _check(ok, "gpu_layers", self.gpu_layers, '"auto" or a whole number, at least 0')
        if self.flash_attention is not None:
            flag("flash_attention", self.flash_attention)
        ok = is_int(self.micro_batch) and 16 <= self.micro_batch <= 8192 and self.micro_batch % 4 == 0
        _check(ok, "micro_batch", self.micro_batch, "a multiple of 4 between 16 and 8192")
        one_of("backend", self.backend, BACKENDS)
        flag("trust", self.trust)
        flag("offline", self.offline)
        instance("cache", self.cache, CacheParams)


@dataclass(frozen=True, slots=True)
class GenerateParams:
    """Sampling and stopping of one generation.

    max_tokens: None goes on until a stop or the end of the context.
    temperature: 0 is greedy. top_k 0, top_p 1, min_p 0 and typical_p 1 switch a filter off.
    repeat_penalty, frequency_penalty, presence_penalty look at the last `penalty_last_n` tokens (-1: all).
    dry_*: the DRY repetition penalty (multiplier 0 is off; breakers of at most 40 characters); xtc_*: XTC (probability
    0 is off).
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
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int | None = None
    stop: Sequence[str] = ()
    logprobs: int | None = None
    ignore_eos: bool = False
    overflow: Literal["error", "drop-oldest"] = "error"
    timeout: float | None = None
    cache: bool | Literal["memory"] = True

    def __post_init__(self) -> None:
        _put_defaults(self)
        if self.max_tokens is not None:
            _check(is_int(self.max_tokens) and self.max_tokens >= 0, "max_tokens", self.max_tokens, "at least 0")
        unit = "a number between 0 and 1"
        for name in ("top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold"):
            value = getattr(self, name)
            _check(is_real(value) and 0 <= value <= 1, name, value, unit)
        for name in ("temperature", "dry_multiplier"):
            value = getattr(self, name)
            _check(is_real(value) and value >= 0, name, value, "a number, at least 0")
        _check(
            is_real(self.repeat_penalty) and self.repeat_penalty > 0,
            "repeat_penalty",
            self.repeat_penalty,
            "a number above 0",
        )
        _check(is_real(self.dry_base) and self.dry_base >= 1, "dry_base", self.dry_base, "a number, at least 1")
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            _check(is_real(value) and -2 <= value <= 2, name, value, "a number between -2 and 2")
        for name, low in (("top_k", 0), ("penalty_last_n", -1), ("dry_last_n", -1), ("dry_allowed_length", 0)):
            value = getattr(self, name)
            _check(is_int(value) and low <= value < 2**63, name, value, f"a whole number, at least {low}")
        if self.seed is not None:
            _check(is_int(self.seed) and 0 <= self.seed < 2**64, "seed", self.seed, "between 0 and 2**64 - 1")
        if self.logprobs is not None:
            _check(is_int(self.logprobs) and 0 <= self.logprobs <= 100, "logprobs", self.logprobs, "between 0 and 100")
        if self.timeout is not None:
            _check(is_real(self.timeout) and self.timeout > 0, "timeout", self.timeout, "a positive number of seconds")
        flag("ignore_eos", self.ignore_eos)
        one_of("cache", self.cache, (True, False, "memory"))
        one_of("overflow", self.overflow, OVERFLOW)
        object.__setattr__(self, "stop", _strings("stop", self.stop))
        object.__setattr__(self, "dry_breakers", _strings("dry_breakers", self.dry_breakers))
        long = next((text for text in self.dry_breakers if len(text) > MAX_BREAKER), None)
        _check(long is None, "dry_breakers", long, f"texts of at most {MAX_BREAKER} characters")
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))


def _strings(name: str, value: object) -> tuple[str, ...]:
    """A string alone counts as a list of one; empty strings are refused."""
    items: tuple[object, ...] = (value,)
    if not isinstance(value, str):
        try:
            items = tuple(value)  # type: ignore[arg-type]
        except TypeError:
            raise refuse(name, value, "a list of strings") from None
    _check(all(isinstance(item, str) and item for item in items), name, value, "non-empty strings")
    return tuple(text(name, item) for item in items)


def _biases(value: object) -> dict[int, float]:
    """A copy, so that nobody changes the options of a generation that has begun."""
    if not isinstance(value, Mapping):
        raise refuse("logit_bias", value, "token ids mapped to numbers")
    biases = {}
    for token, bias in value.items():
        ok = is_real(bias) or (isinstance(bias, float) and bias == -math.inf)
        _check(ok, f"logit_bias[{shown(token)}]", bias, "a number (-inf forbids a token)")
        biases[token_id("logit_bias", token)] = float(bias)
    return biases


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
    instance("params", base, kind, "; give single options as keywords")
    return replace(base, **options) if options else base  # type: ignore[type-var]


class LoadOptions(TypedDict, total=False):
    """LoadParams' options as keywords, for type checkers; None is an option's default."""

    ctx: int | None
    kv_type: Literal["f16", "f32", "q8_0"] | None
    threads: int | None
    gpu_layers: int | Literal["auto"] | None
    flash_attention: bool | None
    micro_batch: int | None
    backend: Literal["auto", "llamacpp", "onnx", "echo"] | None
    trust: bool | None
    offline: bool | None
    cache: CacheParams | None


class GenerateOptions(TypedDict, total=False):
    """GenerateParams' options as keywords, for type checkers; None is an option's default."""

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repeat_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    penalty_last_n: int | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_last_n: int | None
    dry_breakers: Sequence[str] | None
    xtc_probability: float | None
    xtc_threshold: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: Sequence[str] | None
    logprobs: int | None
    ignore_eos: bool | None
    overflow: Literal["error", "drop-oldest"] | None
    timeout: float | None
    cache: bool | Literal["memory"] | None
