"""Prefill and decode of engines side by side, on ONNX folders and the GGUF file they stand for.

    python benchmarks/onnx_engines.py NAME=KIND:PATH[@PYTHON] ... [--prompt 512] [--tokens 64] [--rounds 5] [--json]

The first one is what the others are compared with. KIND: edgellm (a folder or a GGUF file), genai (onnxruntime-genai),
optimum (its ORTModelForCausalLM) or openvino (OpenVINO GenAI, which also reads GGUF). PYTHON: the interpreter of an
environment that has the engine; this one's without it. For example:

    python benchmarks/onnx_engines.py onnx=edgellm:smollm2-int4 gguf=edgellm:smollm2.gguf \\
        genai=genai:smollm2-genai@venv-genai/bin/python

Every engine runs in a process of its own, loaded once. In each round all answer the same prompt of random tokens, in an
order that moves on by one place, and no prompt comes twice; a first round is discarded. A ratio is of one round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

Answer = Callable[[list[int], int], tuple[float, float]]  # prompt, tokens → seconds to the first token, and of the rest


def edgellm_engine(path: str, threads: int, ctx: int) -> Answer:
    """No cache: every prompt is computed."""
    import edgellm

    cache = edgellm.CacheParams(memory=0, disk=0)
    model = edgellm.load(path, threads=threads, ctx=ctx, cache=cache)

    def answer(prompt: list[int], count: int) -> tuple[float, float]:
        started = time.perf_counter()
        options: dict[str, Any] = {"max_tokens": count, "temperature": 0, "ignore_eos": True, "cache": False}
        done = model.generate(prompt, **options)
        whole = time.perf_counter() - started
        if done.usage.completion_tokens != count or done.usage.cached_tokens:
            raise SystemExit(f"{path}: {done.usage} where {count} tokens were to be computed")
        first = done.timings.ttft_ms / 1e3
        return first, whole - first

    return answer


def genai_engine(path: str, threads: int, ctx: int) -> Answer:
    import numpy as np
    import onnxruntime_genai as og  # type: ignore[import-not-found]

    config = og.Config(path)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)

    def answer(prompt: list[int], count: int) -> tuple[float, float]:
        params = og.GeneratorParams(model)
        total = len(prompt) + count
        params.set_search_options(max_length=total, min_length=total, do_sample=False)
        generator = og.Generator(model, params)
        started = time.perf_counter()
        generator.append_tokens(np.array([prompt], np.int32))
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(count - 1):
            generator.generate_next_token()
        return first - started, time.perf_counter() - first

    return answer


def optimum_engine(path: str, threads: int, ctx: int) -> Answer:
    import onnxruntime  # type: ignore[import-not-found, unused-ignore]
    import torch  # type: ignore[import-not-found, unused-ignore]
    from optimum.onnxruntime import ORTModelForCausalLM  # type: ignore[import-not-found]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = ORTModelForCausalLM.from_pretrained(path, session_options=options, use_io_binding=False)

    def generate(prompt: list[int], count: int) -> float:
        ids = torch.tensor([prompt])
        started = time.perf_counter()
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        if out.shape[1] != len(prompt) + count:
            raise SystemExit(f"{path}: {out.shape[1] - len(prompt)} tokens instead of {count}")
        return time.perf_counter() - started

    def answer(prompt: list[int], count: int) -> tuple[float, float]:
        first = generate(prompt, 1)
        return first, generate(prompt, count) - first

    return answer


def openvino_engine(path: str, threads: int, ctx: int) -> Answer:
    import numpy as np
    import openvino as ov  # type: ignore[import-not-found]
    import openvino_genai as ovg  # type: ignore[import-not-found]

    pipe = ovg.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)

    def answer(prompt: list[int], count: int) -> tuple[float, float]:
        config = ovg.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        ids = np.array([prompt], np.int64)
        inputs = ovg.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        started = time.perf_counter()
        found = pipe.generate(inputs, config)
        whole = time.perf_counter() - started
        first = found.perf_metrics.get_ttft().mean / 1e3
        return first, whole - first

    return answer


ENGINES = {"edgellm": edgellm_engine, "genai": genai_engine, "optimum": optimum_engine, "openvino": openvino_engine}


def serve(kind: str, path: str, threads: int, ctx: int) -> None:
    """Answer the requests on stdin, one JSON object a line; the engine's own words go to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer = ENGINES[kind](path, threads, ctx)
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        first, rest = answer(asked["prompt"], asked["tokens"])
        print(
            json.dumps({"prefill": len(asked["prompt"]) / first, "decode": (asked["tokens"] - 1) / rest}), file=replies
        )
        replies.flush()


class Worker:
    """An engine in a process of its own."""

    def __init__(self, given: str, threads: int, ctx: int) -> None:
        self.name, _, rest = given.partition("=")
        kind, _, place = rest.partition(":")
        path, _, python = place.partition("@")
        if kind not in ENGINES or not path:
            raise SystemExit(f"{given!r}: expected NAME=KIND:PATH[@PYTHON], KIND one of {', '.join(ENGINES)}")
        command = [
            python or sys.executable,
            __file__,
            "--serve",
            kind,
            path,
            "--threads",
            str(threads),
            "--ctx",
            str(ctx),
        ]
        environment = {**os.environ, "GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._receive()

    def _receive(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: ended with code {self._process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found

    def ask(self, prompt: list[int], tokens: int) -> dict[str, float]:
        """Tokens per second of both parts."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompt": prompt, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        return self._receive()

    def close(self) -> None:
        self._process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", metavar="NAME=KIND:PATH[@PYTHON]")
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "PATH"), help=argparse.SUPPRESS)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=40_000, help="tokens are drawn from below this")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) if sys.platform == "linux" else 4)
    parser.add_argument("--ctx", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    ctx = options.ctx or options.prompt + options.tokens + 64
    if options.serve:
        serve(*options.serve, options.threads, ctx)
        return
    workers = [Worker(given, options.threads, ctx) for given in options.engines]
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(options.rounds + 1):
        prompt = [random.Random(number).randrange(300, options.vocabulary) for _ in range(options.prompt)]
        order = workers[number % len(workers) :] + workers[: number % len(workers)]
        measured = {worker.name: worker.ask(prompt, options.tokens) for worker in order}
        if number:
            rounds.append(measured)
    for worker in workers:
        worker.close()
    if options.json:
        print(json.dumps(rounds, indent=2))
        return
    first = workers[0].name
    print(f"{'':12}{'prefill tokens/s':>18}{'decode tokens/s':>18}   {first} is so many times as fast")
    for worker in workers:
        cells = []
        for part in ("prefill", "decode"):
            ratios = sorted(one[first][part] / one[worker.name][part] for one in rounds)
            shown = f"{part} {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
            cells.append((statistics.median(one[worker.name][part] for one in rounds), shown))
        print(f"{worker.name:12}{cells[0][0]:18.1f}{cells[1][0]:18.1f}   {cells[0][1]}, {cells[1][1]}")


if __name__ == "__main__":
    main()
