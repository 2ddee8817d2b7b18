"""What stays of a conversation when nothing comes of an answer."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Generator, Iterator
from typing import NoReturn

import pytest

import edgellm
from edgellm import Chunk
from edgellm.cli import talk as module
from edgellm.cli.keyboard import stopping
from edgellm.cli.status import Status
from edgellm.cli.talk import Manner, Talk
from edgellm.errors import BackendFailed, ContextOverflow, Unsupported
from edgellm.params import GenerateParams


@pytest.fixture
def talk() -> Iterator[Talk]:
    with edgellm.load("x", backend="echo", ctx=256) as model:
        yield Talk(model, GenerateParams(temperature=0), Manner())


def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Ctrl-C comes while a prompt is read, until what is returned is called."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_reading", lambda status: stop)
    return monkeypatch.undo


def said(talk: Talk) -> list[str]:
    return [message["content"] for message in talk.conversation().messages]


def test_a_message_that_was_not_read_can_be_asked_again(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unsupported, match="nothing was asked"):
        talk.again()
    undo = interrupt(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        talk.show("first")
    undo()
    assert (talk.answering, talk.said, said(talk)) == (True, "first", [])
    assert talk.again().text == "first"
    assert (talk.answering, talk.said, said(talk)) == (False, "first", ["first", "first"])


def test_an_interrupted_retry_leaves_the_conversation_alone(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    talk.show("first")
    undo = interrupt(monkeypatch)
    for again in (lambda: talk.again(), lambda: talk.again("other words")):
        with pytest.raises(KeyboardInterrupt):
            again()
        assert said(talk) == ["first", "first"]
    undo()
    assert talk.again("second").text == "second"
    assert said(talk) == ["second", "second"]


def test_a_message_that_does_not_fit_is_not_lost(talk: Talk) -> None:
    talk.show("first")
    with pytest.raises(ContextOverflow):
        talk.show("x" * 300)
    assert (talk.answering, said(talk)) == (False, ["first", "first"])
    assert talk.said == "x" * 300
    assert talk.again("short").text == "short"
    assert said(talk) == ["first", "first", "short", "short"]


def test_ctrl_c_that_is_ignored_stays_ignored() -> None:
    """As a shell's script has it for its jobs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping() as ignoring:
            signal.raise_signal(signal.SIGINT)
        assert signal.signal(signal.SIGINT, before) == signal.SIG_IGN
        with stopping() as token:
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (ignoring.cancelled, token.cancelled) == (False, True)


@pytest.mark.parametrize("error", [BackendFailed("the engine gave up"), KeyboardInterrupt()])
def test_what_came_of_an_answer_that_failed_is_kept(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(chunks: Generator[Chunk], status: Status) -> NoReturn:
        next(chunks)
        chunks.close()
        raise error

    saved: list[int] = []
    monkeypatch.setattr(talk, "_save", lambda: saved.append(len(talk.conversation().messages)))
    with monkeypatch.context() as patched:
        patched.setattr(module, "_written", fail)
        with pytest.raises(type(error)):
            talk.show("a question")
    assert (saved, talk.unanswered, talk.said) == ([2], None, "a question")
    talk.again()
    assert [message["role"] for message in talk.conversation().messages] == ["user", "assistant"]


@pytest.mark.parametrize(("terminal", "color"), [(True, True), (True, False), (False, True)])
def test_reasoning_is_shown_dim_and_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool, color: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", "" if color else "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    pieces = [Chunk("", reasoning="Hm, \x1b[31mred"), Chunk("", reasoning=" sky."), Chunk("Blue"), Chunk("!")]
    with edgellm.load("x", backend="echo", ctx=256) as model:
        last = Chunk("", completion=model.generate("x", temperature=0))
    module._written(iter([*pieces, last]), Status("thinking"))
    shown = capsys.readouterr().out
    if not terminal:
        assert shown == "Blue!\n"
    elif color:
        assert shown.replace("\x1b[22m\x1b[2m", "") == "\x1b[2mHm, [31mred sky.\x1b[22m\n\nBlue!\n"
    else:
        assert shown == "Hm, [31mred sky.\n\nBlue!\n"
