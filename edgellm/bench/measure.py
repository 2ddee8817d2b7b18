"""Measure: interleaved rounds over all contestants, and what they say about edgellm.

Speeds drift by tens of percent from minute to minute. So every contestant answers the same prompt within one round, in
an order that rotates from round to round, and what counts is the ratio within a round: its median over the rounds, and
its range. A first round warms everything up and is discarded; a contestant that is far slower in it is given up.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from edgellm.bench.bandwidth import read_bandwidth
from edgellm.bench.contestants import EDGELLM, Candidate
from edgellm.bench.worker import Worker
from edgellm.errors import BackendFailed, Unsupported

SHORT = 8  # tokens of the prompt that counts as depth 0
SHORT_CTX = 512  # context of a process that only gives its first token
PATIENCE, TIMES = 30.0, 5.0  # nobody waits longer than so many seconds, and so many times what edgellm took
Launch = Callable[[str, str, int, int], Worker]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens: of the two prefills, the longer of which is the depth of the second decode, and of a decode."""

    prefill: int = 512
    depth: int = 2048
    decode: int = 64

    @property
    def n_ctx(self) -> int:
        """The context that all of it needs."""
        return -(-(self.depth + self.decode + 1) // 256) * 256


FULL, QUICK = Sizes(), Sizes(prefill=64, depth=256, decode=16)


@dataclass
class Metric:
    """One figure of every contestant, once per round (None: it gave none). lower: whether less is better."""

    title: str
    unit: str
    lower: bool = False
    values: dict[str, list[float | None]] = field(default_factory=dict)

    def median(self, name: str) -> float | None:
        """The middle of a contestant's figures."""
        found = [value for value in self.values.get(name, []) if value is not None]
        return statistics.median(found) if found else None

    def ratios(self, name: str) -> list[float]:
        """Per round, how many times better edgellm was than another contestant: above 1, edgellm was better."""
        pairs = zip(self.values.get(EDGELLM.name, []), self.values.get(name, []), strict=True)
        good = [(ours, theirs) for ours, theirs in pairs if ours and theirs]
        return [theirs / ours if self.lower else ours / theirs for ours, theirs in good]

    def to_dict(self) -> dict[str, Any]:
        """Everything, raw and summed up."""
        plain: dict[str, Any] = {"title": self.title, "unit": self.unit, "lower_is_better": self.lower, "of": {}}
        for name, values in self.values.items():
            plain["of"][name] = {"median": self.median(name), "values": values}
            if name != EDGELLM.name:
                ratios = self.ratios(name)
                plain["of"][name]["ratio"] = {
                    "median": statistics.median(ratios) if ratios else None,
                    "low": min(ratios, default=None),
                    "high": max(ratios, default=None),
                    "values": ratios,
                }
        return plain


class Bench:
    """Runs the rounds on one model. Close it: it holds one process per contestant.

    absent: contestants that take no part, and why; it grows when one fails.
    """

    def __init__(
        self, path: str, candidates: Sequence[Candidate], sizes: Sizes, threads: int, launch: Launch = Worker
    ) -> None:
        self.sizes = sizes
        self.threads = threads
        self.absent: dict[str, str] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self.samples: list[dict[str, Any]] = []
        self.bandwidths: list[float] = []  # bytes per second, one a round
        self._path = path
        self._launch = launch
        self._workers: dict[str, Worker] = {}
        self._limits: dict[str, float] = {}  # seconds that a case may take, once edgellm has shown what it takes
        try:
            for candidate in candidates:
                self._start(candidate)
            needed, n_ctx = sizes.depth + sizes.decode + 1, self.settings[EDGELLM.name]["n_ctx"]
            if n_ctx < needed:
                least = QUICK.depth + QUICK.decode + 1
                raise Unsupported(
                    f"{path} has a context of {n_ctx} tokens here, and this measurement needs {needed}; "
                    f"a quick one needs {least}"
                )
        except BaseException:
            self.close()
            raise

    def _start(self, candidate: Candidate) -> None:
        worker = self._launch(candidate.name, self._path, self.sizes.n_ctx, self.threads)
        self._workers[candidate.name] = worker
        with self._excluding(candidate.name):
            self.settings[candidate.name] = {"what": candidate.about, **worker.receive()["settings"]}

    @contextmanager
    def _excluding(self, name: str) -> Iterator[None]:
        """A contestant that fails takes no further part, and its figures are dropped; edgellm's failure is raised."""
        try:
            yield
        except BackendFailed as error:
            if name == EDGELLM.name:
                raise
            self.absent[name] = str(error)
            self.samples = [sample for sample in self.samples if sample["contestant"] != name]
            self._workers.pop(name).close()

    def rounds(self, count: int) -> Iterator[int]:
        """Run the warm-up round and `count` rounds; yields 0, 1, … before each begins."""
        for number in range(count + 1):
            yield number
            samples = self._round(number)
            if number:
                self.bandwidths.append(read_bandwidth(self.threads))
                self.samples += samples

    def _round(self, number: int) -> list[dict[str, Any]]:
        sizes = self.sizes
        cases = [
            ("decode", SHORT, sizes.decode + 1),
            ("prefill", sizes.prefill, 1),
            ("depth", sizes.depth, sizes.decode + 1),
        ]
        taken = []
        for index, (case, tokens, new_tokens) in enumerate(cases):
            prompt = self._prompt(tokens, seed=len(cases) * number + index)
            for name in self._order(number):
                with self._excluding(name):
                    started = time.perf_counter()
                    reply = self._workers[name].ask(
                        {"prompt": prompt, "new_tokens": new_tokens}, self._limits.get(case)
                    )
                    self._limits.setdefault(case, max(PATIENCE, TIMES * (time.perf_counter() - started)))
                    taken.append({"round": number, "case": case, "contestant": name, **reply})
        prompt = self._prompt(SHORT, seed=-1)
        for name in self._order(number):
            with self._excluding(name):
                reply = self._first_token(name, prompt)
                self._limits.setdefault("start", max(PATIENCE, TIMES * reply["wall_s"]))
                taken.append({"round": number, "case": "start", "contestant": name, **reply})
        return [sample for sample in taken if sample["contestant"] in self._workers]

    def _order(self, number: int) -> list[str]:
        """Who goes when: edgellm first in the warm-up round, then everyone a place further each round."""
        names = list(self._workers)
        at = number % len(names)
        return names[at:] + names[:at]

    def _prompt(self, tokens: int, seed: int) -> Any:
        return self._workers[EDGELLM.name].ask({"write": {"size": tokens, "seed": seed}})["prompt"]

    def _first_token(self, name: str, prompt: Any) -> dict[str, Any]:
        """A new process, from its start to the first token of a short prompt; the file is in the page cache by now."""
        started = time.perf_counter()
        worker = self._launch(name, self._path, SHORT_CTX, self.threads)
        try:
            worker.send({"prompt": prompt, "new_tokens": 1})
            worker.receive(self._limits.get("start"))
            reply = worker.receive(self._limits.get("start"))
            return {**reply, "wall_s": time.perf_counter() - started}
        finally:
            worker.close()

    # Results

    @property
    def names(self) -> list[str]:
        """Contestants that took part, edgellm first."""
        return list(self._workers)

    def metrics(self) -> list[Metric]:
        """Every figure, from the samples of the rounds that are complete."""
        prefill, depth = self.sizes.prefill, self.sizes.depth
        figures: list[tuple[Metric, str, Callable[[dict[str, Any]], float | None]]] = [
            (Metric(f"prefill, {prefill} tokens", "tokens/s"), "prefill", _prefill),
            (Metric(f"prefill, {depth} tokens", "tokens/s"), "depth", _prefill),
            (Metric("decode, depth 0", "tokens/s"), "decode", _decode),
            (Metric(f"decode, depth {depth}", "tokens/s"), "depth", _decode),
            (Metric("first token of a new process", "ms", lower=True), "start", lambda s: 1e3 * float(s["wall_s"])),
            (Metric("peak memory of that process", "MB", lower=True), "start", _megabytes),
            (Metric(f"peak memory at {depth} tokens", "MB", lower=True), "depth", _megabytes),
        ]
        for metric, case, figure in figures:
            for name in self.names:
                samples = [s for s in self.samples if s["case"] == case and s["contestant"] == name]
                metric.values[name] = [figure(sample) for sample in samples]
        return [metric for metric, _case, _figure in figures]

    def same_answers(self) -> dict[str, bool]:
        """Of those that tell their token ids: whether every answer is edgellm's, so that both did the same work."""
        ours = {(s["round"], s["case"]): s["sample"]["answer"] for s in self.samples if s["contestant"] == EDGELLM.name}
        same: dict[str, bool] = {}
        for sample in self.samples:
            name, answer = sample["contestant"], sample["sample"]["answer"]
            if name != EDGELLM.name and answer is not None:
                same[name] = same.get(name, True) and answer == ours[sample["round"], sample["case"]]
        return same

    def idle_shares(self) -> dict[str, float]:
        """CPU seconds per second that each contestant used while others were measured."""
        shares = {}
        for name in self.names:
            waits = [s for s in self.samples if s["contestant"] == name and s["case"] != "start"]
            idle = sum(s["idle_s"] for s in waits)
            shares[name] = sum(s["idle_cpu_s"] for s in waits) / idle if idle else 0.0
        return shares

    def close(self) -> None:
        """End every process."""
        for worker in self._workers.values():
            worker.close()


def _prefill(sample: dict[str, Any]) -> float:
    taken = sample["sample"]
    return float(taken["prompt"] / taken["first_s"])


def _decode(sample: dict[str, Any]) -> float | None:
    taken = sample["sample"]
    steps = taken["produced"] - 1
    return float(steps / taken["rest_s"]) if steps > 0 and taken["rest_s"] > 0 else None


def _megabytes(sample: dict[str, Any]) -> float | None:
    return float(sample["peak_bytes"] / 1e6) if sample["peak_bytes"] else None
