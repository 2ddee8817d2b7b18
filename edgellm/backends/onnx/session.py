"""Session: an InferenceSession whose runs can be stopped from any thread, and say what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.onnx import library
from edgellm.errors import BackendFailed, Interrupted


class Binding:
    """What a run reads and writes, by address: an IOBinding over arrays in host memory, which it keeps alive and does
    not bind twice.

    A step of one token has some sixty tensors, and all but the mask are where they were.
    """

    def __init__(self, session: Any) -> None:
        self.native = session.io_binding()
        self._arrays: dict[str, NDArray[np.generic]] = {}
        self._places: dict[str, tuple[tuple[int, ...], int]] = {}

    def input(self, name: str, kind: int, array: NDArray[np.generic]) -> None:
        """Feed a contiguous array; kind: its TensorProto.DataType."""
        self._bind(self.native.bind_input, name, kind, array)

    def output(self, name: str, kind: int, array: NDArray[np.generic]) -> None:
        """Have an output written into a contiguous array."""
        self._bind(self.native.bind_output, name, kind, array)

    def _bind(self, bind: Any, name: str, kind: int, array: NDArray[np.generic]) -> None:
        place = array.shape, array.__array_interface__["data"][0]
        self._arrays[name] = array
        if self._places.get(name) != place:
            bind(name, "cpu", 0, kind, *place)
            self._places[name] = place


class Session:
    """See above. The runs of a pass belong inside `running`."""

    def __init__(self, native: Any) -> None:
        self._native: Any = native
        self.provider: str = native.get_providers()[0]
        # No lock: a signal handler may interrupt in the midst of anything. Each side says what it does before it looks
        # at the other; at worst a pass more is interrupted.
        self._interrupted = False
        self._running: Any = None  # RunOptions of the pass in flight
        self._options: Any = None  # those of the last one, if it was not stopped

    def binding(self) -> Binding:
        """A new one."""
        return Binding(self._native)

    def run(self, outputs: list[str], feed: dict[str, Any], tokens: int) -> list[Any]:
        """The outputs for what is fed. tokens: how many there are, for errors. Raises Interrupted, BackendFailed."""
        found: list[Any] = []
        self._call(lambda: found.extend(self._native.run(outputs, feed, self._running)), tokens)
        return found

    def run_bound(self, binding: Binding, tokens: int) -> None:
        """Read and write what is bound. Otherwise like `run`."""
        self._call(lambda: self._native.run_with_iobinding(binding.native, self._running), tokens)

    def interrupt(self) -> None:
        """From any thread: the pass in flight, or else the next one, raises Interrupted."""
        self._interrupted = True
        running = self._running
        if running is not None:
            running.terminate = True

    def close(self) -> None:
        """Let go of the InferenceSession, which ends with the last binding to it."""
        self._native = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """A pass, which `interrupt` reaches. Raises Interrupted if that was called before."""
        if self._options is None:
            self._options = library.load_library().RunOptions()
            self._options.log_severity_level = library.FATAL
            # Its absence is an exception inside every run, which costs a hundredth of a step of a small model.
            self._options.add_run_config_entry("gpu_graph_id", "0")
        self._running = self._options
        try:
            self._check()
            yield
        finally:
            self._running = None
            if self._options.terminate:
                self._options = None

    def _call(self, run: Callable[[], None], tokens: int) -> None:
        try:
            run()
        except Exception as error:
            self._check()
            raise BackendFailed(f"ONNX Runtime failed on a pass over {tokens} tokens: {error}") from error
        self._check()

    def _check(self) -> None:
        if self._interrupted or self._running.terminate:
            self._interrupted = False
            raise Interrupted("the pass was interrupted")
