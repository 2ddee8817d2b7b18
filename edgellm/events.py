"""What a generation reports: pure values, no behaviour beyond conversion to plain dictionaries."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "timeout"]
"""stop: a stop token or string; length: max_tokens or the end of the context; tool_calls: as stop, and the answer has
calls of tools; cancelled, timeout: as they say."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. cached_tokens of prompt_tokens were reused, not computed.

    reasoning_tokens of completion_tokens were reasoning: those behind the mark that opens it, up to the one that closes
    it and with that, as `thinking_budget` counts them.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds and tokens per second.

    ttft_ms: from request to first token, without load. prefill_tokens_per_second counts computed tokens only, also of
    a prompt whose reading was stopped. drafted: tokens that were computed because they followed the same words before;
    accepted: how many of them the answer has.
    """

    load_ms: float = 0.0
    ttft_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    prefill_tokens_per_second: float = 0.0
    decode_tokens_per_second: float = 0.0
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class CacheReport:
    """How much of the prompt was reused, in tokens, and where and why the known prefix ended.

    from_live + from_memory + from_disk + computed is the length of the prompt, or of what was read of it when the
    answer was stopped before. broke_at is the token position where the prompt left the nearest known one (None: nothing
    near was known, or nothing broke); expected and found are the texts on both sides.
    """

    from_live: int = 0
    from_memory: int = 0
    from_disk: int = 0
    computed: int = 0
    broke_at: int | None = None
    expected: str = ""
    found: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of a token under the model (temperature 1, before filters), and of the likeliest ones."""

    token: int
    text: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool in an answer. `to_dict` is how it stands in a message."""

    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a call, the index-th of its answer from 0 on, as it is written: id and name come once, in front of the
    arguments, whose pieces are JSON when joined.

    complete: this is the last one. Of a call that gets no such piece nothing counts: it was none, or was cut, and what
    the model wrote comes as text.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    complete: bool = False


class Heard(NamedTuple):
    """What a piece of an answer brings: text, reasoning, and pieces of calls, in no other order than this."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished answer. `str(completion)` is its text.

    text: what is said; reasoning: what the model said to itself before; tool_calls: what it calls. Reasoning and calls
    are told from the text in answers to messages, calls where tools were given.

    tokens: ids of the answer, without the stop token. dropped: the messages a chat left out to fit the context.
    parsed: what an answer with a form stands for (`GenerateParams.schema`: the value, or an instance of its class; else
    the text); None where none was asked for or the answer was cut. stop_string: which of `GenerateParams.stop` ended
    it, and is no part of it; None where something else did.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    cache: CacheReport
    backend: str
    threads: int
    seed: int
    logprobs: list[TokenLogprob] | None = None
    dropped: list[dict[str, Any]] = field(default_factory=list)
    parsed: Any = None
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    stop_string: str | None = None

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """The object that `--json` prints: plain lists, dictionaries, strings and numbers; without `parsed`."""
        plain = asdict(replace(self, parsed=None))
        del plain["parsed"]
        if self.logprobs is None:
            del plain["logprobs"]
        else:
            for each in plain["logprobs"]:
                each["text"] = each["text"].decode("utf-8", "replace")
                each["top"] = [
                    {"token": t, "text": b.decode("utf-8", "replace"), "logprob": p} for t, b, p in each["top"]
                ]
        return plain


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer as it arrives: text, reasoning and pieces of calls. The last chunk carries the whole
    Completion."""

    text: str
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    completion: Completion | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()

    @property
    def finish_reason(self) -> FinishReason | None:
        """None until the last chunk."""
        return self.completion.finish_reason if self.completion else None
