"""What native code writes to the error stream, past every log of its own."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_ONE = threading.RLock()  # of two at once the first to end would leave the other the wrong stream to give back


@contextmanager
def sifted(words: bytes, log: logging.Logger) -> Iterator[None]:
    """Lines with these words that reach the error stream inside the block go to the log; the rest is passed on."""
    with _ONE, ExitStack() as stack:
        try:
            sys.stderr.flush()
            kept = os.dup(2)
            stack.callback(os.close, kept)
            sink = stack.enter_context(tempfile.TemporaryFile())
            os.dup2(sink.fileno(), 2)
        except (OSError, AttributeError, ValueError):  # a program without an error stream
            yield
            return
        try:
            yield
        finally:
            os.dup2(kept, 2)
            sink.seek(0)
            for line in sink:
                if words in line:
                    log.debug("%s", line.decode("utf-8", "replace").rstrip())
                else:
                    os.write(2, line)
