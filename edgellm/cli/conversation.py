"""The interactive conversation of `edgellm run`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from edgellm.cli.output import note
from edgellm.cli.talk import Talk, statistics
from edgellm.errors import EdgeLLMError
from edgellm.home import home, make_folder, unkept

HELP = """\
/help            this list
/system [TEXT]   show or replace the system prompt
/reset           forget the conversation, keep the system prompt
/save FILE       write the conversation to a file
/load FILE       go on with a saved conversation
/stats           token counts and speeds of the last answer
/bye             leave (or Ctrl-D)
Enter sends; Alt-Enter, or a line that ends in a backslash, begins a new line; a pasted text may have several lines.
Ctrl-C stops an answer; pressed twice at the prompt, it leaves."""


def converse(talk: Talk, name: str, *, stats: bool) -> None:
    """Read, answer, repeat, until the user leaves."""
    info = talk.model.info
    note(f"{name}: {info.name}, {info.quantization}, context {talk.model.n_ctx} tokens. /help lists the commands.")
    commands = Commands(talk)
    session = _session()
    leaving = False
    while True:
        try:
            text = session.prompt(FormattedText([("bold", "> ")])).strip()
            leaving = False
            if not text:
                continue
            if text in ("/bye", "/exit", "/quit"):
                return
            if text.startswith("/") and commands.run(text):
                continue
            talk.show(text)
            if stats and talk.last is not None:
                note(statistics(talk.last))
        except EOFError:
            return
        except KeyboardInterrupt:
            # At the prompt this is the first Ctrl-C of two; during an answer it has stopped the answer.
            if leaving:
                return
            leaving = not talk.answering
            if leaving:
                note("(Ctrl-C again leaves)")
            talk.answering = False
        except EdgeLLMError as error:
            note(f"edgellm: {error}")


class Commands:
    """What a line that begins with a slash does."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._table: dict[str, Callable[[str], None]] = {
            "/help": lambda _: note(HELP),
            "/system": self._system,
            "/reset": self._reset,
            "/save": self._save,
            "/load": self._load,
            "/stats": self._stats,
        }

    def run(self, line: str) -> bool:
        """Run a command line. False when it is none, such as a path at the start of a question."""
        word, _, rest = line.partition(" ")
        command = self._table.get(word)
        if command is None:
            if "/" in word[1:] or "\n" in line:
                return False
            note(f"{word} is not a command; /help lists them")
            return True
        try:
            command(rest.strip())
        except (EdgeLLMError, OSError) as error:
            note(f"edgellm: {error}")
        return True

    def _system(self, text: str) -> None:
        chat = self._talk.chat
        if chat is None:
            note("a model without a chat template has no system prompt")
        elif text:
            chat.system = text
            note("the system prompt is replaced; the conversation goes on under it")
        else:
            note(chat.system or "there is no system prompt")

    def _reset(self, _: str) -> None:
        if self._talk.chat is not None:
            self._talk.chat.reset()
        note("the conversation is forgotten")

    def _save(self, path: str) -> None:
        if not path or self._talk.chat is None:
            note("/save FILE writes a conversation" if self._talk.chat else "there is no conversation to save")
            return
        self._talk.chat.save(Path(path).expanduser())
        note(f"saved {len(self._talk.chat.messages)} messages to {path}")

    def _load(self, path: str) -> None:
        if not path or self._talk.chat is None:
            note("/load FILE reads a conversation" if self._talk.chat else "this model holds no conversations")
            return
        self._talk.chat.restore(Path(path).expanduser())
        note(f"loaded {len(self._talk.chat.messages)} messages from {path}")

    def _stats(self, _: str) -> None:
        note(statistics(self._talk.last) if self._talk.last else "nothing was answered yet")


def _session() -> PromptSession[str]:
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    return PromptSession(
        history=_history(),
        key_bindings=keys,
        multiline=True,
        prompt_continuation=lambda width, _line, _wrapped: "." * (width - 1) + " ",
        enable_open_in_editor=False,
    )


def _history() -> History:
    """What was typed in earlier conversations, for its owner only; where it cannot be kept, of this one alone."""
    try:
        path = make_folder(home()) / "history"
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
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
