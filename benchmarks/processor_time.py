"""Tokens per second of processor time, of one thread: for a machine that does something else beside.

    python benchmarks/processor_time.py [native] [llamacpp] [onnx:FOLDER] [PROGRAM -rtr 1 …] --model MODEL.gguf

An engine is a backend of edgellm, or llama-bench of llama.cpp or ik_llama.cpp with its options, as one argument.
Waiting for a processor does not count here, as it does in engines.py; caches and the memory's bandwidth are shared with
whatever runs, so that figures are lower than on a quiet machine, and ranges wide. What threads lose to each other is
not seen.

Every measurement is a process, in --rounds rounds over all engines. Prefill: of 512 and of 2,048 tokens. Decode: the
difference between 129 tokens and one, behind prompts of 64 and of 2,048. Behind them: how many times better the first
one was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import time

PROMPTS, SHALLOW, DEEP, DECODED = (512, 2048), 64, 2048, 128
FIGURES = *(f"prefill {size}" for size in PROMPTS), f"decode at {SHALLOW}", f"decode at {DEEP}"


def edgellm_figures(backend: str, path: str, seed: int) -> list[float]:
    """In this process. What a prompt costs is known before it is asked again for more tokens."""
    import edgellm

    with edgellm.load(path, backend=backend, ctx=4096, threads=1, cache=edgellm.CacheParams(disk=0)) as model:  # type: ignore[arg-type]
        rng = random.Random(seed)

        def seconds(prompt: list[int], count: int) -> float:
            before = time.process_time()
            model.generate(prompt, max_tokens=count, temperature=0, ignore_eos=True, speculate=False)
            return time.process_time() - before

        prompts = {size: [rng.randrange(300, 40_000) for _ in range(size)] for size in (16, *PROMPTS, SHALLOW)}
        seconds(prompts[16], 2)  # what only the first pass does
        found = [size / seconds(prompts[size], 1) for size in PROMPTS]
        seconds(prompts[SHALLOW], 1)
        for depth in (SHALLOW, DEEP):
            known = min(seconds(prompts[depth], 1) for _ in range(2))
            found.append(DECODED / (seconds(prompts[depth], 1 + DECODED) - known))
        return found


def bench_figures(program: str, path: str) -> list[float]:
    """Of llama-bench: what one that does more takes more."""
    common = [*shlex.split(program), "-m", path, "-t", "1", "-r", "1", "-w", "0", "-p", "0", "-n", "0"]

    def seconds(prompt: int, count: int) -> float:
        process = subprocess.Popen(
            [*common, "-gp", f"{prompt},{count}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _pid, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{program} ended with {process.returncode}")
        return used.ru_utime + used.ru_stime

    one = {size: seconds(size, 1) for size in (1, SHALLOW, *PROMPTS)}
    prefill = [size / (one[size] - one[1]) for size in PROMPTS]
    return prefill + [DECODED / (seconds(depth, 1 + DECODED) - one[depth]) for depth in (SHALLOW, DEEP)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="+")
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-process", type=int, metavar="SEED", help=argparse.SUPPRESS)
    options = parser.parse_args()

    def figures(engine: str, seed: int) -> list[float]:
        backend, _, path = engine.partition(":")
        if backend not in ("native", "llamacpp", "onnx"):
            return bench_figures(engine, options.model)
        if options.in_process is not None:
            return edgellm_figures(backend, path or options.model, seed)
        command = [sys.executable, __file__, engine, "--model", options.model, "--in-process", str(seed)]
        found: list[float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return found

    if options.in_process is not None:
        print(json.dumps(figures(options.engines[0], options.in_process)))
        return
    rounds = [{engine: figures(engine, seed) for engine in options.engines} for seed in range(options.rounds)]
    for place, figure in enumerate(FIGURES):
        print(f"{figure}, tokens per second of a processor")
        for engine in options.engines:
            values = sorted(one[engine][place] for one in rounds)
            ratios = sorted(one[options.engines[0]][place] / one[engine][place] for one in rounds)
            line = (
                f"    {engine.split()[0][-24:]:24} {statistics.median(values):8.1f} ({values[0]:.1f}-{values[-1]:.1f})"
            )
            print(f"{line}   {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
