"""Answers with and without drafts (`speculate`), in turn on one loaded model.

    python benchmarks/speculation.py MODEL [--told] [--rounds 7] [--answer 256] [--backend B] [--threads N] [--json]

edit     a file is written again with one name changed
quote    a passage of a text is repeated
extract  JSON objects are made of lines
free     a story, sampled at temperature 0.8: nothing of it was said before

The first three are greedy. Prompts are plain text that a small base model goes on with by copying, too; it makes
mistakes there that a larger one would not, and never stops. With `--told` all is computed as ever, but the right
answers to the first three are then chosen: how fast is a model that makes none.

Each round asks every task both ways, in alternating order. Nothing is kept of a prompt; what passes take and how often
drafts are right is learned in a first round that does not count (`first`: its ratio). Printed is how many times as many
tokens per second came with drafts: the median of the ratios of the rounds, and their range; beside it the tokens per
second of both, the share of the drafted tokens that were right, tokens per pass, and whether the answers were the same
to the last token, as they must be where the engine promises that a row has the same bits in every pass.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from edgellm.backends import open_backend
from edgellm.backends.base import Backend, Rows, Step
from edgellm.events import Completion
from edgellm.hub import resolve
from edgellm.model import Model
from edgellm.params import CacheParams, GenerateParams, LoadParams

CODE = '''import json
from pathlib import Path


class Store:
    """Keeps records in a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, dict[str, object]] = {}
        if path.exists():
            self.records = json.loads(path.read_text())

    def add(self, name: str, record: dict[str, object]) -> None:
        if name in self.records:
            raise KeyError(f"{name} is already there")
        self.records[name] = record
        self.save()

    def remove(self, name: str) -> None:
        del self.records[name]
        self.save()

    def find(self, word: str) -> list[str]:
        return [name for name, record in self.records.items() if word in str(record)]

    def save(self) -> None:
        self.path.write_text(json.dumps(self.records, indent=2))
'''
PASSAGE = """The river rises in the hills above the town, where three small streams meet in a meadow that is flooded
every spring. From there it runs south through a narrow valley with old mills on both banks, most of which were given up
when the railway came. Below the last weir the valley opens, and the river divides around an island that the people of
the village use as a common pasture. In dry summers one can walk across to it; in winter it is cut off for weeks, and
the keeper of the ferry, whose family has held that office for two hundred years, carries letters and bread."""
PEOPLE = (
    ("Anna Berg", 31, "Oslo"), ("Luis Ortega", 45, "Lima"), ("Mei Tanaka", 28, "Kobe"), ("Tom Weller", 52, "Leeds"),
    ("Sara Lind", 37, "Turku"), ("Ivan Petrov", 61, "Varna"), ("Nora Kelly", 23, "Cork"), ("Paul Meyer", 40, "Bonn"),
)  # fmt: skip


def _object(name: str, age: int, town: str) -> str:
    return json.dumps({"name": name, "age": age, "town": town})


LINES = "\n".join(f"{name}, who is {age} years old, lives in {town}." for name, age, town in PEOPLE)
TASKS = {
    "edit": (
        f"The file store.py:\n```python\n{CODE}```\n\nThe same file, with `records` called `entries`:\n```python\n",
        CODE.replace("records", "entries") + "```\n",
    ),
    "quote": (f'The text:\n"{PASSAGE}"\n\nThe same text once more, word for word:\n"', PASSAGE + '"\n'),
    "extract": (
        f"Lines:\n{LINES}\n\nEach line as a JSON object:\n{_object(*PEOPLE[0])}\n",
        "\n".join(_object(*each) for each in PEOPLE[1:]) + "\n",
    ),
    "free": ("Once upon a time, on an island far out in the northern sea, there lived an old clockmaker who", ""),
}  # prompt, and the right answer


class Told:
    """A backend whose rows make the likeliest token what `answer` has next, behind a prompt of so many tokens; all that
    is behind that answer is left as it is."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.prompt, self.answer = 0, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def forward(self, steps: list[Step]) -> list[Rows | None]:
        found = self._backend.forward(steps)
        return [rows if rows is None else self._told(rows, step) for rows, step in zip(found, steps, strict=True)]

    def _told(self, rows: Rows, step: Step) -> Rows:
        rows = rows.copy()
        first = step.sequence.length - len(rows) + 1 - self.prompt
        for row, at in zip(rows, range(first, first + len(rows)), strict=True):
            if 0 <= at < len(self.answer):
                row[self.answer[at]] = row.max() + 1
        return rows


@dataclass
class Measured:
    """Of one task: tokens per second of each round."""

    plain: list[float] = field(default_factory=list)
    drafts: list[float] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    tokens: int = 0
    same: bool = True
    first: float = 0.0

    @property
    def ratios(self) -> list[float]:
        return [fast / slow for fast, slow in zip(self.drafts, self.plain, strict=True)]


def ask(model: Model, task: str, seed: int, answer: int, *, speculate: bool) -> Completion:
    """Its answer, from nothing that is known and to be kept nowhere."""
    prompt, right = TASKS[task]
    backend = model._engine.backend
    if isinstance(backend, Told):
        tokens = model.encode(prompt)
        backend.prompt, backend.answer = len(tokens), model.encode(prompt + right)[len(tokens) :] if right else []
        answer = min(answer, len(backend.answer) or answer)
    params = GenerateParams(
        temperature=0 if right else 0.8, seed=seed, max_tokens=answer, ignore_eos=True, cache=False, speculate=speculate
    )
    return model.generate(prompt, params)


def measure(model: Model, rounds: int, answer: int) -> dict[str, Measured]:
    """Both ways in turn."""
    found = {task: Measured() for task in TASKS}
    for number in range(rounds + 1):
        for task, measured in found.items():
            order = (False, True) if number % 2 else (True, False)
            done = {way: ask(model, task, number, answer, speculate=way) for way in order}
            fast, slow = (done[way].timings for way in (True, False))
            measured.same &= done[True].tokens == done[False].tokens
            if number == 0:
                measured.first = fast.decode_tokens_per_second / slow.decode_tokens_per_second
                continue
            measured.plain.append(slow.decode_tokens_per_second)
            measured.drafts.append(fast.decode_tokens_per_second)
            measured.drafted += fast.drafted
            measured.accepted += fast.accepted
            measured.tokens += len(done[True].tokens)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--answer", type=int, default=256)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--told", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    backend = open_backend(resolve(asked.model), LoadParams(ctx=4096, backend=asked.backend, threads=asked.threads))
    with Model(Told(backend) if asked.told else backend, cache=CacheParams(disk=0)) as model:  # type: ignore[arg-type]
        found = measure(model, asked.rounds, asked.answer)
        name = f"{model.info.name} on {model.backend}, {model.threads} threads{', told' if asked.told else ''}"
    if asked.json:
        print(json.dumps({"model": name, "tasks": {task: asdict(measured) for task, measured in found.items()}}))
        return
    print(f"{name}: {asked.answer} tokens, {asked.rounds} rounds\n")
    print(f"{'':8} {'times':>6} {'range':>14} {'plain':>8} {'drafts':>8} {'right':>6} {'a pass':>6} {'first':>6}  same")
    for task, each in found.items():
        low, high = min(each.ratios), max(each.ratios)
        right = f"{each.accepted / each.drafted:.0%}" if each.drafted else "none"
        a_pass = each.tokens / max(1, each.tokens - each.accepted)
        print(
            f"{task:8} {median(each.ratios):6.2f} {low:6.2f} - {high:5.2f} {median(each.plain):8.1f} "
            f"{median(each.drafts):8.1f} {right:>6} {a_pass:6.2f} {each.first:6.2f}  {each.same}"
        )


if __name__ == "__main__":
    main()
