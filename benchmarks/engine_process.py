"""What engine_child.py runs, as a contestant of engines.py."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from engine_child import OURS

KNOWN, NEW = 2000, 16  # tokens of the restart
FORKS = 6
LONGER = 4  # so many times the tokens of an answer are decoded in what needs a while
PATIENCE = 600.0  # seconds that one measurement may take


class Refused(Exception):
    """What an engine did is not what was asked."""


class Process:
    """The process. home: of what it remembers, if it is to remember. Raises OSError where it fails."""

    def __init__(self, kind: str, path: str, python: str, options: argparse.Namespace, home: str | None = None) -> None:
        child = str(Path(__file__).with_name("engine_child.py"))
        longest = options.depth + options.tokens, options.shallow + (LONGER + 1) * options.tokens, KNOWN + 2 * NEW
        sizes = ["--threads", str(options.threads), "--ctx", str(max(longest) + 64)]
        environment = {**os.environ, "GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": str(options.threads)}
        if home is not None:
            sizes.append("--remember")
            environment["EDGELLM_HOME"] = home
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python or sys.executable, child, kind, path, *sizes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )

    def send(self, **request: Any) -> None:
        """A request of engine_child.py, to be received."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def receive(self, tokens: int | None = None) -> dict[str, Any]:
        """The next line that it says; it is killed after `PATIENCE`. Raises Refused for an error, and for an answer
        that has not so many tokens."""
        assert self._process.stdout is not None
        timer = threading.Timer(PATIENCE, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            raise OSError(f"ended with code {code}: {self._errors.read().strip().rpartition(chr(10))[2][-300:]}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise Refused(str(found["error"]))
        if tokens is not None and found["produced"] != tokens:
            raise Refused(f"{found['produced']} tokens where {tokens} were asked for")
        return found

    def answer(self, prompt: list[int], tokens: int) -> dict[str, Any]:
        """What engine_child.py tells of it."""
        self.send(prompt=prompt, tokens=tokens)
        return self.receive(tokens)

    def close(self) -> None:
        """After what it still has to do."""
        self._process.communicate()
        self._errors.close()


class Engine:
    """An engine, loaded. Figures are by their titles. Raises OSError and Refused."""

    def __init__(self, name: str, kind: str, path: str, python: str, options: argparse.Namespace) -> None:
        self.name, self._options = name, options
        self._what = kind, path, python, options
        self._process = Process(*self._what)
        self.version = str(self._process.receive()["version"])

    def prefill(self, rng: random.Random) -> dict[str, float]:
        size = self._options.prompt
        return {f"prefill {size}": size / self._process.answer(self._prompt(rng, size), 1)["first_s"]}

    def depth(self, rng: random.Random) -> dict[str, float]:
        depth, count = self._options.depth, self._options.tokens
        found = self._process.answer(self._prompt(rng, depth), count)
        decode = {f"decode at {depth}": (count - 1) / found["rest_s"]}
        others = {part: found[part] / 1e6 for part in ("resident", "peak")} | {"idle": 100 * found["idle_cpu"]}
        return {f"prefill {depth}": depth / found["first_s"], **decode, **others}

    def shallow(self, rng: random.Random) -> dict[str, float]:
        depth, count = self._options.shallow, self._options.tokens
        found = self._process.answer(self._prompt(rng, depth), count)
        return {f"decode at {depth}": (count - 1) / found["rest_s"]}

    def streams(self, rng: random.Random) -> dict[str, float]:
        count, tokens = self._options.streams, self._options.tokens
        self._process.send(prompts=[self._prompt(rng, self._options.shallow) for _ in range(count)], tokens=tokens)
        return {f"{count} streams": self._process.receive(tokens)["streams_per_s"]}

    def start(self, rng: random.Random) -> dict[str, float]:
        started = time.perf_counter()
        process = Process(*self._what)
        try:
            loaded = process.receive()
            process.answer(self._prompt(rng, 8), 1)
            return {"load": 1e3 * loaded["load_s"], "first token": 1e3 * (time.perf_counter() - started)}
        finally:
            process.close()

    def restart(self, rng: random.Random) -> dict[str, float]:
        if self._what[0] not in OURS:
            return {}  # nothing is kept
        known, unseen = self._prompt(rng, KNOWN), self._prompt(rng, KNOWN + NEW)
        with tempfile.TemporaryDirectory() as home:
            for prompt in (known, known + self._prompt(rng, NEW)):
                process = Process(*self._what, home)
                try:
                    process.receive()
                    found = process.answer(prompt, 1)
                    fresh = process.answer(unseen, 1)["first_s"] if prompt is not known else 0.0
                finally:
                    process.close()
        if found["cached"] < KNOWN - 64:
            raise Refused(f"{found['cached']} tokens of a prompt of {KNOWN} were known")
        return {"restart": 1e3 * found["first_s"], "restart, sooner than unseen": fresh / found["first_s"]}

    def forks(self, rng: random.Random) -> dict[str, float]:
        if self._what[0] not in OURS:
            return {}  # they have none
        self._process.send(fork=self._prompt(rng, KNOWN), count=FORKS)
        found = self._process.receive()
        return {"fork": 1e3 * found["fork_s"], "forks, MB": found["forks_bytes"] / 1e6}

    def contention(self, rng: random.Random) -> dict[str, float]:
        count, size, depth = LONGER * self._options.tokens, self._options.depth, self._options.shallow
        other = Process(*self._what)
        try:
            other.receive()
            slower = {}
            for title, length, tokens in (("decode", depth, count), ("prefill", size, 1)):
                times = []
                for processes in ([self._process], [self._process, other]):
                    for process in processes:
                        process.send(prompt=self._prompt(rng, length), tokens=tokens)
                    answers = [process.receive(tokens) for process in processes]
                    times.append(max(one["rest_s" if tokens > 1 else "first_s"] for one in answers))
                slower[f"{title} beside another process, slower"] = times[1] / times[0]
            return slower
        finally:
            other.close()

    def _prompt(self, rng: random.Random, size: int) -> list[int]:
        return [rng.randrange(300, self._options.vocabulary) for _ in range(size)]

    def close(self) -> None:
        """End the process."""
        self._process.close()
