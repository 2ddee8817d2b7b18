"""Peers: other Python packages that run GGUF files, each used as its documentation shows. None is a dependency.

All get the threads that edgellm uses, but for `llama_cpp.Llama` at its defaults, and the context that is needed. What
else is set differs from a package's defaults only where it would print, listen to the network or reuse earlier prompts.
"""

from __future__ import annotations

import time
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgellm.bench.contestants import MICRO_BATCH, Candidate, Prompt, Sample
from edgellm.errors import Unsupported


class LlamaCppPython:
    """`llama_cpp.Llama` as it comes, except that its context of 512 tokens is raised; tuned: with the settings that
    suit this machine, all cores and no flash attention.

    Of a build with AMX it would crash where edgellm's guard finds that AMX does; the guard is applied here too.
    """

    def __init__(self, path: str, n_ctx: int, threads: int, *, tuned: bool = False) -> None:
        from edgellm.backends.llamacpp import library

        library.load_library()
        if not library.extra_buffers().use:
            raise Unsupported("llama_cpp.Llama cannot be told to leave AMX out, and would crash here")
        from llama_cpp import Llama

        options: dict[str, Any] = {"n_ctx": n_ctx}
        if tuned:
            options |= {"n_threads": threads, "n_batch": MICRO_BATCH, "flash_attn": False}
        self._llama: Any = Llama(path, verbose=False, **options)
        self.settings: dict[str, Any] = {
            "version": metadata.version("llama-cpp-python"),
            "n_threads": self._llama.n_threads,
            **options,
        }

    def generate(self, prompt: Prompt, new_tokens: int) -> Sample:
        sampled: list[float] = []

        def stamp(_tokens: Any, _logits: Any) -> bool:  # called for every token and once at the end; never stops
            sampled.append(time.perf_counter())
            return False

        self._llama.reset()
        started = time.perf_counter()
        self._llama.create_completion(prompt.tokens, max_tokens=new_tokens, temperature=0, stopping_criteria=stamp)
        ended = time.perf_counter()
        first = ended if new_tokens == 1 else sampled[0]
        return Sample(first - started, ended - first, len(prompt.tokens), len(sampled) - 1)


class XLlamaCpp:
    """xllamacpp: llama.cpp's server inside the process, asked without HTTP."""

    def __init__(self, path: str, n_ctx: int, threads: int) -> None:
        package = import_module("xllamacpp")
        params = package.CommonParams()
        params.model.path = path
        params.n_ctx, params.n_parallel = n_ctx, 1
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = threads
        params.verbosity = 0
        self._server: Any = package.Server(params)
        self.settings = {"version": metadata.version("xllamacpp"), "n_threads": threads, "n_ctx": n_ctx}

    def generate(self, prompt: Prompt, new_tokens: int) -> Sample:
        request = {"prompt": prompt.tokens, "n_predict": new_tokens, "temperature": 0, "ignore_eos": True}
        started = time.perf_counter()
        reply = self._server.handle_completions({**request, "cache_prompt": False})
        total = time.perf_counter() - started
        first = total if new_tokens == 1 else 1e-3 * reply["timings"]["prompt_ms"]
        usage = reply["usage"]
        return Sample(first, total - first, usage["prompt_tokens"], usage["completion_tokens"])


class OpenVINO:
    """openvino-genai: `LLMPipeline` on the CPU, which converts some GGUF files when it loads them."""

    def __init__(self, path: str, n_ctx: int, threads: int) -> None:
        self._package = import_module("openvino_genai")
        self._tensor = import_module("openvino").Tensor
        self._pipeline = self._package.LLMPipeline(path, "CPU", {}, INFERENCE_NUM_THREADS=threads)
        self.settings = {"version": metadata.version("openvino-genai"), "INFERENCE_NUM_THREADS": threads}

    def generate(self, prompt: Prompt, new_tokens: int) -> Sample:
        import numpy as np

        config = self._package.GenerationConfig()
        config.max_new_tokens, config.ignore_eos = new_tokens, True
        started = time.perf_counter()
        done = self._pipeline.generate(self._tensor(np.array([prompt.tokens], np.int64)), config)
        total = time.perf_counter() - started
        first = total if new_tokens == 1 else 1e-3 * done.perf_metrics.get_ttft().mean
        answer = [int(token) for token in done.tokens[0]]
        return Sample(first, total - first, len(prompt.tokens), len(answer), answer)


class MistralRS:
    """mistral.rs: `Runner`, which takes text and counts the tokens itself. It uses every core and cannot be told."""

    def __init__(self, path: str, n_ctx: int, threads: int) -> None:
        self._package = import_module("mistralrs")
        file = Path(path)
        which = self._package.Which.GGUF(quantized_model_id=str(file.parent), quantized_filename=file.name)
        self._runner = self._package.Runner(which=which, prefix_cache_n=0, token_source="none")
        self.settings: dict[str, Any] = {"version": metadata.version("mistralrs")}

    def generate(self, prompt: Prompt, new_tokens: int) -> Sample:
        request = self._package.CompletionRequest(
            prompt=prompt.text, model="default", max_tokens=new_tokens, temperature=0.0, ignore_eos=True
        )
        started = time.perf_counter()
        usage = self._runner.send_completion_request(request).usage
        total = time.perf_counter() - started
        first = total if new_tokens == 1 else usage.total_prompt_time_sec
        return Sample(first, total - first, usage.prompt_tokens, usage.completion_tokens)


TUNED = partial(LlamaCppPython, tuned=True)
PEERS = (
    Candidate("llama_cpp", LlamaCppPython, "llama_cpp.Llama at its defaults, but for the context length", "llama_cpp"),
    Candidate("llama_cpp tuned", TUNED, "llama_cpp.Llama on all cores, flash attention off", "llama_cpp"),
    Candidate("xllamacpp", XLlamaCpp, "Server.handle_completions", "xllamacpp"),
    Candidate("openvino-genai", OpenVINO, "LLMPipeline.generate", "openvino_genai"),
    Candidate("mistralrs", MistralRS, "Runner.send_completion_request, from text", "mistralrs"),
)


def installed() -> tuple[list[Candidate], dict[str, str]]:
    """The peers that are installed here, and why the others do not take part, by name."""
    here = [candidate for candidate in PEERS if candidate.requires and find_spec(candidate.requires)]
    absent = {candidate.name: "not installed" for candidate in PEERS if candidate not in here}
    if find_spec("onnxruntime_genai"):
        absent["onnxruntime-genai"] = f"{metadata.version('onnxruntime-genai')} cannot run this file: it reads no GGUF"
    else:
        absent["onnxruntime-genai"] = "not installed"
    return here, absent
