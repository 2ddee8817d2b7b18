"""Estimate: what a job would take, without answering a line of it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from edgellm import GenerateParams, Model
from edgellm.errors import EdgeLLMError
from edgellm.jobs.answers import requests_module
from edgellm.jobs.line import Flaw, Line, Plain, parsed
from edgellm.jobs.plain import Defaults, ask_of
from edgellm.jobs.source import Source
from edgellm.serve.ask import Ask, prompt_of
from edgellm.serve.ledger import shared
from edgellm.serve.refusal import Refusal, refusal

PROMPT = 1024  # tokens of the prompt that is read to see how fast that is
ANSWER = 32  # tokens of the answers that are given for that, as many at once as a job would
TEXTS = 4  # that become vectors for that


@dataclass
class Estimate:
    """prompt: tokens of all prompts; unlike: those that no prompt before has; most: tokens of the answers if all are as
    long as they may be. errors: what is wrong with lines, and with how many; first: one of them."""

    lines: int = 0
    prompt: int = 0
    unlike: int = 0
    most: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Speed:
    """Tokens per second that were measured."""

    read: float
    answered: float

    def seconds(self, found: Estimate) -> float:
        """That the job would take at most, if it went on like this."""
        return found.unlike / self.read + (found.most / self.answered if found.most else 0.0)


def estimate(
    source: Source, model: Model, defaults: Defaults, progress: Callable[[int, int], object] = lambda *_: None
) -> Estimate:
    """Read and tokenize every line that is left. progress: told the lines that are read, and all."""
    found, before = Estimate(), list[int]()
    for line in source.lines():
        try:
            for tokens, most in _prompts(line, model, defaults):
                found.prompt += len(tokens)
                found.unlike += len(tokens) - shared(tokens, before)
                found.most += most
                before = tokens
        except (EdgeLLMError, Refusal, Flaw) as error:
            code = error.code if isinstance(error, Flaw) else refusal(error).code
            found.errors[code] += 1
            found.first.setdefault(code, line.number)
        found.lines += 1
        progress(found.lines, source.todo)
    return found


def _prompts(line: Line, model: Model, defaults: Defaults) -> Iterator[tuple[list[int], int]]:
    """The tokens of each prompt of a line, and how long its answer may be. Raises what answering it would."""
    asked = parsed(line.text)
    if isinstance(asked, Plain):
        asks = [ask_of(asked.body, defaults, model)]
    else:
        requests = requests_module()
        asks = requests.asks(asked)
        if asked.url == "/v1/embeddings":
            yield from ((tokens, 0) for tokens in requests.texts(asked, model))
    for ask in asks:
        yield _measured(ask, model)


def _measured(ask: Ask, model: Model) -> tuple[list[int], int]:
    prompt = prompt_of(model, ask)
    tokens = prompt if isinstance(prompt, list) else prompt.tokens
    room = model.n_ctx - len(tokens)
    if room < 1:
        raise Refusal(400, "the prompt is too long", "context_length_exceeded")
    return tokens, room if ask.params.max_tokens is None else min(room, ask.params.max_tokens)


def speed(model: Model, at_once: int) -> Speed:
    """Measure it, in some seconds: a prompt that nobody knows, then `at_once` short answers together."""
    chance = random.Random()
    info = model.info

    def text(length: int) -> list[int]:
        return [chance.randrange(info.n_vocab) for _ in range(max(1, min(length, model.n_ctx // 2)))]

    if not info.can_generate:
        model.embed([text(PROMPT // TEXTS)])  # the first one is slow
        begun = time.perf_counter()
        texts = [text(PROMPT // TEXTS) for _ in range(TEXTS)]
        model.embed(texts)
        return Speed(sum(map(len, texts)) / (time.perf_counter() - begun), 1.0)
    params = GenerateParams(cache=False, ignore_eos=True, max_tokens=1, speculate=False)
    for length in (64, PROMPT):
        begun = time.perf_counter()
        prompt = text(length)
        model.generate(prompt, params)
        read = len(prompt) / (time.perf_counter() - begun)
    length = max(1, min(ANSWER, model.n_ctx // 2))
    before = model.activity().decode
    longer = GenerateParams(cache=False, ignore_eos=True, max_tokens=length, speculate=False)
    for generation in [model.submit(text(8), longer) for _ in range(at_once)]:
        generation.result()
    after = model.activity().decode
    spent, tokens = after.seconds - before.seconds, after.tokens - before.tokens
    return Speed(read, tokens / spent if spent > 0 and tokens else read)
