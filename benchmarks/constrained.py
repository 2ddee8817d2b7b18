"""Answers with a form: whether all of them have it, and what that costs.

    python benchmarks/constrained.py MODEL [--answers 200] [--rounds 5] [--streams 8] [--backend B] [--json]

First --answers answers under schemas, expressions, grammars and choices, at temperature 1.5: every one that was not cut
must parse and match. Then decoding: the same prompt is answered in turn with a schema and without one, alone and as
--streams answers at once; how many times as many tokens per second come with it (median and range of the rounds).
Tokens that must follow come without a pass of their own, so it may be more than 1.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import edgellm

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "born": {"type": "string", "format": "date"},
        "languages": {"type": "array", "items": {"enum": ["English", "French", "German"]}, "maxItems": 3},
        "height": {"type": "number", "minimum": 0, "maximum": 3},
    },
    "required": ["name", "born", "languages", "height"],
    "additionalProperties": False,
}
TEXT = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "text": {"type": "string", "minLength": 600}},
    "required": ["title", "text"],
    "additionalProperties": False,
}
SUM = 'start: NUMBER (" + " NUMBER)+ " = " NUMBER\nNUMBER: /[1-9][0-9]{0,3}/\n'
FORMS: list[tuple[dict[str, Any], str]] = [
    ({"schema": PERSON}, ""),
    ({"regex": r"[A-Z][a-z]{1,12}, (19|20)[0-9]{2}\."}, r"[A-Z][a-z]{1,12}, (19|20)[0-9]{2}\."),
    ({"grammar": SUM}, r"[1-9][0-9]{0,3}( \+ [1-9][0-9]{0,3})+ = [1-9][0-9]{0,3}"),
    ({"choices": ["positive", "negative", "neutral"]}, "positive|negative|neutral"),
]


def wrong(model: edgellm.Model, answers: int) -> tuple[int, int]:
    """Of so many answers: those without the form they were asked for, and those that were cut."""
    from jsonschema import Draft202012Validator, FormatChecker

    valid = Draft202012Validator(PERSON, format_checker=FormatChecker())
    bad = cut = 0
    for seed in range(answers):
        form, pattern = FORMS[seed % len(FORMS)]
        done = model.chat().send("Tell me about somebody.", temperature=1.5, seed=seed, max_tokens=300, **form)
        cut += done.finish_reason == "length"
        if done.finish_reason == "stop" and pattern:
            bad += not re.fullmatch(pattern, done.text)
        elif done.finish_reason == "stop":
            bad += not valid.is_valid(json.loads(done.text))
    return bad, cut


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
        bad, cut = wrong(model, given.answers)
        found: dict[str, Any] = {"backend": model.backend, "answers": given.answers, "wrong": bad, "cut": cut}
        for streams in (1, given.streams):
            ratios = []
            for round_ in range(given.rounds + 1):
                forms: list[dict[str, Any]] = [{"schema": TEXT}, {"ignore_eos": True}]
                order = forms if round_ % 2 else forms[::-1]
                rates = {len(form.get("schema", ())): speed(model, streams, round_, form) for form in order}
                ratios.append(rates[len(TEXT)] / rates[0])
            found[f"{streams} at once"] = [
                round(each, 3) for each in (median(ratios[1:]), min(ratios[1:]), max(ratios[1:]))
            ]
    if given.json:
        print(json.dumps(found))
        return
    print(
        f"{found['backend']}: {bad} of {given.answers} answers without their form, {cut} cut at the end of their tokens"
    )
    for name, (middle, low, high) in list(found.items())[4:]:
        print(f"decoding with a schema, {name}: {middle:.2f} ({low:.2f}-{high:.2f}) times as fast as without")


if __name__ == "__main__":
    main()
