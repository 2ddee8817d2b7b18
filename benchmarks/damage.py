"""A campaign of broken and odd GGUF files against edgellm: each must give a typed error or a working model.

    python benchmarks/damage.py --count 1000 --json damage.json

Four families, made from tiny random models by `--seed`, `--count` files each:

    bytes     truncations, flipped bits and lying numbers in the header, sizes near 2^63, overlaps, nested arrays
    meaning   well-formed headers that make no sense: layer counts, epsilons, vocabularies, tensor types, shapes
    data      tensor data replaced by random bits and NaN
    odd       unusual models that the header check still calls safe: they are loaded without a trial

Every file goes through the header check in this process (time and memory are measured here) and then through
`make_safe`, loading, tokenizing and decoding in a worker process, whose death is what the campaign looks for. Exit code
1 if it died.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from damaged_files import FAMILIES

from edgellm.backends.llamacpp.checks import check_header
from edgellm.errors import EdgeLLMError
from edgellm.formats.gguf import GGUFFile


class Worker:
    """A process that opens models like any caller of edgellm; when it dies a new one takes its place."""

    def __init__(self, log: Path) -> None:
        self.log, self.process = log, None

    def ask(self, path: Path) -> str:
        if self.process is None or self.process.poll() is not None:
            with open(self.log, "ab") as log:
                self.process: Any = subprocess.Popen(
                    [sys.executable, __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                    text=True,
                )  # fmt: skip
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        return answer or f"DIED {self.process.wait()}"


def work() -> None:
    """The worker's body: a path per line on stdin, an outcome per line on stdout."""
    from edgellm.backends.llamacpp import library, proof

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        path = Path(line.strip())
        try:
            lib = library.load_library()
            extra = library.extra_buffers().use
            with GGUFFile.open(path) as file:
                safe = not check_header(file)
                proof.make_safe(file, trust=False, extra_bufts=extra)
            outcome = ("works, known" if safe else "works, tried") + use(lib, library.model_params(), path)
        except EdgeLLMError as error:
            outcome = type(error).__name__ + (", untried" if "failed by itself" in str(error) else "")
        out.write(outcome + "\n")
        out.flush()


def use(lib: Any, model_params: Any, path: Path) -> str:
    """Load, tokenize and decode in this very process, with other sizes than the trial's; then free everything."""
    model = lib.llama_model_load_from_file(os.fsencode(path), model_params)
    if not model:
        return ", refused"
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max, params.kv_unified = 512, 512, 512, 4, True
    params.n_threads = params.n_threads_batch = 2
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = lib.llama_init_from_model(model, params)
    if not context:
        lib.llama_model_free(model)
        return ", no context"
    vocab = lib.llama_model_get_vocab(model)
    count = lib.llama_vocab_n_tokens(vocab)
    raw = "Hello world! \u00fc \U0001f600 \x00\x07 <s></s> the weather\n".encode() * 3
    ids = (lib.llama_token * 1024)()
    got = lib.llama_tokenize(vocab, raw, len(raw), ids, 1024, True, True)
    trained = lib.llama_model_n_ctx_train(model)  # beyond which edgellm does not go, either
    ended, room = "", trained if trained > 0 else 512
    for size in (min(max(got, 1), 400), 1, 1, 7, 1):
        size = min(size, room)
        room -= size
        if not size:
            break
        kept = (lib.llama_token * size)(*[ids[i] if i < got else i % count for i in range(size)])
        if lib.llama_decode(context, lib.llama_batch_get_one(kept, size)) != 0:
            ended = ", pass failed"
            break
        lib.llama_get_logits_ith(context, -1)
    lib.llama_free(context)
    lib.llama_model_free(model)
    return ended


def campaign(count: int, seed: int, families: list[str], keep: Path | None) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EDGELLM_HOME"] = folder
        worker = Worker(Path(folder) / "worker.log")
        for family in families:
            for index in range(count):
                rng = np.random.default_rng([seed, index, *family.encode()])
                path = Path(folder) / f"{family}-{index}.gguf"
                what = FAMILIES[family](rng, path)
                started = time.perf_counter()
                reasons: list[str] = []
                error = ""
                with PeakMemory() as memory:
                    try:
                        with GGUFFile.open(path) as file:
                            reasons = check_header(file)
                    except EdgeLLMError as problem:
                        error = type(problem).__name__
                seconds = time.perf_counter() - started
                outcome = worker.ask(path)
                if keep and outcome.startswith("DIED"):
                    path.rename(keep / path.name)
                path.unlink(missing_ok=True)
                yield {"family": family, "index": index, "what": what, "outcome": outcome, "check_seconds": seconds,
                       "check_mib": memory.mib, "reason": error or (reasons[0] if reasons else "")}  # fmt: skip


class PeakMemory:
    """How much the resident size of this process grows inside the block, at its peak, in MiB. Linux only, else 0."""

    mib = 0

    def __enter__(self) -> PeakMemory:
        if sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM to VmRSS
            self.before = self._peak()
        return self

    def __exit__(self, *_: object) -> None:
        if sys.platform == "linux":
            self.mib = (self._peak() - self.before) >> 10

    @staticmethod
    def _peak() -> int:
        return int(Path("/proc/self/status").read_text(encoding="ascii").split("VmHWM:")[1].split()[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="files per family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", choices=FAMILIES, action="append", help="only this one; repeatable")
    parser.add_argument("--keep", type=Path, help="an existing folder for the files that killed the worker")
    parser.add_argument("--json", type=Path, help="write every outcome here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return 0
    results = []
    for result in campaign(options.count, options.seed, options.family or list(FAMILIES), options.keep):
        results.append(result)
        if result["outcome"].startswith("DIED") or result["outcome"] == "works, known, pass failed":
            print(json.dumps(result), flush=True)
    for family in dict.fromkeys(r["family"] for r in results):
        print(f"\n{family}")
        for outcome, number in Counter(r["outcome"] for r in results if r["family"] == family).most_common():
            print(f"  {number:6d}  {outcome}")
    died = sum(r["outcome"].startswith("DIED") for r in results)
    slowest = max(r["check_seconds"] for r in results)
    largest = max(r["check_mib"] for r in results)
    print(f"\n{len(results)} files, {died} crashes in process; the header check took at most {slowest * 1000:.0f} ms "
          f"and {largest} MiB")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 1 if died else 0


if __name__ == "__main__":
    raise SystemExit(main())
