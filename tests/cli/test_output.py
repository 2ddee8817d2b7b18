"""Bars on a terminal, lines elsewhere: what `convert` and `eval` show while they work."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from edgellm.cli import convert, eval
from edgellm.cli.status import Status
from edgellm.converters.evaluate import Evaluation

SO_FAR = [Evaluation(done, 4, 10 * done, 7.25, 0.5) for done in (1, 2, 3, 4)]


class Screen(io.StringIO):
    terminal = True

    def isatty(self) -> bool:
        return self.terminal


def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """What stands for stderr from now on: a terminal."""
    made = Screen()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return made


def show() -> None:
    with convert._progress() as progress:
        for what in ("converting", "verifying [bold]all[/bold]"):
            for done in (0, 50, 100):
                progress(what, done, 100)


def test_a_bar_for_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = screen(monkeypatch)
    show()
    drawn = shown.getvalue()
    assert "converting" in drawn
    assert "verifying [bold]all[/bold]" in drawn
    assert drawn.count("100%") >= 2


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = screen(monkeypatch)
    monkeypatch.setattr(Screen, "terminal", False)
    show()
    assert shown.getvalue() == "converting\nverifying [bold]all[/bold]\n"


def test_a_bar_of_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = screen(monkeypatch)
    with eval._progress("models/one.gguf") as progress:
        for each in SO_FAR:
            progress(each)
    drawn = shown.getvalue()
    assert "one.gguf perplexity 7.2500" in drawn
    assert "4/4" in drawn


def test_without_a_thread_there_is_no_status_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    shown = screen(monkeypatch)
    with Status("at work") as status:
        status.say("still at work")
    assert "work" not in shown.getvalue()
