"""One engine in a process of its own, for engines.py. Run by whatever Python has the engine, so that only edgellm's own
kinds need edgellm there.

    engine_child.py KIND PATH --threads N --ctx N [--remember]

A line of JSON with what was loaded goes to stdout, then one for each request on stdin:

    {"prompt": [ids], "tokens": n}            → {"first_s", "rest_s", "produced", "cached"}: seconds to the first token,
                                                and from there to the end of the answer
    {"prompts": [[ids], …], "tokens": n}      → {"streams_per_s", "produced"}: tokens per second of all of them
                                                together, and how many each has, of those asked
    {"fork": [ids], "count": n}               → {"fork_s", "forks_bytes"}: of edgellm's sequences, median; what all of
                                                them add to the resident memory once each has a token of its own
    all                                       with {"resident", "peak"} bytes of memory and {"idle_cpu"}: seconds of
                                                work per second since the answer before it, if that is some while ago;
                                                {"error"} where it fails

--remember: edgellm keeps what it reads, in the state folder of the environment; without it nobody keeps anything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

Ids = list[int]


class Engine(Protocol):
    """load_s: seconds of loading, without imports. version: of what runs."""

    load_s: float
    version: str

    def answer(self, prompt: Ids, count: int) -> dict[str, Any]:
        """Greedily, `count` tokens whatever they are."""
        ...

    def together(self, prompts: list[Ids], count: int) -> dict[str, Any]:
        """The same for several prompts of one length at once."""
        ...


class EdgeLLM:
    """edgellm as a program uses it."""

    def __init__(self, path: str, threads: int, ctx: int, remember: bool, backend: str) -> None:
        import edgellm

        cache = edgellm.CacheParams() if remember else edgellm.CacheParams(memory=0, disk=0)
        options: dict[str, Any] = {"backend": backend, "cache": cache, "gpu_layers": 0}
        started = time.perf_counter()
        self._model = edgellm.load(path, threads=threads, ctx=ctx, **options)
        self.load_s = time.perf_counter() - started
        self.version = f"{edgellm.__version__} ({self._model.backend})"
        self._options: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "cache": remember, "speculate": False}

    def close(self) -> None:
        """What is remembered reaches the disk."""
        self._model.close()

    def answer(self, prompt: Ids, count: int) -> dict[str, Any]:
        started = time.perf_counter()
        done = self._model.generate(prompt, max_tokens=count, **self._options)
        whole = time.perf_counter() - started
        first = whole if count == 1 else 1e-3 * done.timings.ttft_ms
        cached = done.usage.cached_tokens
        return {"first_s": first, "rest_s": whole - first, "produced": len(done.tokens), "cached": cached}

    def together(self, prompts: list[Ids], count: int) -> dict[str, Any]:
        """While all of them run: from the last one's first token to the first one's last."""
        arrived: list[list[float]] = [[] for _ in prompts]

        def read(index: int) -> None:
            for chunk in self._model.stream(prompts[index], max_tokens=4 * count, **self._options):
                arrived[index] += [time.perf_counter()] * len(chunk.tokens)
                if all(len(times) > count for times in arrived):
                    return

        readers = [threading.Thread(target=read, args=(index,)) for index in range(len(prompts))]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        begin, end = max(times[0] for times in arrived), min(times[-1] for times in arrived)
        within = sum(begin < at <= end for times in arrived for at in times)
        return {"streams_per_s": within / (end - begin), "produced": min(count, min(map(len, arrived)) - 1)}

    def fork(self, prompt: Ids, count: int) -> dict[str, Any]:
        """Forks of one sequence that holds the prompt."""
        from edgellm.backends.base import Backend, Step

        def run(backend: Backend) -> dict[str, Any]:
            with contextlib.ExitStack() as opened:
                whole = backend.new_sequence(len(prompt))
                opened.callback(whole.close)
                for at in range(0, len(prompt), backend.micro_batch):
                    backend.forward([Step(whole, prompt[at : at + backend.micro_batch], "none")])
                before, taken, forks = memory()["resident"], [], []
                for _ in range(count):
                    started = time.perf_counter()
                    forks.append(whole.fork())
                    taken.append(time.perf_counter() - started)
                    opened.callback(forks[-1].close)
                for fork in forks:
                    backend.forward([Step(fork, prompt[:1], "last")])
                return {"fork_s": statistics.median(taken), "forks_bytes": memory()["resident"] - before}

        return self._model._engine.call(run, needs_room=True)


class GenAI:
    """onnxruntime-genai, on a folder with a genai_config.json."""

    def __init__(self, path: str, threads: int) -> None:
        import numpy as np
        import onnxruntime_genai as og  # type: ignore[import-not-found, import-untyped, unused-ignore]

        self._og, self._np = og, np
        config = og.Config(path)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        started = time.perf_counter()
        self._model = og.Model(config)
        self.load_s = time.perf_counter() - started
        self.version = metadata.version("onnxruntime-genai")

    def _run(self, prompts: list[Ids], count: int) -> tuple[float, float, int]:
        params = self._og.GeneratorParams(self._model)
        total, batch = len(prompts[0]) + count, len(prompts)
        params.set_search_options(max_length=total, min_length=total, do_sample=False, batch_size=batch)
        generator = self._og.Generator(self._model, params)
        started = time.perf_counter()
        generator.append_tokens(self._np.array(prompts, self._np.int32))
        generator.generate_next_token()
        first = time.perf_counter()
        while generator.token_count() < total:
            generator.generate_next_token()
        ended = time.perf_counter()
        return first - started, ended - first, len(generator.get_sequence(batch - 1)) - len(prompts[0])

    def answer(self, prompt: Ids, count: int) -> dict[str, Any]:
        first, rest, produced = self._run([prompt], count)
        return {"first_s": first, "rest_s": rest, "produced": produced, "cached": 0}

    def together(self, prompts: list[Ids], count: int) -> dict[str, Any]:
        _first, rest, produced = self._run(prompts, count)
        return {"streams_per_s": len(prompts) * (produced - 1) / rest, "produced": produced}


class OpenVINO:
    """OpenVINO GenAI, which reads some GGUF files. No prompt comes twice, so it finds nothing in its prefix cache."""

    def __init__(self, path: str, threads: int) -> None:
        import numpy as np
        import openvino as ov  # type: ignore[import-not-found, import-untyped, unused-ignore]
        import openvino_genai as ovg  # type: ignore[import-not-found, import-untyped, unused-ignore]

        self._np, self._ov, self._ovg = np, ov, ovg
        started = time.perf_counter()
        self._pipeline = ovg.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
        self.load_s = time.perf_counter() - started
        self.version = metadata.version("openvino-genai")

    def _run(self, prompts: list[Ids], count: int) -> tuple[float, float, int]:
        config = self._ovg.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        ids = self._np.array(prompts, self._np.int64)
        inputs = self._ovg.TokenizedInputs(self._ov.Tensor(ids), self._ov.Tensor(self._np.ones_like(ids)))
        started = time.perf_counter()
        found = self._pipeline.generate(inputs, config)
        whole = time.perf_counter() - started
        first = whole if count == 1 else 1e-3 * found.perf_metrics.get_ttft().mean
        return first, whole - first, min(len(answer) for answer in found.tokens)

    def answer(self, prompt: Ids, count: int) -> dict[str, Any]:
        first, rest, produced = self._run([prompt], count)
        return {"first_s": first, "rest_s": rest, "produced": produced, "cached": 0}

    def together(self, prompts: list[Ids], count: int) -> dict[str, Any]:
        _first, rest, produced = self._run(prompts, count)
        return {"streams_per_s": len(prompts) * (produced - 1) / rest, "produced": produced}


class Optimum:
    """optimum's ORTModelForCausalLM, which tells no time to the first token: it is asked twice."""

    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime  # type: ignore[import-not-found, import-untyped, unused-ignore]
        import torch  # type: ignore[import-not-found, unused-ignore]
        from optimum.onnxruntime import ORTModelForCausalLM  # type: ignore[import-not-found, unused-ignore]

        self._torch = torch
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        started = time.perf_counter()
        self._model = ORTModelForCausalLM.from_pretrained(path, session_options=options, use_io_binding=False)
        self.load_s = time.perf_counter() - started
        self.version = metadata.version("optimum")

    def _run(self, prompts: list[Ids], count: int) -> tuple[float, int]:
        ids = self._torch.tensor(prompts)
        started = time.perf_counter()
        mask = self._torch.ones_like(ids)
        out = self._model.generate(
            ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False
        )
        return time.perf_counter() - started, out.shape[1] - len(prompts[0])

    def answer(self, prompt: Ids, count: int) -> dict[str, Any]:
        first, _one = self._run([prompt], 1)
        whole, produced = self._run([prompt], count)
        return {"first_s": first, "rest_s": whole - first, "produced": produced, "cached": 0}

    def together(self, prompts: list[Ids], count: int) -> dict[str, Any]:
        first, _one = self._run(prompts, 1)
        whole, produced = self._run(prompts, count)
        return {"streams_per_s": len(prompts) * (produced - 1) / (whole - first), "produced": produced}


PEERS: dict[str, Any] = {"genai": GenAI, "openvino": OpenVINO, "optimum": Optimum}
OURS = {"edgellm": "auto", "native": "native", "llamacpp": "llamacpp", "onnx": "onnx"}


def memory() -> dict[str, int]:
    """Resident bytes of this process, now and at their highest; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {"resident": 0, "peak": 0}
    pairs = (line.partition(":") for line in lines if line.endswith(" kB"))
    fields = {name: 1024 * int(rest.split()[0]) for name, _, rest in pairs}
    return {"resident": fields["VmRSS"], "peak": fields["VmHWM"]}


def respond(engine: Engine, asked: dict[str, Any]) -> dict[str, Any]:
    """What a request is answered with."""
    if "fork" in asked:
        assert isinstance(engine, EdgeLLM)
        return engine.fork(asked["fork"], asked["count"])
    if "prompts" in asked:
        return engine.together(asked["prompts"], asked["tokens"])
    return engine.answer(asked["prompt"], asked["tokens"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*OURS, *PEERS])
    parser.add_argument("path")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--ctx", type=int, required=True)
    parser.add_argument("--remember", action="store_true")
    options = parser.parse_args()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the engine's own words go to stderr
    engine: Engine
    if options.kind in OURS:
        engine = EdgeLLM(options.path, options.threads, options.ctx, options.remember, OURS[options.kind])
    else:
        engine = PEERS[options.kind](options.path, options.threads)
    print(json.dumps({"load_s": engine.load_s, "version": engine.version}), file=replies, flush=True)
    rested, worked = time.perf_counter(), time.process_time()
    for line in sys.stdin:
        waited = time.perf_counter() - rested
        idle = (time.process_time() - worked) / waited if waited > 1 else 0.0
        asked = json.loads(line)
        try:
            found = respond(engine, asked)
        except Exception as error:  # its figure is missing, and it goes on
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({**found, **memory(), "idle_cpu": idle}), file=replies, flush=True)
        rested, worked = time.perf_counter(), time.process_time()
    if isinstance(engine, EdgeLLM):
        engine.close()


if __name__ == "__main__":
    main()
