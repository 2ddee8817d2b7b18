"""What a line that begins with a slash does in a conversation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from edgellm.cli import options
from edgellm.cli.output import note, rows
from edgellm.cli.talk import Talk, oldest, statistics
from edgellm.errors import EdgeLLMError, InvalidParameter, Unsupported
from edgellm.params import GenerateParams

HELP = (
    ("/help", "this list"),
    ("/set [NAME [VALUE]]", "options of the answers: all of them, one back to its default, one to a value"),
    ("/think on|off|auto", "whether a model that can think does"),
    ("/system [TEXT]", "show or replace the system prompt"),
    ("/show", "the model, and how full the context is"),
    ("/retry", "answer the last message anew"),
    ("/edit", "change the last message in an editor ($EDITOR) and answer it, or write the first one there"),
    ("/drop [N]", "leave out the N oldest turns"),
    ("/reset", "forget the conversation, keep the system prompt"),
    ("/save FILE", "write the conversation to a file"),
    ("/load FILE", "go on with a saved conversation"),
    ("/stats", "token counts and speeds of the last answer"),
    ("/bye", "leave (or Ctrl-D)"),
)
KEYS = (
    'Enter sends; Alt-Enter, or a line that ends in a backslash, begins a new line; """ begins and ends a text of '
    "several lines; a pasted text may have several. Ctrl-C stops an answer; pressed twice at the prompt, it leaves."
)

COMMANDS = {usage.split()[0] for usage, _ in HELP} - {"/bye"}  # each is a method of Commands
THINKING = {"on": True, "off": False, "auto": None}


def editor() -> str | None:
    """The user's, or else one that is there and asks nothing; None leaves it to click."""
    chosen = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    return chosen or next((name for name in ("nano", "vim", "vi", "notepad") if shutil.which(name)), None)


class Commands:
    """The commands of one conversation."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def run(self, line: str) -> bool:
        """Run a command line. False when it is none, such as a path at the start of a question."""
        word, _, rest = line.partition(" ")
        word = "/help" if word == "/?" else word
        if word not in COMMANDS:
            if "/" in word[1:] or "\n" in line:
                return False
            note(f"{word} is not a command; /help lists them")
            return True
        command: Callable[[str], None] = getattr(self, f"_{word[1:]}")
        try:
            command(rest.strip())
        except (EdgeLLMError, OSError) as error:
            note(f"edgellm: {error}")
        return True

    def _help(self, _: str) -> None:
        note(rows(HELP))
        note(KEYS)

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        name = name.lstrip("-").replace("-", "_")
        if not name:
            note(rows([(f"{known} {self._value(known)}", f"{each.help}.") for known, each in options.GENERATE.items()]))
            note("/set NAME VALUE changes one; options of the model need a new `edgellm run`")
            return
        if name in options.LOAD:
            flag = name.replace("_", "-")
            raise InvalidParameter(f"{name} is decided when the model is loaded: leave, and run with --{flag} again")
        if name not in options.GENERATE:
            raise InvalidParameter(f"{name} is no option; /set lists them")
        if name == "logprobs":
            raise InvalidParameter("logprobs are reported by `edgellm run --json` alone")
        chosen = options.from_text(name, value) if value.strip() else options.GENERATE[name].default
        self._talk.params = replace(self._talk.params, **{name: chosen})
        note(f"{name} = {self._value(name)}")

    def _value(self, name: str) -> str:
        value = getattr(self._talk.params, name)
        if isinstance(value, tuple):
            return " ".join(repr(item) for item in value) or "-"
        if isinstance(value, bool):
            return "on" if value else "off"
        if isinstance(value, float):
            return f"{value:g}"
        return "-" if value is None or value == {} else str(value)

    def _think(self, word: str) -> None:
        chat = self._talk.conversation()
        if word not in ("", *THINKING):
            raise InvalidParameter("/think on, /think off, or /think auto, which leaves it to the model")
        if word:
            self._talk.model.prompter.switched(THINKING[word])
            chat.thinking = THINKING[word]
        note(f"thinking: {next(word for word, value in THINKING.items() if value is chat.thinking)}")

    def _system(self, text: str) -> None:
        chat = self._talk.conversation()
        if text:
            chat.system = text
            note("the system prompt is replaced; the conversation goes on under it")
        else:
            note(chat.system or "there is no system prompt")

    def _show(self, _: str) -> None:
        talk, info = self._talk, self._talk.model.info
        note(f"{info.name}: {info.architecture}, {info.quantization}, {info.path}")
        note(f"{talk.model.backend} ({info.engine_reason}), {talk.model.threads} threads")
        if talk.chat is None:
            note(f"context: {talk.model.n_ctx:,} tokens")
        else:
            used = talk.chat.count_tokens()
            full = "; /drop makes room" if used >= talk.model.n_ctx else ""
            note(f"context: {used:,} of {talk.model.n_ctx:,} tokens{full}")
            turns = sum(message.get("role") == "user" for message in talk.chat.messages)
            dropped = sum(message.get("role") == "user" for message in talk.chat.dropped)
            note(f"turns: {turns}" + (f", and {dropped} left out" if dropped else ""))
            note(f"system prompt: {talk.chat.system or 'none'}")
        defaults = GenerateParams()
        changed = [name for name in options.GENERATE if getattr(talk.params, name) != getattr(defaults, name)]
        note("options: " + (", ".join(f"{name} {self._value(name)}" for name in changed) or "as they are by default"))

    def _retry(self, _: str) -> None:
        self._talk.again()

    def _edit(self, _: str) -> None:
        talk, said = self._talk, self._talk.said
        try:
            text = click.edit(said or "", editor=editor(), extension=".txt")
        except click.ClickException as error:
            raise Unsupported(f"{error.message}; EDITOR names the program") from None
        text = (text or "").strip()
        if not text:
            note("nothing is said")
        elif said is None:
            talk.show(text)
        else:
            talk.again(text)

    def _drop(self, count: str) -> None:
        if count and not (count.isdigit() and int(count)):
            raise InvalidParameter(f"/drop {count}: how many of the oldest turns? A number from 1 on")
        dropped = self._talk.conversation().drop_oldest(int(count or 1))
        left = self._talk.conversation().count_tokens()
        note(f"{oldest(dropped)} left out; {left:,} of {self._talk.model.n_ctx:,} tokens are in use now")

    def _reset(self, _: str) -> None:
        if self._talk.chat is not None:
            self._talk.chat.reset()
            self._talk.unanswered = None
        note("the conversation is forgotten")

    def _save(self, path: str) -> None:
        chat = self._talk.conversation()
        if not path:
            raise InvalidParameter("/save FILE: to which file?")
        chat.save(Path(path).expanduser())
        note(f"saved {len(chat.messages)} messages to {path}")

    def _load(self, path: str) -> None:
        chat = self._talk.conversation()
        if not path:
            raise InvalidParameter("/load FILE: which file?")
        chat.restore(Path(path).expanduser())
        self._talk.unanswered = None
        note(f"loaded {len(chat.messages)} messages from {path}")

    def _stats(self, _: str) -> None:
        talk = self._talk
        note(statistics(talk.last, talk.model.info.engine_reason) if talk.last else "nothing was answered yet")
