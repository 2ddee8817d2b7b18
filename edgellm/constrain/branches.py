"""Branches: the alternatives of a schema. Whatever combines schemas becomes a union of conjunctions (shapes.py).

`anyOf` is a union as it stands, `allOf` and `$ref` are met, `oneOf` is each branch without those others that it could
overlap, and what stands under `not` is turned around keyword by keyword (negation.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from edgellm.constrain import patience
from edgellm.constrain.document import Document, Place
from edgellm.constrain.instances import State, holds
from edgellm.constrain.keywords import ANNOTATIONS
from edgellm.constrain.negation import denied
from edgellm.constrain.shapes import ANY, Array, Layer, Object, Shape, meet
from edgellm.constrain.statements import NEVER, direct, kept, only
from edgellm.constrain.values import key
from edgellm.errors import Unsupported

MOST = 256  # alternatives of one schema, multiplied out: each is a part of the grammar that is tried beside the others
MOST_STEPS = 10_000  # pairs of alternatives that are met for one schema: they take about a second
MOST_OVERLAPPING = 5  # branches of an anyOf whose sets are all looked at, for unevaluatedProperties


@dataclass(frozen=True)
class Branch:
    """One alternative, and what of an object or an array its schemas looked at (for `unevaluated...`)."""

    shape: Shape
    layers: tuple[Layer, ...] = ()
    items: int | None = 0  # so many first items; None for all


class Branches:
    def __init__(self, document: Document) -> None:
        self.document = document
        self._known: dict[tuple[Place, bool, bool], list[Branch]] = {}
        self._shapes: dict[State, list[Shape]] = {}
        self._within: list[tuple[Place, bool, bool]] = []
        self._filled: set[State] = set()
        self._empty: set[State] = set()
        self._opening: set[State] = set()
        self._guessed = False
        self._steps = 0

    def state(self, place: Place, wanted: bool = True) -> State:
        """The state that is this schema alone, or its contrary: references followed, what says nothing left out."""
        met = set()
        while isinstance(place.schema, dict) and place.schema.keys() - ANNOTATIONS == {"$ref"}:
            if place in met:
                raise Unsupported(f'{place.where}: "$ref" refers to itself; say what it stands for')
            met.add(place)
            place = self.document.target(place)
        if isinstance(place.schema, dict) and not place.schema.keys() - ANNOTATIONS:
            return () if wanted else NEVER
        if isinstance(place.schema, bool):
            return () if place.schema is wanted else NEVER
        return ((place, wanted),)

    def shapes(self, state: State) -> list[Shape]:
        """The alternatives of a state, none of which is known to be empty at its top."""
        if state not in self._shapes:
            self._shapes[state] = self._found(state)
        return self._shapes[state]

    def _found(self, state: State) -> list[Shape]:
        if NEVER[0] in state:
            return []
        for place, wanted in state:
            values = listed(place)
            if wanted and values is not None:
                good = tuple(value for value in values if holds(self.document, state, value))
                return [Shape(values=good)] if good else []
        found = [Branch(ANY)]
        for place, wanted in state:
            found = self._product(found, self.of(place, wanted), place)
        return [branch.shape for branch in found]

    def filled(self, state: State) -> bool:
        """Whether some finite value may satisfy it; False is certain."""
        self._guessed = False
        return self._fills(state, frozenset())

    def empty(self, state: State) -> None:
        """Notes that no value satisfies it, as was found out when it was written."""
        self._empty.add(state)
        self._filled.clear()

    def lives(self, shape: Shape) -> bool:
        """The same of a shape."""
        self._guessed = False
        return self._shape_fills(shape, frozenset())

    def _fills(self, state: State, within: frozenset[State]) -> bool:
        patience.step()
        if state in self._filled or not state:
            return True
        if state in within or state in self._empty:
            return False  # it needs itself: no finite value this way
        if state in self._opening:  # its alternatives are being looked for right now
            self._guessed = True
            return True
        inner = within | {state}
        self._opening.add(state)
        chain, self._within = self._within, []
        try:
            shapes = self.shapes(state)
        finally:
            self._within = chain
            self._opening.discard(state)
        found = any(self._shape_fills(shape, inner) for shape in shapes)
        if found and not self._guessed:
            self._filled.add(state)
        return found

    def _shape_fills(self, shape: Shape, within: frozenset[State]) -> bool:
        if shape.values is not None:
            return bool(shape.values)
        if shape.null or shape.booleans or shape.number or shape.string:
            return True
        if shape.array and all(
            self._fills(shape.array.at(at), within) for at in range(min(shape.array.least, len(shape.array.prefix) + 1))
        ):
            return True
        found = shape.object
        return found is not None and all(
            holds(self.document, found.keys, name) and self._fills(found.of(name), within) for name in found.required
        )

    def of(self, place: Place, wanted: bool, tracked: bool = False) -> list[Branch]:
        """The alternatives of a schema, or of its contrary."""
        asked = (place, wanted, tracked)
        if asked in self._within:
            raise Unsupported(f"{place.where}: it refers to itself without a step into a property or an item")
        if asked not in self._known:
            self._within.append(asked)
            try:
                self._known[asked] = self._wanted(place, tracked) if wanted else self._denied(place)
            finally:
                self._within.pop()
        return self._known[asked]

    def _wanted(self, place: Place, tracked: bool) -> list[Branch]:
        schema = place.schema
        if isinstance(schema, bool):
            return [Branch(ANY)] if schema else []
        values = listed(place)
        if values is not None:
            good = tuple(value for value in values if holds(self.document, ((place, True),), value))
            if tracked and any(isinstance(value, (list, dict)) for value in good):
                raise Unsupported(f'{place.where}: objects or lists in "enum" or "const" below an "unevaluated..."')
            return [Branch(Shape(values=good))] if good else []
        own = schema.keys() & {"unevaluatedProperties", "unevaluatedItems"}
        inner = tracked or bool(own)
        if inner and "contains" in schema and (tracked or "unevaluatedItems" in schema):
            raise Unsupported(f'{place.where}: "contains" together with "unevaluatedItems"; use "items"')
        found = [self._direct(place, schema)]
        for dependents in self._dependents(place, schema, inner):
            found = self._product(found, dependents, place)
        for keyword in ("$ref", "$dynamicRef"):
            if keyword in schema:
                found = self._product(found, self.of(self.document.target(place, keyword), True, inner), place)
        for at in range(len(schema.get("allOf", ()))):
            found = self._product(found, self.of(self.document.inner(place, "allOf", at), True, inner), place)
        if "anyOf" in schema:
            found = self._product(found, self._any(place, len(schema["anyOf"]), inner), place)
        if "oneOf" in schema:
            found = self._one(place, len(schema["oneOf"]), inner, found)
        if "not" in schema:
            found = self._product(found, self.of(self.document.inner(place, "not"), False), place)
        if "if" in schema and schema.keys() & {"then", "else"} | ({"if"} if inner else set()):
            found = self._product(found, self._either(place, schema, inner), place)
        for keyword in sorted(own):
            found = [self._closed(branch, keyword, place) for branch in found]
            found = [branch for branch in found if branch.shape.alive()]
        return found

    def _direct(self, place: Place, schema: dict[str, Any]) -> Branch:
        shape = direct(place, lambda *steps: self.state(self.document.inner(place, *steps)))
        layers: tuple[Layer, ...] = ()
        if schema.keys() & {"properties", "patternProperties", "additionalProperties"}:
            rest = () if "additionalProperties" in schema else NEVER
            names, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
            layers = (Layer(dict.fromkeys(names, ()), dict.fromkeys(patterns, ()), rest),)
        return Branch(shape, layers, None if "items" in schema else len(schema.get("prefixItems", ())))

    def _dependents(self, place: Place, schema: dict[str, Any], tracked: bool) -> Iterable[list[Branch]]:
        for name, needs in schema.get("dependentRequired", {}).items():
            if needs:
                yield [Branch(_without(name)), Branch(only(object=Object(required=(name, *needs))))]
        for name in schema.get("dependentSchemas", {}):
            inner = self.of(self.document.inner(place, "dependentSchemas", name), True, tracked)
            present = [Branch(only(object=Object(required=(name,))))]
            yield [Branch(_without(name)), *self._product(present, inner, place)]

    def _any(self, place: Place, count: int, tracked: bool) -> list[Branch]:
        each = [self.of(self.document.inner(place, "anyOf", at), True, tracked) for at in range(count)]
        if not tracked:
            return self._limited([branch for branches in each for branch in branches], place)
        if count > MOST_OVERLAPPING:
            raise Unsupported(f'{place.where}: "anyOf" of more than {MOST_OVERLAPPING} below an "unevaluated..."')
        found: list[Branch] = []
        for size in range(1, count + 1):  # a branch may hold beside others, and look at what they do not
            for chosen in combinations(each, size):
                both = chosen[0]
                for branches in chosen[1:]:
                    both = self._product(both, branches, place)
                found += both
        return self._limited(found, place)

    def _one(self, place: Place, count: int, tracked: bool, found: list[Branch]) -> list[Branch]:
        """Each branch without the others, as far as they overlap beside what was `found`."""
        places = [self.document.inner(place, "oneOf", at) for at in range(count)]
        each = [self._product(found, self.of(inner, True, tracked), place) for inner in places]
        ways: list[Branch] = []
        for at, alone in enumerate(each):
            for other_at, other in enumerate(places):
                if other_at != at and self._product(alone, self.of(other, True), place):
                    alone = self._product(alone, self.of(other, False), place)
            ways += alone
        return self._limited(ways, place)

    def _either(self, place: Place, schema: dict[str, Any], tracked: bool) -> list[Branch]:
        condition = self.document.inner(place, "if")
        found: list[Branch] = []
        for keyword, wanted in (("then", True), ("else", False)):
            way = self.of(condition, wanted, tracked and wanted)
            if keyword in schema:
                way = self._product(way, self.of(self.document.inner(place, keyword), True, tracked), place)
            found += way
        return self._limited(found, place)

    def _closed(self, branch: Branch, keyword: str, place: Place) -> Branch:
        """A branch with an `unevaluated...` on what its schemas did not look at."""
        rest = self.state(self.document.inner(place, keyword))
        if branch.shape.values is not None:
            return branch
        if keyword == "unevaluatedItems":
            items = branch.items
            limit = only(rest_of=ANY, array=ANY.array if items is None else Array(((),) * items, rest))
            return Branch(self.meet(branch.shape, limit), branch.layers, None)
        if any(not layer.rest for layer in branch.layers):
            limit = ANY
        else:
            names = {name: () for layer in branch.layers for name in layer.names}
            patterns = {pattern: () for layer in branch.layers for pattern in layer.patterns}
            limit = only(rest_of=ANY, object=Object((Layer(dict(names), dict(patterns), rest),)))
        return Branch(self.meet(branch.shape, limit), (Layer(),), branch.items)

    def _denied(self, place: Place) -> list[Branch]:
        schema = place.schema
        if isinstance(schema, bool):
            return [] if schema else [Branch(ANY)]
        values = listed(place)
        if values is not None:
            good = tuple(value for value in values if holds(self.document, ((place, True),), value))
            return [Branch(Shape(excluded=good, marks=(("not", place.where),)))]
        found = [Branch(shape) for shape in denied(place, self._inner_state(place))]
        for keyword in ("$ref", "$dynamicRef"):
            if keyword in schema:
                found += self.of(self.document.target(place, keyword), False)
        for at in range(len(schema.get("allOf", ()))):
            found += self.of(self.document.inner(place, "allOf", at), False)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                found += self._none(place, keyword, len(schema[keyword]))
        if "oneOf" in schema:
            found += self._several(place, len(schema["oneOf"]))
        if "not" in schema:
            found += self.of(self.document.inner(place, "not"), True)
        if "if" in schema:
            for keyword, wanted in (("then", True), ("else", False)):
                if keyword in schema:
                    way = self.of(self.document.inner(place, "if"), wanted)
                    found += self._product(way, self.of(self.document.inner(place, keyword), False), place)
        for name in schema.get("dependentSchemas", {}):
            present = [Branch(only(object=Object(required=(name,))))]
            inner = self.document.inner(place, "dependentSchemas", name)
            found += self._product(present, self.of(inner, False), place)
        # What a schema under a "not" looked at does not count.
        return self._limited([Branch(branch.shape) for branch in found], place)

    def _inner_state(self, place: Place) -> Callable[..., State]:
        def state(*steps: str | int, wanted: bool = True) -> State:
            return self.state(self.document.inner(place, *steps), wanted)

        return state

    def _none(self, place: Place, keyword: str, count: int) -> list[Branch]:
        found = [Branch(ANY)]
        for at in range(count):
            found = self._product(found, self.of(self.document.inner(place, keyword, at), False), place)
        return found

    def _several(self, place: Place, count: int) -> list[Branch]:
        each = [self.of(self.document.inner(place, "oneOf", at), True) for at in range(count)]
        return [branch for one, other in combinations(each, 2) for branch in self._product(one, other, place)]

    def _product(self, some: list[Branch], others: list[Branch], place: Place) -> list[Branch]:
        found = []
        self._steps += len(some) * len(others)
        if self._steps > MOST_STEPS:
            raise self._too_many(place)
        for one in some:
            for other in others:
                patience.step()
                shape = self.meet(one.shape, other.shape)
                if shape.alive():
                    items = None if one.items is None or other.items is None else max(one.items, other.items)
                    found.append(Branch(shape, (*one.layers, *other.layers), items))
        return self._limited(found, place)

    def _limited(self, found: list[Branch], place: Place) -> list[Branch]:
        found = [branch for branch in found if self.lives(branch.shape)]
        if len(found) > MOST * 2:
            raise self._too_many(place)
        once: list[Branch] = []
        for branch in found:
            patience.step()
            if branch not in once:
                once.append(branch)
        if len(once) > MOST:
            raise self._too_many(place)
        return once

    def _too_many(self, place: Place) -> Unsupported:
        return Unsupported(
            f"{place.where}: more than {MOST} alternatives, multiplied out; say less with anyOf, oneOf, not and if"
        )

    def meet(self, one: Shape, other: Shape) -> Shape:
        if one.values is not None:
            return Shape(values=tuple(value for value in one.values if self.kept(other, value)))
        if other.values is not None:
            return self.meet(other, one)
        return meet(one, other)

    def kept(self, shape: Shape, value: Any) -> bool:
        if shape.values is not None:
            return key(value) in map(key, shape.values)
        return kept(shape, value, lambda state, value: holds(self.document, state, value))


def listed(place: Place) -> list[Any] | None:
    """The values of an enum or a const, None where there is neither."""
    if not isinstance(place.schema, dict):
        return None
    if "const" in place.schema:
        return [place.schema["const"]]
    return place.schema.get("enum")


def _without(name: str) -> Shape:
    return only(rest_of=ANY, object=Object((Layer({name: NEVER}),)))
