"""Signals that arrive while llama.cpp calls back into Python are not lost."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import tiny

import edgellm
from edgellm.backends.llamacpp.signals import kept
from edgellm.params import CacheParams


class Interrupting(logging.Handler):
    """Sends one signal while a line of llama.cpp is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.funcName == "take" and not self.sent:
            self.sent = True
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def interrupting() -> Iterator[Interrupting]:
    log, handler = logging.getLogger("edgellm.llamacpp"), Interrupting()
    level, before = log.level, signal.signal(signal.SIGINT, signal.default_int_handler)
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)
    log.setLevel(level)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_a_callback_ends_the_load(interrupting: Interrupting, tmp_path: Path) -> None:
    tiny("llama").write(tmp_path / "model.gguf")
    with pytest.raises(KeyboardInterrupt):
        edgellm.load(tmp_path / "model.gguf", backend="llamacpp", cache=CacheParams(disk=0), trust=True)
    assert interrupting.sent
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with edgellm.load(tmp_path / "model.gguf", backend="llamacpp", cache=CacheParams(disk=0), trust=True) as model:
        assert model.info.architecture == "llama"


def test_handlers_are_called_and_what_they_raise_is_kept() -> None:
    called: list[int] = []
    handlers = {
        signal.SIGTERM: lambda number, _: sys.exit(number),
        signal.SIGINT: lambda number, _: called.append(number),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}  # type: ignore[arg-type]
    raised: list[BaseException] = []
    try:
        with kept(raised):
            for number in handlers:
                signal.raise_signal(number)
            assert called == [signal.SIGINT]
        assert [type(error) for error in raised] == [SystemExit]
        assert {number: signal.getsignal(number) for number in handlers} == handlers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
