"""Answers with a form: whether all of them have it, and what that costs.

    python benchmarks/constrained.py MODEL [--answers 200] [--rounds 5] [--streams 8] [--backend B] [--json]

First --answers answers under schemas, expressions, grammars and choices (tests/constrain/formed.py), at temperature
1.5, --streams at once: every one that was not cut at 150 tokens must be what jsonschema, `re`, Python's parser and its
reader of tables say that it is; the exit code is 1 otherwise. Then decoding, unless --rounds is 0: the same prompt is
answered in turn with a schema and without one, alone and as --streams answers at once; how many times as many tokens
per second come with it (median and range of the rounds). Tokens that must follow come without a pass of their own, so
it may be more than 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import edgellm

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from constrain.formed import FORMS

TEXT = {  # longer than its tokens reach: all streams go on to the end
    "type": "object",
    "properties": {"title": {"type": "string"}, "text": {"type": "string", "minLength": 2000}},
    "required": ["title", "text"],
    "additionalProperties": False,
}


def outcomes(model: edgellm.Model, answers: int, streams: int) -> Counter[str]:
    """How often each of the forms in turn was kept, by how it ended and by its name where it was not."""

    def ask(seed: int) -> str:
        name = list(FORMS)[seed % len(FORMS)]
        form, has_form = FORMS[name]
        try:
            done = model.generate("Somebody said:", temperature=1.5, seed=seed, max_tokens=150, **form)
        except edgellm.EdgeLLMError as error:
            return f"failed: {name}: {error}"
        if done.finish_reason != "stop":
            return f"cut: {name}"
        try:
            right = has_form(done.text) and done.parsed is not None
        except (ValueError, SyntaxError, AssertionError):
            right = False
        return "right" if right else f"wrong: {name}: {done.text}"

    with ThreadPoolExecutor(streams) as pool:
        return Counter(pool.map(ask, range(answers)))


def speed(model: edgellm.Model, streams: int, seed: int, form: dict[str, Any]) -> float:
    """Tokens per second after the first one, of all answers together."""

    def ask(one: int) -> tuple[int, float]:
        options: dict[str, Any] = {"max_tokens": 160, "seed": seed + one, "speculate": False, "cache": False}
        done = model.generate("A story about a lighthouse.", **options, **form)
        return len(done.tokens) - 1, done.timings.decode_ms / 1e3

    if streams == 1:
        tokens, seconds = ask(0)
        return tokens / seconds
    with ThreadPoolExecutor(streams) as pool:
        started = time.perf_counter()
        return sum(tokens for tokens, _ in pool.map(ask, range(streams))) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with edgellm.load(given.model, backend=given.backend, ctx=4096) as model:
        started = time.perf_counter()
        ends = outcomes(model, given.answers, given.streams)
        seconds = time.perf_counter() - started
        cut = sum(count for end, count in ends.items() if end.startswith("cut"))
        found: dict[str, Any] = {
            "backend": model.backend,
            "answers": given.answers,
            "right": ends["right"],
            "cut": cut,
            "cut by form": {end[5:]: n for end, n in ends.items() if end.startswith("cut")},
            "others": [end for end in ends if not end.startswith(("right", "cut"))],
            "seconds": round(seconds, 1),
            "times as fast": {},
        }
        for streams in (1, given.streams) if given.rounds else ():
            ratios = []
            for round_ in range(given.rounds + 1):
                forms: list[dict[str, Any]] = [{"schema": TEXT}, {"ignore_eos": True}]
                order = forms if round_ % 2 else forms[::-1]
                rates = {len(form.get("schema", ())): speed(model, streams, round_, form) for form in order}
                ratios.append(rates[len(TEXT)] / rates[0])
            figures = (median(ratios[1:]), min(ratios[1:]), max(ratios[1:]))
            found["times as fast"][f"{streams} at once"] = [round(each, 3) for each in figures]
    if given.json:
        print(json.dumps(found))
    else:
        print(
            f"{found['backend']}: {found['right']} of {given.answers} answers have their form, {cut} were cut at the "
            f"end of their tokens; {seconds:.0f} s"
        )
        print(*found["others"], sep="\n", end="\n" if found["others"] else "")
        for name, (middle, low, high) in found["times as fast"].items():
            print(f"decoding with a schema, {name}: {middle:.2f} ({low:.2f}-{high:.2f}) times as fast as without")
    raise SystemExit(bool(found["others"]))


if __name__ == "__main__":
    main()
