"""The interactive conversation of `edgellm run`."""

from __future__ import annotations

import os

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from edgellm.cli.commands import Commands
from edgellm.cli.output import note
from edgellm.cli.talk import Talk, statistics
from edgellm.errors import ContextOverflow, EdgeLLMError
from edgellm.files import regular
from edgellm.home import home, make_folder, unkept

QUOTES = '"""'
LEAVE = ("/bye", "/exit", "/quit")


def converse(talk: Talk, name: str, *, stats: bool) -> None:
    """Read, answer, repeat, until the user leaves."""
    info = talk.model.info
    note(f"{name}: {info.name}, {info.quantization}, context {talk.model.n_ctx} tokens. /help lists the commands.")
    past = talk.keeper and talk.keeper.past
    if past and talk.said is not None:
        note(f"Going on with conversation {past.number} ({past.turns} turns), which you left at: {talk.said[:200]}")
    commands = Commands(talk)
    session = _session(keep=talk.keeper is not None)
    prompt = FormattedText([("" if os.environ.get("NO_COLOR") else "bold", "> ")])
    leaving = False
    while True:
        try:
            text = session.prompt(prompt).strip()
            leaving = False
            if text.startswith(QUOTES):
                text = text[len(QUOTES) :].removesuffix(QUOTES).strip("\n")
            if not text:
                continue
            if text in LEAVE:
                return
            asked = talk.last
            if not (text.startswith("/") and commands.run(text)):
                _say(talk, text)
            if stats and talk.last is not None and talk.last is not asked:
                note(statistics(talk.last, talk.model.info.engine_reason))
        except EOFError:
            return
        except KeyboardInterrupt:
            # At the prompt this is the first Ctrl-C of two; during an answer it has stopped the answer.
            if leaving:
                return
            leaving = not talk.answering
            if leaving:
                note("(Ctrl-C again leaves)")
            elif talk.unanswered is not None:
                note("stopped; what was read stays known: /retry goes on from there, /edit changes it")
            talk.answering = False
        except EdgeLLMError as error:
            note(f"edgellm: {error}")


def _say(talk: Talk, text: str) -> None:
    """Answer; where the conversation has outgrown the context, offer to go on without its oldest turns."""
    try:
        talk.show(text)
    except ContextOverflow as error:
        if talk.params.overflow != "error" or talk.asked is None:
            raise
        note(f"edgellm: {error.needed - 1:,} tokens by now, and the context holds {error.n_ctx:,}.")
        try:
            go_on = click.confirm("Leave the oldest turns out and go on?", default=True, err=True)
        except click.Abort:
            note("")
            go_on = False
        if go_on:
            talk.show(text, overflow="drop-oldest")
        else:
            note("/drop N leaves out the N oldest turns, /set overflow drop-oldest does it always, /reset begins anew.")


def _session(*, keep: bool) -> PromptSession[str]:
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        typed = buffer.text.strip()
        if typed.startswith(QUOTES) and (len(typed) < 2 * len(QUOTES) or not typed.endswith(QUOTES)):
            buffer.insert_text("\n")
        elif buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    return PromptSession(
        history=_history() if keep else InMemoryHistory(),
        key_bindings=keys,
        multiline=True,
        prompt_continuation=lambda width, _line, _wrapped: "." * (width - 1) + " ",
        enable_open_in_editor=False,
    )


def _history() -> History:
    """What was typed in earlier conversations, for its owner only; where it cannot be kept, of this one alone."""
    try:
        path = make_folder(home()) / "history"
        os.close(regular(str(path), os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        unkept(error)
        return InMemoryHistory()
    return _FileHistory(str(path))


class _FileHistory(FileHistory):
    def store_string(self, string: str) -> None:
        try:
            super().store_string(string)
        except OSError as error:  # the disk is full by now
            unkept(error)
