"""Word wrap of a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Callable

FENCE = "```"


class WordWrap:
    """Breaks lines between words at the screen's edge. The word that is not complete yet is held back.

    Code between ``` fences is passed on as it is: what is copied from the screen must be what was written. width: the
    screen's columns, asked for again at every word, since people resize their windows.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        from rich.cells import cell_len

        self._cells = cell_len
        self._width = width
        self._column = 0  # cells written on this line
        self._held = ""  # blanks, then the word that follows them
        self._line = ""  # what the model wrote of this line, as far as it tells a fence
        self._code = False
        self._long = False  # in a word that is wider than the screen: the terminal breaks it

    def push(self, text: str) -> str:
        """What can be shown after `text`."""
        shown: list[str] = []
        for char in text:
            if char == "\n":
                shown += [self._place(), char]
                self._long = False
                if self._line.startswith(FENCE):
                    self._code = not self._code
                self._column, self._line = 0, ""
                continue
            if len(self._line) < len(FENCE):
                self._line = (self._line + char).lstrip()
            if char in " \t":
                self._long = False
                if self._held.strip():
                    shown.append(self._place())
            elif self._long:
                self._column += self._cells(char)
                shown.append(char)
                continue
            elif self._cells(char) > 1 and self._held.strip():  # ideographs may part anywhere
                shown.append(self._place())
            self._held += char
            if self._cells(char) > 1:
                shown.append(self._place())
            elif len(self._held.strip()) > self._width():
                shown.append(self._place())
                self._long = True
        return "".join(shown)

    def flush(self) -> str:
        """The rest, when the text ends."""
        return self._place()

    def _place(self) -> str:
        held, self._held = self._held, ""
        if not held:
            return ""
        word = held.lstrip(" \t")
        width, needed = max(1, self._width()), self._cells(held.expandtabs())
        if self._column + needed <= width or self._code or not word or not self._column:
            self._column += needed
            return held
        self._column = self._cells(word)
        return f"\n{word}"
