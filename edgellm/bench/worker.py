"""Worker: one contestant in a process of its own, loaded once, which answers one request at a time.

    parent                                     child
    start ─────────────────────────────────▶   loads the model
          ◀───────────── {"settings"} ──────
    {"prompt", "new_tokens"} ──────────────▶   generates
          ◀── {"sample", "idle_cpu_s", …} ──

The child waits in a blocking read, so that it costs the others nothing; `idle_cpu_s` (CPU seconds since its last
answer) shows whether its engine keeps to that.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgellm.backends.llamacpp.library import ENVIRONMENT
from edgellm.child import Child, Parent
from edgellm.errors import BackendFailed, EdgeLLMError

# The forms of answers: see Child.receive.
_SETTINGS: dict[str, Any] = {"settings": {}}
_OURS: dict[str, Any] = {"settings": {"n_ctx": int}}
_PROMPT: dict[str, Any] = {"prompt": {"tokens": list, "text": str}}
_TAKEN = {"first_s": float, "rest_s": float, "prompt": int, "produced": int, "answer": list | None}
_SAMPLE: dict[str, Any] = {"sample": _TAKEN, "peak_bytes": int, "idle_cpu_s": float, "idle_s": float}


class Worker:
    """The parent's end, for the contestant of that name. threads: compute threads, if it does not choose itself.

    A child that dies or refuses raises BackendFailed with its last words.
    """

    def __init__(self, name: str, path: str, n_ctx: int, threads: int) -> None:
        self._awaited: deque[dict[str, Any]] = deque([_OURS if name == "edgellm" else _SETTINGS])
        job = {"name": name, "path": path, "n_ctx": n_ctx, "threads": threads}
        # For every engine: OpenMP threads that wait stop spinning soon.
        self._child = Child(f"{__spec__.name}:run_child", job, environment={**ENVIRONMENT, **os.environ})

    def send(self, message: Mapping[str, Any]) -> None:
        """Queue a request; the child may still be loading."""
        self._awaited.append(_PROMPT if "write" in message else _SAMPLE)
        self._child.send(message)

    def receive(self, limit: float | None = None) -> dict[str, Any]:
        """Wait for the next answer, `limit` seconds at most: then the child is ended."""
        form = self._awaited.popleft() if self._awaited else {}
        try:
            answer = self._child.receive(limit, form)
        except BackendFailed:
            raise
        except EdgeLLMError as error:
            raise BackendFailed(f"{type(error).__name__}: {error}") from error
        if answer is None:
            raise BackendFailed(f"its process {self._child.end}")
        return answer

    def ask(self, message: Mapping[str, Any], limit: float | None = None) -> dict[str, Any]:
        """Send a request and wait for its answer, `limit` seconds at most."""
        self.send(message)
        return self.receive(limit)

    def close(self) -> None:
        """End the child, whatever it does."""
        self._child.close()


def run_child(parent: Parent, name: str, path: str, n_ctx: int, threads: int) -> None:
    """The child: load, then answer until the input ends."""
    from edgellm.bench.contestants import BARE_LOOP, EDGELLM, Prompt
    from edgellm.bench.peers import PEERS

    candidate = next(candidate for candidate in (EDGELLM, BARE_LOOP, *PEERS) if candidate.name == name)
    contestant = candidate.build(path, n_ctx, threads)
    parent.say(settings=contestant.settings)
    rested = time.process_time(), time.perf_counter()
    for request in parent:
        idle = time.process_time() - rested[0], time.perf_counter() - rested[1]
        if "write" in request:
            parent.say(prompt=asdict(contestant.write_prompt(**request["write"])))  # type: ignore[attr-defined]
        else:
            sample = contestant.generate(Prompt(**request["prompt"]), request["new_tokens"])
            parent.say(sample=asdict(sample), peak_bytes=peak_memory(), idle_cpu_s=idle[0], idle_s=idle[1])
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
