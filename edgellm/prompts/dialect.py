"""Dialect: how a model writes calls of tools, known from its chat template.

    mark lead ( call between call … ) tail          <tool_call>\\n{"name": "f", "arguments": {}}\\n</tool_call>

What is written is one way; what is read is wider: white space, lists, several calls in one pair of marks. dialects.py
has those of published models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.prompts.cursor import Cursor, Malformed, Steps
from edgellm.prompts.pieces import Pieces
from edgellm.prompts.syntax import Headed, Rules, Schema, Syntax
from edgellm.prompts.tagged import Tagged

MOST = 8  # calls of an answer with a grammar


@dataclass(frozen=True)
class Dialect:
    """See above.

    name: for people. syntax: of a call. mark: what no other text contains; an answer is searched for it. lead, tail:
    between the mark and the first call, and behind the last. between: calls; None where each has marks of its own.
    listed: a list in brackets stands between the marks. bare: calls are written without the mark, as all of the answer.
    """

    name: str
    syntax: Syntax
    mark: str
    lead: str = ""
    tail: str = ""
    between: str | None = None
    listed: bool = False
    bare: bool = False

    def write(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        """Calls, names and arguments, as the model would write them."""
        written = [self.syntax.write(name, arguments) for name, arguments in calls]
        before, after = self._around()
        if self.between is None:
            return "\n".join(before + each + after for each in written)
        return before + self.between.join(written) + after

    def _around(self) -> tuple[str, str]:
        before = ("" if self.bare else self.mark) + self.lead
        return before + ("[" if self.listed else ""), ("]" if self.listed else "") + self.tail

    def calls(self, rules: Rules, schemas: Mapping[str, Schema], *, several: bool = False) -> str:
        """What a grammar has for a call of one of the tools, the body of a rule.

        schemas: their parameters by their names. several: or for MOST calls at most.
        """
        each = [rules.rule(self.syntax.rule(rules, name, schema)) for name, schema in schemas.items()]
        one = rules.rule(" | ".join(each))
        mark, tail = "" if self.bare else self.mark, self.tail.removeprefix("\n")
        opening = f"{rules.text(mark)} {rules.text(self.lead + '[' * self.listed)}"
        # the line break is a text of its own, as the one between calls is: what reads a grammar never looks back
        ending = (rules.text("]" * self.listed), rules.text(self.tail[: len(self.tail) - len(tail)]), rules.text(tail))
        closing = " ".join(ending)
        if not several:
            return f"{opening} {one} {closing}"
        if self.between is None:
            section = rules.rule(f"{opening} {one} {closing}")
            return f"{section} ({rules.text(chr(10))} {section}){{0,{MOST - 1}}}"
        return f"{opening} {one} ({rules.text(self.between)} {one}){{0,{MOST - 1}}} {closing}"

    def read(self, cursor: Cursor, pieces: Pieces, schemas: Mapping[str, Schema], *, bare: bool = False) -> Steps[None]:
        """The calls behind a mark that is read already, or, if `bare`, without it. Raises Malformed; calls that are
        complete by then stay."""
        tail, listed, first = self.tail.strip(), False, True
        if not isinstance(self.syntax, (Headed, Tagged)):
            yield from cursor.blanks()
            listed = yield from cursor.starts("[")
        while True:
            blank = yield from cursor.blanks()
            if tail and not listed and not bare and (yield from cursor.starts(tail)):
                if first:
                    raise Malformed("no call")
                return
            if listed and (yield from cursor.starts("]")):
                listed = False
                if not tail or bare:
                    return
                continue
            if not first:
                if (yield from cursor.starts(",")) or (yield from cursor.starts(";")):
                    yield from cursor.blanks()
                elif not (yield from self._follows(cursor, tail)):
                    pieces.text(blank)
                    return
            first = False
            yield from self.syntax.read(cursor, pieces, schemas)
            cursor.record()

    def _follows(self, cursor: Cursor, tail: str) -> Steps[bool]:
        """Whether another call comes."""
        char = yield from cursor.peek()
        if not char or (not tail and not self.syntax.begins):
            return False
        return not self.syntax.begins or self.syntax.begins.startswith(char)
