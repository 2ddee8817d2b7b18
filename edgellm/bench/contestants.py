"""Contestants: engines that answer a prompt greedily and say how long they took.

Each is built in its own process (worker.py) as `Contestant(path, n_ctx, threads)`, with a context of `n_ctx` tokens
and the CPU alone. None may reuse anything of an earlier prompt. Each imports its engine when it is built, so that the
time to the first token of a new process holds no other's imports.
"""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from edgellm.errors import BackendFailed, ModelLoadError
from edgellm.params import Backend

MICRO_BATCH = 512  # tokens of one prefill pass
WORDS = """
river stone house garden winter letter market doctor window silver bridge travel music yellow paper animal morning
kitchen forest teacher island summer people engine mountain village dinner bottle castle simple early round heavy
under between because often never always about their would could after before small great every other water light
"""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The same prompt for everyone. Engines that take no token ids get `text`, and count its tokens themselves."""

    tokens: list[int]
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer. first_s: from the request to the first token. rest_s: from there to the end of the answer.

    prompt, produced: tokens of the prompt and of the answer. answer: its token ids, where the engine tells them.
    """

    first_s: float
    rest_s: float
    prompt: int
    produced: int
    answer: list[int] | None = None


class Contestant(Protocol):
    """settings: what a reader must know to judge the figures, as plain values."""

    settings: dict[str, Any]

    def generate(self, prompt: Prompt, new_tokens: int) -> Sample:
        """The greedy continuation of `prompt`. An engine that cannot be told to go on may stop early."""
        ...


class EdgeLLM:
    """edgellm as a program uses it: `edgellm.load` and `Model.generate`."""

    def __init__(self, path: str, n_ctx: int, threads: int, *, backend: Backend = "auto") -> None:
        import edgellm

        self.model = edgellm.load(path, ctx=n_ctx, threads=threads, gpu_layers=0, backend=backend)
        # Without drafts: what the engine computes is measured, not how often a small model repeats itself.
        self._params = edgellm.GenerateParams(temperature=0, ignore_eos=True, cache=False, speculate=False)
        self.settings = {
            "version": edgellm.__version__,
            "threads": self.model.threads,
            "n_ctx": self.model.n_ctx,
            "backend": self.model.backend,
            "why": self.model.info.engine_reason,
        }

    def generate(self, prompt: Prompt, new_tokens: int) -> Sample:
        started = time.perf_counter()
        done = self.model.generate(prompt.tokens, self._params, max_tokens=new_tokens)
        total = time.perf_counter() - started
        if done.usage.cached_tokens:
            raise BackendFailed(f"{done.usage.cached_tokens} tokens of a prompt were reused: this measures nothing")
        first = total if new_tokens == 1 else 1e-3 * done.timings.ttft_ms
        return Sample(first, total - first, len(prompt.tokens), len(done.tokens), done.tokens)

    def write_prompt(self, size: int, seed: int) -> Prompt:
        """A prompt of `size` tokens of random words, the same for the same seed and model."""
        draw, words = random.Random(seed), WORDS.split()
        tokens = self.model.encode(" ".join(draw.choice(words) for _ in range(size)), bos=False)[:size]
        return Prompt(tokens, self.model.decode(tokens))


class BareLoop:
    """A greedy loop on llama.cpp's C API with edgellm's settings and nothing around it: what there is to reach.

    Passes of up to 512 prompt tokens, then of one token; the row of logits is searched where it lies.
    """

    def __init__(self, path: str, n_ctx: int, threads: int) -> None:
        from numpy.ctypeslib import as_array

        from edgellm.backends.llamacpp import library
        from edgellm.backends.llamacpp.reason import reason

        self._as_array = as_array
        lib = self._lib = library.load_library()
        loading = library.model_params()
        with library.capture_log() as lines:
            model = lib.llama_model_load_from_file(path.encode(), loading)
            if not model:
                raise ModelLoadError(f"{path}: llama.cpp refused the file: {reason(lines)}")
            params = lib.llama_context_default_params()
            params.n_ctx = n_ctx
            params.n_batch = params.n_ubatch = MICRO_BATCH
            params.n_threads = params.n_threads_batch = threads
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.type_k = params.type_v = lib.GGML_TYPE_F16
            params.no_perf = True
            self._context = lib.llama_init_from_model(model, params)
            if not self._context:
                raise ModelLoadError(f"{path}: no context of {n_ctx} tokens: {reason(lines)}")
        self._n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self.settings = {
            "threads": threads,
            "n_ctx": n_ctx,
            "n_batch": MICRO_BATCH,
            "flash_attention": False,
            "kv_type": "f16",
            "use_extra_bufts": bool(loading.use_extra_bufts),
        }

    def generate(self, prompt: Prompt, new_tokens: int) -> Sample:
        lib, tokens = self._lib, prompt.tokens
        lib.llama_memory_clear(lib.llama_get_memory(self._context), False)
        started = time.perf_counter()
        for at in range(0, len(tokens), MICRO_BATCH):
            self._pass(tokens[at : at + MICRO_BATCH])
        answer = [self._likeliest()]
        first = time.perf_counter()
        while len(answer) < new_tokens:
            self._pass(answer[-1:])
            answer.append(self._likeliest())
        ended = time.perf_counter()
        return Sample(first - started, ended - first, len(tokens), len(answer), answer)

    def _pass(self, tokens: list[int]) -> None:
        given = (ctypes.c_int32 * len(tokens))(*tokens)
        code = self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(given, len(tokens)))
        if code:
            raise BackendFailed(f"llama_decode returned {code} for {len(tokens)} tokens")

    def _likeliest(self) -> int:
        row = self._lib.llama_get_logits_ith(self._context, -1)
        return int(self._as_array(row, (self._n_vocab,)).argmax())


@dataclass(frozen=True, slots=True)
class Candidate:
    """A contestant before it is started. requires: the module that it imports and edgellm does not bring."""

    name: str
    build: Callable[[str, int, int], Contestant]
    about: str
    requires: str | None = None


EDGELLM = Candidate("edgellm", EdgeLLM, "Model.generate, temperature 0")
BARE_LOOP = Candidate("bare loop", BareLoop, "a greedy loop on llama.cpp's C API with edgellm's settings")
