"""Passes where each holds one adapter: everybody has a turn, and answers go on beside prompts that are read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from edgellm.backends.base import PassShape
from edgellm.engine.scheduler import Scheduler


@dataclass(eq=False)
class Asked:
    """What the scheduler knows of a request: `left` tokens of its prompt, then an answer without an end."""

    adapter: str
    left: int
    due: int = 1
    length: int = 0

    def __post_init__(self) -> None:
        self.spent = SimpleNamespace(submitted=0.0)
        self.prompt = [0] * self.left

    @property
    def in_prefill(self) -> bool:
        return self.length < len(self.prompt)

    @property
    def before_checkpoint(self) -> int:
        return len(self.prompt) - self.length


def _passes(running: list[Any], count: int) -> list[list[tuple[Asked, int]]]:
    shape = PassShape(align=4, shortest=8, rows_independent=False, one_adapter=True)
    scheduler, made = Scheduler(SimpleNamespace(pass_shape=shape, micro_batch=512, max_rows=64)), []  # type: ignore[arg-type]
    for _ in range(count):
        shares: list[Any] = scheduler.next(running)
        for request, size in shares:
            request.length += size
        made.append(shares)
    return made


def test_a_pass_has_one_adapter_and_each_has_its_turn() -> None:
    running = [Asked(name, 0) for name in ("", "", "one", "two", "two", "two")]
    made = _passes(running, 30)
    assert all(len({request.adapter for request, _ in shares}) == 1 for shares in made)
    assert Counter(shares[0][0].adapter for shares in made) == {"": 10, "one": 10, "two": 10}
    assert all(request.length == 10 for request in running)


def test_answers_go_on_beside_prompts_of_any_adapter() -> None:
    reading, answering, other = Asked("one", 20_000), Asked("one", 0), Asked("two", 0)
    made = _passes([reading, answering, other], 40)
    assert other.length == 20
    assert answering.length == 10
    assert max(size for shares in made for _, size in shares) <= 128  # slices, as long as anybody answers
    assert 0 < reading.length < 20_000


def test_an_adapter_that_comes_or_goes() -> None:
    one, two = Asked("b", 0), Asked("a", 0)
    assert [shares[0][0].adapter for shares in _passes([one], 2)] == ["b", "b"]
    assert [shares[0][0].adapter for shares in _passes([one, two], 4)] == ["a", "b", "a", "b"]
