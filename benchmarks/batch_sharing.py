"""Sharing: questions to documents as one job, beside the same requests one by one without reuse.

    python benchmarks/batch_sharing.py MODEL [--documents 64] [--questions 20] [--tokens 600] [--sample 64]

Each request is a document and a question to it. The job gets all of them, shuffled; one by one they are asked with the
cache off, a sample of them (0: all), before and after the job, in the same process. Reported are lines per second of
both and the ratio, and that of processor time, which others on the machine disturb less; answers that both gave must
be the same.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from typing import Any

import edgellm

NOUNS = [
    "river",
    "mill",
    "baker",
    "harbour",
    "lantern",
    "orchard",
    "clock",
    "teacher",
    "violin",
    "bridge",
    "garden",
    "letter",
    "winter",
    "market",
    "tower",
]
VERBS = ["repairs", "remembers", "paints", "crosses", "measures", "forgets", "carries", "follows", "sells", "describes"]


def document(number: int, model: edgellm.Model, tokens: int) -> str:
    chance = random.Random(number)
    said = [f"Document {number}."]
    while model.count_tokens(" ".join(said)) < tokens:
        said.append(
            " ".join(
                f"The {chance.choice(NOUNS)} {chance.choice(VERBS)} the {chance.choice(NOUNS)} number "
                f"{chance.randrange(1000)}."
                for _ in range(8)
            )
        )
    return " ".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=600, help="of a document")
    parser.add_argument("--answer", type=int, default=16, help="longest answer, in tokens")
    parser.add_argument("--sample", type=int, default=64, help="requests that are asked one by one; 0: all")
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    with edgellm.load(wanted.model, cache=edgellm.CacheParams(disk=0)) as model:
        documents = [document(each, model, wanted.tokens) for each in range(wanted.documents)]
        rows: list[dict[str, Any]] = [
            {"prompt": f"{text}\n\nQuestion: what does the {NOUNS[at % len(NOUNS)]} do, part {at}?", "id": [number, at]}
            for number, text in enumerate(documents)
            for at in range(wanted.questions)
        ]
        random.Random(1).shuffle(rows)
        options: dict[str, Any] = {"temperature": 0, "max_tokens": wanted.answer}
        model.chat().send("hello", max_tokens=2)
        sample = rows[: wanted.sample or len(rows)]
        halves = (sample[: len(sample) // 2], sample[len(sample) // 2 :])
        alone: dict[str, str] = {}
        seconds, spent = one_by_one(model, halves[0], options, alone)
        begun, before = time.perf_counter(), time.process_time()
        found = list(edgellm.batch(rows, model, **options))
        together, spent_together = time.perf_counter() - begun, time.process_time() - before
        more = one_by_one(model, halves[1], options, alone)
        seconds, spent = seconds + more[0], spent + more[1]
    prompt = sum(each["usage"]["prompt_tokens"] for each in found)
    known = sum(each["usage"]["cached_tokens"] for each in found)
    same = sum(each["text"] == alone[str(each["id"])] for each in found if str(each["id"]) in alone)
    rates = len(sample) / seconds, len(rows) / together
    processor = spent / len(sample) / (spent_together / len(rows))
    about = {
        "lines": len(rows),
        "prompt_tokens": prompt,
        "known": known,
        "answered": sum(each["usage"]["completion_tokens"] for each in found),
        "one_by_one": {"lines": len(sample), "seconds": seconds, "lines_per_second": rates[0]},
        "job": {"seconds": together, "lines_per_second": rates[1]},
        "ratio": rates[1] / rates[0],
        "processor_ratio": processor,
        "same_answers": f"{same} of {len(alone)}",
    }
    if wanted.json:
        print(json.dumps(about))
        return
    print(f"{len(rows):,} lines, {prompt:,} tokens of prompts, {known:,} of them known ({known / prompt:.1%})")
    print(f"one by one, cache off   {rates[0]:8.2f} lines/s  ({len(sample)} lines in {seconds:.1f} s)")
    print(f"as a job                {rates[1]:8.2f} lines/s  ({together:.1f} s)")
    print(f"ratio                   {rates[1] / rates[0]:8.2f}")
    print(f"of processor time       {processor:8.2f}")
    print(f"same answers            {same} of {len(alone)}")


def one_by_one(
    model: edgellm.Model, rows: list[dict[str, Any]], options: dict[str, Any], answers: dict[str, str]
) -> tuple[float, float]:
    """Seconds that they took, and of processor time."""
    begun, before = time.perf_counter(), time.process_time()
    for row in rows:
        done = model.chat().send(row["prompt"], cache=False, **options)
        answers[str(row["id"])] = done.text
    return time.perf_counter() - begun, time.process_time() - before


if __name__ == "__main__":
    main()
