"""What a token costs beside its pass: choosing it from the logits, and everything that the engine's thread does.

    python benchmarks/step.py [--tokens 300] [--rounds 7] [--megabytes 64] [--json]

choosing  microseconds of one call for a row of so many logits, by the plan
step      microseconds of processor time of the engine's thread from the end of a pass to the beginning of the next,
          of one answer of a vocabulary of 50,000: behind a pass that does nothing, and behind one that reads
          `--megabytes`, as weights are read, so that the code is no longer in the caches

Medians; the passes of the second figure are those of a model that is no model, so this needs no file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.base import PassShape, Rows, SamplingPlan, Shift, Step
from edgellm.backends.echo import BOS, EchoBackend, EchoSequence
from edgellm.engine.engine import Engine
from edgellm.engine.sampling import choose
from edgellm.params import GenerateParams

DEFAULT = (("top_k", 40.0), ("top_p", 0.95), ("min_p", 0.05))
PLANS: dict[str, tuple[float, tuple[tuple[str, float], ...]]] = {
    "greedy": (0.0, ()),
    "default filters": (0.8, DEFAULT),
    "min_p": (0.8, (("min_p", 0.05),)),
    "no filter": (0.8, ()),
}
ANSWERS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "default": {},
    "penalties": {"repeat_penalty": 1.1},
    "stop strings": {"temperature": 0.0, "stop": ["\n\nUser:", "###"]},
    "logprobs": {"temperature": 0.0, "logprobs": 5},
    "drafts": {"temperature": 0.0, "speculate": None},
}


def logits(n_vocab: int, seed: int) -> NDArray[np.float32]:
    """Like a model's: a few large ones over a broad base."""
    rng = np.random.default_rng(seed)
    row = rng.normal(0, 2.5, n_vocab)
    row[rng.integers(97, 123, 12)] += rng.uniform(5, 15, 12)
    return row.astype(np.float32)


class Passes(EchoBackend):
    """Gives logits that were made before, and reads memory for each pass."""

    pass_shape = PassShape(mixes_prefill_and_decode=True)

    def __init__(self, megabytes: int) -> None:
        super().__init__(n_vocab=50_000)
        self.between: list[int] = []  # nanoseconds
        self._weights = np.ones(megabytes << 17)
        self._given = [logits(50_000, seed).reshape(1, -1) for seed in range(32)]
        self._at = self._ended = 0

    def takes(self, plan: SamplingPlan) -> bool:
        return False

    def _forward(self, sequences: list[EchoSequence], steps: list[Step]) -> list[Rows | None]:
        self.between.append(time.thread_time_ns() - self._ended)
        for sequence, step in zip(sequences, steps, strict=True):
            sequence.length += len(step.tokens)
        self._at = (5 * self._at + 7) % 32
        self._weights.sum()
        row = self._given[self._at]
        sizes = {"none": 0, "last": 1}
        rows = [row.repeat(sizes.get(step.logits, len(step.tokens)), 0) for step in steps]
        self._ended = time.thread_time_ns()
        return [each if len(each) else None for each in rows]


def choosing(rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds by vocabulary and plan."""
    found: dict[str, dict[str, float]] = {}
    for n_vocab in (50_000, 128_256, 256_000):
        row = logits(n_vocab, 0)
        shift = Shift(np.random.default_rng(0).choice(n_vocab, 64, replace=False), np.full(64, 0.5), 1.1)
        plans = {name: SamplingPlan((), None, *plan, 0.37) for name, plan in PLANS.items()}
        plans["default filters, 64 penalties"] = SamplingPlan((shift,), None, 0.8, DEFAULT, 0.37)
        taken: dict[str, list[float]] = {name: [] for name in plans}
        for _ in range(20 * rounds):
            for name, plan in plans.items():
                started = time.perf_counter()
                choose(row, plan)
                taken[name].append(1e6 * (time.perf_counter() - started))
        found[f"{n_vocab:,}"] = {name: statistics.median(each) for name, each in taken.items()}
    return found


def stepping(tokens: int, rounds: int, megabytes: int) -> dict[str, dict[str, float]]:
    """Microseconds by what the pass reads and what is asked for."""
    found: dict[str, dict[str, float]] = {}
    for name, size in (("nothing read", 0), (f"{megabytes} MB read", megabytes)):
        backend = Passes(size)
        engine = Engine(backend)
        medians: dict[str, list[float]] = {kind: [] for kind in ANSWERS}
        for _ in range(rounds):
            for kind, options in ANSWERS.items():
                asked = {"speculate": False, "cache": False, "seed": 1, **options}
                params = GenerateParams(max_tokens=tokens, ignore_eos=True, **asked)
                backend.between.clear()
                for _chunk in engine.submit([BOS, 97, 98, 99], params, stream=True):
                    pass
                medians[kind].append(statistics.median(backend.between[2:]) / 1e3)
        engine.close()
        found[name] = {kind: statistics.median(each) for kind, each in medians.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    figures = {"choosing": choosing(asked.rounds), "step": stepping(asked.tokens, asked.rounds, asked.megabytes)}
    if asked.json:
        print(json.dumps(figures))
        return
    for what, groups in figures.items():
        for group, each in groups.items():
            print(f"{what}, {group}")
            for name, value in each.items():
                print(f"  {name:32}{value:8.1f} us")


if __name__ == "__main__":
    main()
