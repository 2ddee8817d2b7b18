"""`edgellm serve --stdio` as a child of the test, whose lines a thread reads."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Event = dict[str, Any]
LAST = ("done", "result", "error")
PATIENCE = 60.0  # seconds that nothing may take


class Piped:
    """hello: its first line. order: the ids of events, as they came. stray: lines that are no event."""

    def __init__(self, process: subprocess.Popen[bytes], *, reading: bool = True) -> None:
        self.process = process
        self.hello: Event = {}
        self.order: list[str | None] = []
        self.stray: list[bytes] = []
        self._events: dict[str | None, queue.Queue[Event]] = defaultdict(queue.Queue)
        self._begun = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        if reading:
            self.start_reading()

    def start_reading(self) -> None:
        self._reader.start()
        assert self._begun.wait(PATIENCE)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            try:
                found = json.loads(text)
                if not self.hello:
                    self.hello = found
                    self._begun.set()
                    continue
                assert found["event"] in ("progress", "chunk", *LAST)
            except (ValueError, KeyError, AssertionError):
                self.stray.append(text)
                continue
            self.order.append(found["id"])
            self._events[found["id"]].put(found)
        self._begun.set()

    def write(self, sent: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(sent)
        self.process.stdin.flush()

    def send(self, id: str, method: str, **params: Any) -> None:
        self.write(json.dumps({"id": id, "method": method, "params": params}).encode() + b"\n")

    def next(self, id: str | None) -> Event:
        return self._events[id].get(timeout=PATIENCE)

    def events(self, id: str | None) -> list[Event]:
        """All up to the last one of a request."""
        found = [self.next(id)]
        while found[-1]["event"] not in LAST:
            found.append(self.next(id))
        return found

    def ask(self, method: str, **params: Any) -> Event:
        """The last event of a request."""
        self.send("asked", method, **params)
        return self.events("asked")[-1]

    def close(self) -> int:
        """Its exit code, once its input is closed and all it wrote is read."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(PATIENCE)
        if self._reader.ident:
            self._reader.join(PATIENCE)
        return code


@contextmanager
def piped(*arguments: object, program: Sequence[str] = ("-m", "edgellm"), reading: bool = True) -> Iterator[Piped]:
    """It with these arguments. program: what Python runs in its place."""
    command = [sys.executable, *program, "serve", "--stdio", *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Piped(process, reading=reading)
        finally:
            process.kill()
