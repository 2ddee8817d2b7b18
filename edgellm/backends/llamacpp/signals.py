"""Signals while native code calls back into Python, where what a handler raises would be printed and lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def kept(raised: list[BaseException]) -> Iterator[None]:
    """Handlers are called inside the block as ever; what they raise, as Ctrl-C does, is put into `raised`.

    They run on the main thread alone: elsewhere there is nothing to do. A try inside a callback would be too late,
    because most signals are handled before its first line.
    """
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in signal.valid_signals():
                handler = signal.getsignal(number)
                if callable(handler):
                    stack.callback(signal.signal, number, handler)
                    signal.signal(number, _keeping(handler, raised))
        yield


def _keeping(handler: Handler, raised: list[BaseException]) -> Handler:
    def call(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            raised.append(error)

    return call
