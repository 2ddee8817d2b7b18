"""How much of JSON Schema's official test suite the constraints hold, and that nothing invalid passes.

    python benchmarks/schema_suite.py FOLDER [--walks 20] [--list]

FOLDER is a checkout of https://github.com/json-schema-org/JSON-Schema-Test-Suite. Every schema of draft 2020-12,
required and optional, is prepared, compiled by llguidance and asked about each of its instances; then random walks
through the masks must give texts that parse and that `jsonschema` calls valid. Exits with 1 where something invalid
passed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import jsonschema

from edgellm.constrain.parsed import strict_json
from edgellm.constrain.schema import prepare
from edgellm.errors import EdgeLLMError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from masks import accepts, matcher, walk

DRAFT = "tests/draft2020-12"


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
    """`pattern` by Python's library, where it agrees with ECMA-262: its classes know more of Unicode, or less."""
    flags = 0 if "\\s" in pattern.lower() else re.ASCII
    if isinstance(instance, str) and not re.search(pattern, instance.replace("\ufeff", "\u00a0"), flags):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


Oracle = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": _pattern})


def spellings(value: Any) -> Iterator[str]:
    """The ways to write a value that a constraint may choose from: orders of keys, whole numbers without a point."""

    def plain(part: Any) -> Any:
        if isinstance(part, float) and part.is_integer() and abs(part) < 2**53:
            return int(part)
        if isinstance(part, list):
            return [plain(each) for each in part]
        return {name: plain(each) for name, each in part.items()} if isinstance(part, dict) else part

    def orders(part: Any) -> Iterator[Any]:
        if isinstance(part, dict):
            for order in permutations(part.items()):
                yield dict(order)
        else:
            yield part

    for each in islice(orders(plain(value)), 720):
        yield json.dumps(each, ensure_ascii=False)


def groups(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((folder / DRAFT).rglob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            yield path.relative_to(folder / DRAFT).with_suffix("").as_posix(), group


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--walks", type=int, default=20)
    arguments.add_argument("--only", default="", help="files whose name holds this")
    arguments.add_argument("--list", action="store_true", help="every schema that is refused, and why")
    asked = arguments.parse_args()
    chance, count, files = random.Random(0), Counter[str](), Counter[str]()
    for where, group in groups(asked.folder):
        name = f"{where}: {group['description']}"
        if asked.only not in where:
            continue
        count["schemas"] += 1
        files[where] += 1
        try:
            prepared = prepare(group["schema"])
        except EdgeLLMError as error:
            empty = "no value is valid" in str(error)
            right = not any(test["valid"] for test in group["tests"])
            count["refused as impossible" if empty else "refused"] += 1
            if empty and not right:
                count["WRONG: refused as impossible"] += 1
                print(f"WRONG {name}: {error}")
            elif asked.list:
                print(f"refused {name}: {str(error)[:200]}")
            continue
        start = matcher(prepared)
        if start.is_error():
            count["refused by llguidance"] += 1
            if asked.list:
                print(f"llguidance {name}: {start.get_error()[:160]}\n  {json.dumps(prepared)[:300]}")
            continue
        count["supported"] += 1
        for test in group["tests"]:
            passed = any(accepts(start, text) for text in spellings(test["data"]))
            if passed and not test["valid"]:
                count["WRONG: invalid and accepted"] += 1
                print(f"WRONG {name}: {test['description']}: {test['data']!r} accepted\n  {json.dumps(prepared)[:600]}")
            elif test["valid"] and not passed:
                count["valid and missing"] += 1
                if asked.list:
                    print(f"missing {name}: {test['description']}: {str(test['data'])[:200]!r}")
            else:
                count["instances right"] += 1
        schema = json.loads(json.dumps(group["schema"]), parse_float=Decimal)
        oracle = Oracle(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
        for _ in range(asked.walks):
            try:
                text = walk(start, chance)
                if text is None:
                    count["walks without an end"] += 1
                    continue
                value = strict_json(text, Decimal)
                errors = [error.message[:200] for error in oracle.iter_errors(value)]
            except ArithmeticError:  # an exponent that no Decimal holds, which is refused when the answer is there
                count["walks beyond any number"] += 1
                continue
            except (EdgeLLMError, RuntimeError, ValueError) as error:
                errors, text = [f"{type(error).__name__}: {error}"], ""
            if any("twice in one object" in error for error in errors):
                count["walks that repeat a key"] += 1
                continue
            count["walks"] += 1
            if errors:
                count["WRONG: walks"] += 1
                print(f"WRONG {name}: {text[:200]!r}: {errors[0][:300]}\n  {json.dumps(prepared)[:400]}")
                break
    for what, number in sorted(count.items()):
        print(f"{number:6} {what}")
    return int(any(what.startswith("WRONG") for what in count))


if __name__ == "__main__":
    sys.exit(main())
