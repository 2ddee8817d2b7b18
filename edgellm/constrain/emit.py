"""Writer: a state as a schema of the few keywords that llguidance enforces to the letter.

Those are: type, enum, minimum and its three siblings, multipleOf, minLength, maxLength, pattern, prefixItems, items,
minItems, maxItems, properties, required, additionalProperties, patternProperties, minProperties and maxProperties
where all properties are required, anyOf, allOf of patterns, and $ref into $defs without siblings.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, islice, repeat
from typing import Any

from edgellm.constrain.branches import Branches
from edgellm.constrain.instances import State, holds
from edgellm.constrain.numerals import number_schemas, values_of
from edgellm.constrain.objects import ObjectWriter
from edgellm.constrain.shapes import Array, Contained, Shape, String, together
from edgellm.constrain.statements import NEVER
from edgellm.constrain.values import is_whole, key, name_of, writable
from edgellm.constrain.words import all_but
from edgellm.errors import Unsupported

MOST_LISTED = 500  # values that are written out where nothing else says the same: a list without repetitions
MOST_EXCLUDED = 200  # values that a "not" lists
MOST_PATTERNS = 3  # that one string must fit: the states of the lexer multiply
MOST_PLACES = 64  # alternatives of where contained items stand
ROOM = 8  # items, the longest list in which "contains" is written out

Json = dict[str, Any]


class Empty(Exception):
    """Nothing is left of a state that could have had values."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state


class Writer:
    """Writes the states that are asked for into `definitions`, each once. Raises Unsupported, and Empty."""

    def __init__(self, branches: Branches) -> None:
        self.branches = branches
        self.definitions: dict[str, Json] = {}
        self._names: dict[State, str] = {}

    def write(self, state: State) -> Json:
        """A schema with the state's meaning; `{}` allows everything. The state has a value."""
        if not state:
            return {}
        if state in self._names:
            return {"$ref": f"#/$defs/{self._names[state]}"}
        self._names[state] = name = f"s{len(self._names)}"
        where = next((place.where for place, _ in state), "schema")
        ways: list[Json] = []
        for shape in self.branches.shapes(state):
            if self.branches.lives(shape):
                ways += self._shape(shape, where)
        ways = [way for at, way in enumerate(ways) if way not in ways[:at]]
        if {} in ways:
            ways = [{}]
        if not ways:
            raise Empty(state)
        self.definitions[name] = ways[0] if len(ways) == 1 else {"anyOf": ways}
        return {"$ref": f"#/$defs/{name}"}

    def _shape(self, shape: Shape, where: str) -> list[Json]:
        if shape.values is not None:
            return [self._listed(shape.values, where)]
        if shape == Shape(marks=shape.marks):
            return [{}]
        found: list[Json] = []
        if len(shape.excluded) > MOST_EXCLUDED:
            raise Unsupported(
                f'{place_of(shape, where, "not")}: "not" of more than {MOST_EXCLUDED} values; use a pattern'
            )
        out = _by_type(shape.excluded)
        if shape.null and None not in out["null"]:
            found.append({"type": "null"})
        booleans = shape.booleans - set(out["boolean"])
        if booleans:
            found.append({"type": "boolean"} if len(booleans) == 2 else {"enum": sorted(booleans)})
        if shape.number:
            found += number_schemas(shape.number, out["number"], place_of(shape, where, "multipleOf"))
        if shape.string:
            found += self._string(shape.string, out["string"], where)
        if shape.array:
            self._refuse_excluded(shape, out["array"], where)
            found += self._array(shape, shape.array, where)
        if shape.object:
            self._refuse_excluded(shape, out["object"], where)
            found += ObjectWriter(self, shape, shape.object, where).ways()
        return found

    def _refuse_excluded(self, shape: Shape, values: list[Any], where: str) -> None:
        free = Shape(marks=shape.marks, array=shape.array, object=shape.object)
        if any(self.branches.kept(free, value) for value in values):
            raise Unsupported(
                f'{place_of(shape, where, "not")}: lists or objects under "not"; say what is allowed instead'
            )

    def _listed(self, values: tuple[Any, ...], where: str) -> Json:
        for value in values:
            _refuse_unwritable(value, where)
        return {"enum": list(values)}

    def _string(self, string: String, excluded: list[Any], where: str) -> list[Json]:
        if string.patterns_not:
            raise Unsupported(
                f'{where}: strings that must not fit a pattern or a format; write a "pattern" for those that may'
            )
        excluded = [text for text in excluded if string.holds(text)]
        patterns = list(string.patterns) + ([all_but(excluded)] if excluded else [])
        if len(patterns) > MOST_PATTERNS:
            raise Unsupported(f"{where}: a string of more than {MOST_PATTERNS} patterns and formats at once; join them")
        found: Json = {"type": "string"}
        if string.least:
            found["minLength"] = string.least
        if string.most is not None:
            found["maxLength"] = string.most
        if patterns:
            found["pattern"] = f"^(?:{patterns[0]})$"
        if len(patterns) > 1:
            found = {"allOf": [found, *({"type": "string", "pattern": f"^(?:{each})$"} for each in patterns[1:])]}
        return [found]

    def _array(self, shape: Shape, array: Array, where: str) -> list[Json]:
        array = self._plain(array)
        if array.unique and array.most is not None and array.most <= 1:
            array = Array(array.prefix, array.rest, array.least, array.most, False, array.repeated, array.contained)
        if array.unique or array.repeated or array.contained:
            listed = self._written_out(shape, array, where)
            if listed is not None:
                return listed
        if array.unique or array.repeated:
            raise Unsupported(
                f'{place_of(shape, where, "uniqueItems")}: "uniqueItems" is enforced for lists of few values alone '
                f"(an enum, and at most {MOST_LISTED} lists of them); remove it, or use an object with items as keys"
            )
        found = []
        for way in self._placed(shape, array, where) if array.contained else (array,):
            written = self._items(way)
            found += [written] if written is not None else []
        return found

    def _plain(self, array: Array) -> Array:
        """The same lists with fewer demands: what every item is anyway needs not be contained."""
        left, least, most = [], array.least, array.most
        prefix, rest = list(array.prefix), array.rest
        for each in array.contained:
            if all(set(each.state) <= set(state) for state in (*prefix, rest)):
                least = max(least, each.least)
                most = each.most if most is None else most if each.most is None else min(most, each.most)
            elif each.most == 0:
                contrary = turned(each.state)
                prefix = [together(state, contrary) for state in prefix]
                rest = together(rest, contrary)
            else:
                left.append(each)
        return Array(tuple(prefix), rest, least, most, array.unique, array.repeated, tuple(left))

    def _written_out(self, shape: Shape, array: Array, where: str) -> list[Json] | None:
        """All lists one by one, None where they are too many."""
        most = array.most
        if most is None:
            if not array.unique:
                return None
            rest = self._finite(array.rest)
            if rest is None:
                return None
            most = len(array.prefix) + len(rest)
        columns: list[list[Any]] = []
        for at in range(min(most, MOST_LISTED)):
            values = self._finite(array.at(at))
            if values is None:
                return None
            if not values:
                break
            columns.append(values)
        found = list(islice(self._lists(array, columns), MOST_LISTED + 1))
        if len(found) > MOST_LISTED:
            return None
        return [self._listed(tuple(found), where)] if found else []

    def _lists(self, array: Array, columns: list[list[Any]]) -> Iterator[list[Any]]:
        """The lists that can be made of these values, place by place."""
        tried = 0
        left: list[list[Any]] = [[]]
        while left:
            chosen = left.pop()
            tried += 1
            if tried > MOST_LISTED * 8:
                yield from repeat([], MOST_LISTED + 1)  # too many to look at, whatever is found
            if len(chosen) >= array.least and self.branches.kept(Shape(array=array), chosen):
                yield chosen
            if len(chosen) < len(columns):
                taken = set(map(key, chosen)) if array.unique else set()
                left += [[*chosen, value] for value in reversed(columns[len(chosen)]) if key(value) not in taken]

    def _finite(self, state: State) -> list[Any] | None:
        """The values of a state, None where they are many."""
        found: list[Any] = []
        for shape in self.branches.shapes(state):
            values = values_of(shape)
            if values is None:
                return None
            found += values
        return found if len(found) <= MOST_LISTED else None

    def _placed(self, shape: Shape, array: Array, where: str) -> Iterator[Array]:
        """One alternative for each choice of the places at which what is contained stands."""
        at = place_of(shape, where, "contains")
        if array.most is None or array.most > ROOM or len(array.contained) > 1:
            raise Unsupported(
                f'{at}: "contains" is enforced once, in lists of at most {ROOM} items; say "maxItems", or use '
                f'"prefixItems" and "items"'
            )
        ways = list(islice(self._choices(array, array.contained[0], array.most), MOST_PLACES + 1))
        if len(ways) > MOST_PLACES:
            raise Unsupported(f'{at}: "contains" in more than {MOST_PLACES} ways; lower "maxItems" or "minContains"')
        yield from ways

    def _choices(self, array: Array, wanted: Contained, most: int) -> Iterator[Array]:
        exact = wanted.most is not None
        for length in range(array.least, most + 1) if exact else (most,):
            for count in range(wanted.least, min(wanted.most or 0, length) + 1) if exact else (wanted.least,):
                for places in combinations(range(length), count):
                    states = [
                        together(array.at(at), wanted.state if at in places else turned(wanted.state) if exact else ())
                        for at in range(length)
                    ]
                    least = length if exact else max(array.least, *(at + 1 for at in places))
                    yield Array(tuple(states), NEVER, least, length)

    def _items(self, array: Array) -> Json | None:
        """A list without further demands, None where there is none of that kind."""
        found: Json = {"type": "array"}
        prefix: list[Json] = []
        most = array.most
        for at, state in enumerate(array.prefix):
            if not self.branches.filled(state):
                most = at if most is None else min(most, at)
            if most is not None and at >= most:
                break
            prefix.append(self.write(state))
        rest = array.rest if most is None or most > len(prefix) else NEVER
        if not self.branches.filled(rest):
            most = len(prefix) if most is None else min(most, len(prefix))
        if most is not None and array.least > most:
            return None
        if prefix:
            found["prefixItems"] = prefix
        if most is None or most > len(prefix):
            found |= {"items": self.write(rest)} if rest else {}
        else:
            found["items"] = False
        if array.least:
            found["minItems"] = array.least
        if most is not None and "items" in found and found["items"] is False and most == len(prefix):
            pass  # the prefix says so
        elif most is not None:
            found["maxItems"] = most
        return found

    def holds(self, state: State, value: Any) -> bool:
        return holds(self.branches.document, state, value)


def place_of(shape: Shape, where: str, keyword: str) -> str:
    """Where a keyword of a shape was said."""
    return next((place for name, place in shape.marks if name == keyword), where)


def turned(state: State) -> State:
    """The contrary of a state of one schema, or of none."""
    if not state:
        return NEVER
    if state == NEVER:
        return ()
    ((place, wanted),) = state
    return ((place, not wanted),)


def _by_type(values: tuple[Any, ...]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {name: [] for name in ("null", "boolean", "number", "string", "array", "object")}
    for value in values:
        found[name_of(value)].append(value)
    return found


def _refuse_unwritable(value: Any, where: str) -> None:
    """llguidance writes numbers through a double, and control characters not at all (they need \\u)."""
    if isinstance(value, str) and not writable(value):
        raise Unsupported(f"{where}: a string with a control character, which no answer may hold; leave it out")
    if isinstance(value, dict):
        for name, each in value.items():
            _refuse_unwritable(name, where)
            _refuse_unwritable(each, where)
    if isinstance(value, list):
        for each in value:
            _refuse_unwritable(each, where)
    if is_whole(value) and abs(value) > 2**53:
        raise Unsupported(f"{where}: a number beyond 2**53, which not every reader keeps; use a string")
