"""AnswerReader: an answer as the model writes it, piece by piece, becomes text, reasoning and calls of tools.

Whatever it is cut into, the pieces that come out are the same when joined. Nothing is lost: what looks like a call and
is none comes out as text, whether it is unfinished, malformed or longer than a call may be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from edgellm.prompts.channels import CHANNELS, read_channels
from edgellm.prompts.cursor import Cursor, Malformed, Steps
from edgellm.prompts.dialect import Dialect
from edgellm.prompts.pieces import Piece, Pieces, new_id
from edgellm.prompts.reasoning import Thinking
from edgellm.prompts.syntax import Json, Schema


class AnswerReader:
    """See above. One for each answer.

    prompt: what it answers, whose end says what is open. dialect: how calls are written; None where none are wanted.
    thinking: how reasoning is marked. schemas: the parameters of the tools by their names.
    """

    def __init__(
        self,
        prompt: str = "",
        dialect: Dialect | None = None,
        thinking: Thinking | None = None,
        schemas: Mapping[str, Schema] | None = None,
        *,
        make_id: Callable[[], str] = new_id,
    ) -> None:
        self._dialect = dialect
        self._thinking = thinking
        self._schemas = schemas or {}
        self._cursor = Cursor()
        self._pieces = Pieces(make_id)
        opened = self._pieces.thinking = thinking is not None and thinking.opened(prompt)
        channels = thinking is not None and thinking.opens == CHANNELS
        if dialect is not None and dialect.mark == ">>>" and prompt.endswith(">>>"):
            self._cursor.feed(">>>")
        self._steps = read_channels(self._cursor, self._pieces) if channels else self._answer(opened)
        self._over = False

    @property
    def thinking(self) -> bool:
        """Whether what comes next is reasoning."""
        return self._pieces.thinking

    def feed(self, text: str) -> list[Piece]:
        """What is known with the next piece of the answer."""
        if text:
            self._cursor.feed(text)
            self._go_on()
        return self._pieces.taken()

    def finish(self) -> list[Piece]:
        """The rest: nothing comes any more."""
        self._cursor.ended = True
        self._go_on()
        return self._pieces.taken()

    def _go_on(self) -> None:
        if not self._over:
            self._over = next(self._steps, self) is self

    def _answer(self, opened: bool) -> Steps[None]:
        pieces, cursor, thinking, dialect = self._pieces, self._cursor, self._thinking, self._dialect
        if thinking is not None and opened:
            yield from self._reasoning(thinking, opened=True)
        marks = [thinking.opens] if thinking is not None else []
        if dialect is not None:
            marks.append(dialect.mark)
            yield from self._bare(dialect)
        if not marks:  # nothing is looked for
            while (yield from cursor.some()):
                yield from cursor.rest(pieces.text)
        while marks:
            mark = yield from cursor.upto(marks, pieces.text)
            if not mark:
                break
            if thinking is not None and mark == thinking.opens and pieces.silent and not pieces.calls:
                yield from self._reasoning(thinking)
                if dialect is not None:
                    yield from self._bare(dialect)
            elif dialect is not None and mark == dialect.mark:
                yield from self._calls(dialect, mark)
            else:
                pieces.text(mark)
        pieces.end_text()

    def _reasoning(self, thinking: Thinking, opened: bool = False) -> Steps[None]:
        """What is between the marks; all of the rest where the model never closes it."""
        cursor, pieces = self._cursor, self._pieces
        pieces.drop_blanks()
        pieces.thinking = True
        blank = yield from cursor.blanks()
        if opened and (yield from cursor.starts(thinking.opens)):  # once more
            blank = yield from cursor.blanks()
        inner = Pieces()

        def out(text: str) -> None:
            inner.text(text)
            for piece in inner.taken():
                pieces.reasoning(getattr(piece, "text", ""))

        closed = yield from cursor.upto((thinking.closes,), out)
        pieces.thinking = False
        if closed:
            yield from cursor.blanks()
        elif inner.silent:  # nothing was said, so nothing was thought
            pieces.text(blank)
        else:
            inner.end_text()
            for piece in inner.taken():
                pieces.reasoning(getattr(piece, "text", ""))

    def _bare(self, dialect: Dialect) -> Steps[None]:
        """Calls without a mark, where nothing else was said: objects of JSON that name a tool."""
        bare = _bare(dialect)
        if not self._schemas or bare is None:
            return
        blank = yield from self._cursor.blanks()
        if (yield from self._cursor.starts(dialect.mark)):
            yield from self._calls(dialect, blank + dialect.mark)
            return
        if (yield from self._cursor.peek()) not in ("{", "["):
            self._pieces.text(blank)
            return
        yield from self._calls(bare, blank, bare=True)

    def _calls(self, dialect: Dialect, mark: str, *, bare: bool = False) -> Steps[None]:
        self._cursor.record(mark)
        try:
            yield from dialect.read(self._cursor, self._pieces, self._schemas, bare=bare)
        except Malformed:
            self._pieces.give_back(self._cursor.recorded())
        else:
            self._cursor.recorded()


def _bare(dialect: Dialect) -> Dialect | None:
    """The dialect for calls without marks: where those of the model are JSON, too."""
    if not isinstance(dialect.syntax, Json) or dialect.syntax.keyed:
        return None
    return replace(dialect, syntax=replace(dialect.syntax, known=True))
