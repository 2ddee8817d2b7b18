"""LoadParams and GenerateParams: the options of edgellm, validated on construction.

Options travel in these frozen dataclasses; the command line and the Python API build the same ones. A new
option is a field, here and in the keywords below; its flag, its place behind `/set` and its documentation follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypedDict, get_args

from edgellm.option import (
    Adapters,
    Auto,
    Biases,
    Choice,
    Flag,
    Kind,
    Params,
    Real,
    Schema,
    Strings,
    Text,
    Whole,
    of_options,
    option,
)

KvType = Literal["f16", "f32", "q8_0"]
Backend = Literal["auto", "native", "llamacpp", "onnx", "echo"]
Overflow = Literal["error", "drop-oldest"]

KV_TYPES: tuple[str, ...] = get_args(KvType)
DEFAULT_CTX = 8192  # tokens of a context that nobody asked for
MICRO_BATCH = 512  # tokens of a pass
FORMS = ("schema", "regex", "grammar", "choices")  # options that give an answer a form
MAX_BREAKER = 40  # characters of a breaker of DRY, as in llama.cpp, which cuts longer ones

ANSWER, SAMPLING, MODEL = "The answer", "Sampling", "The model"  # sections of help pages
answer, sampling, model = (partial(option, section=each) for each in (ANSWER, SAMPLING, MODEL))
UNIT = Real(0, 1)


@of_options
@dataclass(frozen=True, slots=True)
class CacheParams(Params):
    """Where the state of earlier prompts is kept. 0 bytes switch a tier off."""

    memory: int | None = option(
        None,
        Whole(0, unit="bytes"),
        "Bytes of parked state in host memory",
        unset="1 GiB, or an eighth of the available memory if that is less",
    )
    disk: int | None = option(
        None,
        Whole(0, unit="bytes"),
        "Bytes on disk, shared by all models and processes",
        unset="4 GB, or 10 % of the free space if that is less",
    )


@of_options
@dataclass(frozen=True, slots=True)
class LoadParams(Params):
    """What needs a reload of the model when it changes."""

    ctx: int | None = model(
        None,
        Whole(16, 2**31 - 1, unit="tokens"),
        "Tokens one sequence may hold",
        unset=f"the smaller of {DEFAULT_CTX}, the trained length and what fits in memory",
    )
    kv_type: KvType | None = model(
        None,
        Choice(KV_TYPES),
        "Element type of the KV cache",
        unset="f16 for GGUF files, the graph's with ONNX Runtime",
    )
    threads: int | None = model(None, Whole(1, 512), "Compute threads", unset="the physical cores this process may use")
    gpu_layers: int | Literal["auto"] = model(
        "auto", Auto(Whole(0, 2**31 - 1)), "Layers on a GPU the engine was built for; auto offloads what fits"
    )
    flash_attention: bool | None = model(
        None, Flag(), "Whether flash attention is used", unset="per device: off on a CPU, where it was measured slower"
    )
    micro_batch: int = model(MICRO_BATCH, Whole(16, 8192, step=4), "Tokens of one pass over a prompt")
    max_sequences: int | None = model(
        None,
        Whole(1, 255),
        "Conversations whose state may be in memory at once; more wait",
        unset="8 to 64, one for every 512 tokens that the memory for state holds",
    )
    backend: Backend = model("auto", Choice(("auto", "native", "llamacpp", "onnx"), unlisted=("echo",)), "Engine")
    adapters: Any = model(
        (),
        Adapters(),
        "An adapter that requests may name, a PEFT folder or GGUF file; may be repeated",
        spelling="adapter",
    )
    trust: bool = model(False, Flag(), "Skip the trial load of files outside the known-good ranges")
    offline: bool = model(False, Flag(), "Never use the network, not even for a name that is not here yet")
    cache: CacheParams = option(CacheParams(), Kind(CacheParams), "Where the state of earlier prompts is kept")


@of_options
@dataclass(frozen=True, slots=True)
class GenerateParams(Params):
    """Sampling and stopping of one generation."""

    max_tokens: int | None = answer(
        None, Whole(0), "Longest answer, in tokens", unset="until a stop or the end of the context"
    )
    temperature: float = sampling(0.8, Real(0), "0 takes the likeliest token")
    top_n_sigma: float = sampling(
        -1.0, Real(-1), "Drop tokens whose logits are n standard deviations below the largest; 0 and less is off"
    )
    top_k: int = sampling(40, Whole(0), "Keep the k likeliest tokens; 0 is off")
    top_p: float = sampling(0.95, UNIT, "Keep the likeliest tokens that sum to p; 1 is off")
    min_p: float = sampling(0.05, UNIT, "Drop tokens below p times the likeliest; 0 is off")
    typical_p: float = sampling(1.0, UNIT, "Keep the tokens of most typical surprise that sum to p; 1 is off")
    repeat_penalty: float = sampling(1.0, Real(0, above=True), "Divide the logits of recent tokens; 1 is off")
    frequency_penalty: float = sampling(0.0, Real(-2, 2), "Lower the logits of recent tokens by this, for each time")
    presence_penalty: float = sampling(0.0, Real(-2, 2), "Lower the logits of recent tokens by this, once")
    penalty_last_n: int = sampling(64, Whole(-1), "How many tokens are recent; -1 is all")
    dry_multiplier: float = sampling(0.0, Real(0), "Strength of DRY, against repeated sequences; 0 is off")
    dry_base: float = sampling(1.75, Real(1), "DRY: growth with the length of a repetition")
    dry_allowed_length: int = sampling(2, Whole(0), "DRY: repetitions up to this length are free")
    dry_last_n: int = sampling(-1, Whole(-1), "DRY: how many tokens it looks back; -1 is all")
    dry_breakers: tuple[str, ...] = sampling(
        ("\n", ":", '"', "*"), Strings(MAX_BREAKER), "DRY: strings that end a sequence; may be repeated"
    )
    xtc_probability: float = sampling(0.0, UNIT, "How often XTC drops the likeliest tokens; 0 is off")
    xtc_threshold: float = sampling(0.1, UNIT, "XTC: from which probability on a token may be dropped")
    logit_bias: Mapping[int, float] = sampling(
        {}, Biases(), "Add BIAS to the logit of the token ID; -inf forbids it; may be repeated"
    )
    seed: int | None = sampling(
        None, Whole(0, 2**64 - 1), "The same seed gives the same answer", unset="one drawn for each answer"
    )
    adapter: str | None = model(
        None,
        Text(),
        "The adapter to answer with, by the name that it was loaded under",
        unset="none",
        spelling="use-adapter",
    )
    stop: Sequence[str] = answer((), Strings(), "End the answer before this text; may be repeated")
    schema: Mapping[str, Any] | type | bool | None = answer(
        None, Schema(), "The answer is JSON, valid by this schema (2020-12)", spelling="json-schema"
    )
    regex: str | None = answer(None, Text(), "The answer matches this regular expression, whole")
    grammar: str | None = answer(
        None, Text(file=True), "The answer is a text of this grammar: Lark's form, or llama.cpp's (GBNF)"
    )
    choices: Sequence[str] | None = answer(None, Strings(least=1), "The answer is one of these texts; may be repeated")
    thinking_budget: int | None = answer(
        None,
        Whole(0, unit="tokens"),
        "Longest reasoning of a model that thinks; then it is ended, and the answer goes on",
        unset="as long as the model thinks",
    )
    logprobs: int | None = answer(
        None, Whole(0, 100), "Report the N likeliest tokens beside each chosen one; `edgellm run` does with --json"
    )
    ignore_eos: bool = answer(False, Flag(), "Go on after the model's end of an answer")
    overflow: Overflow = answer(
        "error", Choice(get_args(Overflow)), "When a conversation outgrows the context: stop, or drop the oldest turns"
    )
    timeout: float | None = answer(None, Real(0, unit="seconds", above=True), "Seconds after which the answer ends")
    speculate: bool | None = answer(
        None,
        Flag(),
        "Whether tokens that followed the same words before are checked several at a time, while that is faster",
        unset="where it changes no answer: with llama.cpp and ONNX Runtime rounding then differs",
    )
    cache: bool | Literal["memory"] = option(
        True,
        Choice((True, False, "memory")),
        "Whether known state is used and this request's is kept; memory: off the disk, and found by none but its "
        "conversation, or outside of one by this program's other requests with memory",
    )


class LoadOptions(TypedDict, total=False):
    """LoadParams' options as keywords, for type checkers; None is an option's default."""

    ctx: int | None
    kv_type: KvType | None
    threads: int | None
    gpu_layers: int | Literal["auto"] | None
    flash_attention: bool | None
    micro_batch: int | None
    max_sequences: int | None
    backend: Backend | None
    adapters: Sequence[Any] | Mapping[str, Any] | None
    trust: bool | None
    offline: bool | None
    cache: CacheParams | None


class GenerateOptions(TypedDict, total=False):
    """GenerateParams' options as keywords, for type checkers; None is an option's default."""

    max_tokens: int | None
    temperature: float | None
    top_n_sigma: float | None
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
    adapter: str | None
    stop: Sequence[str] | None
    schema: Mapping[str, Any] | type | bool | None
    regex: str | None
    grammar: str | None
    choices: Sequence[str] | None
    thinking_budget: int | None
    logprobs: int | None
    ignore_eos: bool | None
    overflow: Overflow | None
    timeout: float | None
    speculate: bool | None
    cache: bool | Literal["memory"] | None
