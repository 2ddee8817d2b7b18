"""Worker: one contestant in a process of its own, loaded once, which answers one request at a time.

    parent                                     child
    start ─────────────────────────────────▶   loads the model
          ◀───────────── {"settings"} ──────
    {"prompt", "new_tokens"} ──────────────▶   generates
          ◀── {"sample", "idle_cpu_s", …} ──   or {"error"}

One JSON object a line, over the child's standard input and output. The child waits in a blocking read, so that it costs
the others nothing; `idle_cpu_s` (CPU seconds since its last answer) shows whether its engine keeps to that.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from edgellm.backends.llamacpp.library import ENVIRONMENT
from edgellm.errors import BackendFailed

PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from edgellm.bench.worker import main; main(*sys.argv[2:])"
)


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is started with. threads: compute threads, for contestants that do not choose themselves."""

    name: str
    path: str
    n_ctx: int
    threads: int


class Worker:
    """The parent's end. A child that dies or refuses raises BackendFailed with its last words."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", PROGRAM, json.dumps([p for p in sys.path if p]), json.dumps(asdict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**ENVIRONMENT, **os.environ},  # for every engine: OpenMP threads that wait stop spinning soon
        )

    def send(self, message: Mapping[str, Any]) -> None:
        """Queue a request; the child may still be loading."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # receive() tells why it is gone
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, limit: float | None = None) -> dict[str, Any]:
        """Wait for the next line, `limit` seconds at most: then the child is ended."""
        assert self._process.stdout is not None
        given_up = threading.Event()

        def give_up() -> None:
            given_up.set()
            self._process.kill()

        timer = threading.Timer(limit or 0.0, give_up)
        timer.daemon = True
        if limit is not None:
            timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            if limit is not None and given_up.is_set():
                raise BackendFailed(f"it was given up after {limit:.0f} seconds without an answer")
            code = self._process.wait()
            self._errors.seek(0)
            words = self._errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            raise BackendFailed(f"its process ended with code {code}{': ' if words else ''}{''.join(words)}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise BackendFailed(reply["error"])
        return reply

    def ask(self, message: Mapping[str, Any], limit: float | None = None) -> dict[str, Any]:
        """Send a request and wait for its answer, `limit` seconds at most."""
        self.send(message)
        return self.receive(limit)

    def close(self) -> None:
        """End the child, whatever it does."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def main(job: str) -> None:
    """The child: load, then answer until the input ends. What the engine prints goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)

        def say(message: Mapping[str, Any]) -> None:
            answers.write(json.dumps(message).encode() + b"\n")
            answers.flush()

        try:
            _serve(Job(**json.loads(job)), say)
        except Exception as error:
            say({"error": " ".join(f"{type(error).__name__}: {error}".split())})
    os._exit(0)  # past the engines' own clean-up, which may take long or crash


def _serve(job: Job, say: Any) -> None:
    from edgellm.bench.contestants import BARE_LOOP, EDGELLM, Prompt
    from edgellm.bench.peers import PEERS

    entry = next(entry for entry in (EDGELLM, BARE_LOOP, *PEERS) if entry.name == job.name)
    contestant = entry.build(job.path, job.n_ctx, job.threads)
    say({"settings": contestant.settings})
    rested = time.process_time(), time.perf_counter()
    for line in sys.stdin.buffer:
        idle = time.process_time() - rested[0], time.perf_counter() - rested[1]
        request = json.loads(line)
        if "write" in request:
            say({"prompt": asdict(contestant.write_prompt(**request["write"]))})  # type: ignore[attr-defined]
        else:
            sample = contestant.generate(Prompt(**request["prompt"]), request["new_tokens"])
            say({"sample": asdict(sample), "peak_bytes": peak_memory(), "idle_cpu_s": idle[0], "idle_s": idle[1]})
        rested = time.process_time(), time.perf_counter()


def peak_memory() -> int:
    """Most bytes of memory that this process ever had resident; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
