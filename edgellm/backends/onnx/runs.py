"""Which runs of the session a pass takes: the tokens of its steps, side by side or one step after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgellm.backends.base import Step
from edgellm.backends.onnx.graph import Roles
from edgellm.backends.onnx.shape import cut, l2_cache
from edgellm.backends.pool import Held
from edgellm.errors import Unsupported


@dataclass(frozen=True, slots=True)
class Run:
    """As many tokens of each of some steps. `at` are their places among the steps of the pass."""

    at: list[int]
    sequences: list[Held]
    tokens: list[list[int]]
    start: int  # tokens of the same step that an earlier run computes
    extra: int  # tokens at the end whose rows nobody wants
    keep: int  # rows of logits that the graph gives per sequence


class Cutter:
    """n_ctx: tokens of a sequence. together: most sequences of a run. name: of the model. ours: attention is our own
    kernel, which needs no cuts: it takes any run alike."""

    def __init__(self, roles: Roles, n_ctx: int, together: int, name: str, *, ours: bool) -> None:
        self._roles, self._n_ctx, self._together, self._name = roles, n_ctx, together, name
        self._head_sizes, self._l2 = set() if ours else {each.size for each in roles.kept}, l2_cache()

    def runs(self, sequences: list[Held], steps: list[Step]) -> list[Run]:
        """Steps of one token side by side, as many as the graph takes; each of the others alone, cut by `shape`."""
        single = [at for at, step in enumerate(steps) if len(step.tokens) == 1]
        single.sort(key=lambda at: sequences[at].id)
        runs = []
        for group in (single[at : at + self._together] for at in range(0, len(single), self._together)):
            chosen, every = [sequences[at] for at in group], any(steps[at].logits == "all" for at in group)
            runs.append(Run(group, chosen, [steps[at].tokens for at in group], 0, 0, self._keep(1, 0, every)))
        for at, step in enumerate(steps):
            runs += self._cut(at, sequences[at], step) if len(step.tokens) > 1 else ()
        return runs

    def _cut(self, at: int, sequence: Held, step: Step) -> Iterator[Run]:
        """The runs of a step of several tokens."""
        count, start = len(step.tokens), 0
        parts = [(count, False)]
        if self._roles.shared:
            parts = cut(sequence.length, count, self._head_sizes, self._l2)
        for size, more in parts:
            tokens = step.tokens[start : start + size]
            room = sequence.length + start + size < self._n_ctx
            extra = int(more and room and self._roles.rows != "last")
            keep = self._keep(size, extra, step.logits == "all")
            yield Run([at], [sequence], [tokens + tokens[-1:] * extra], start, extra, keep)
            start += size

    def _keep(self, tokens: int, extra: int, every: bool) -> int:
        """Rows of logits that the graph gives for each sequence of a run. every: all are wanted, not the last alone."""
        if self._roles.rows == "all":
            return tokens + extra
        if self._roles.rows == "last" and every and tokens > 1:
            raise Unsupported(f"{self._name}: the graph gives the last row of logits alone; export it with all")
        return tokens + extra if every else 1 + extra
