"""ObjectWriter: the objects of a shape as llguidance is to be given them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from edgellm.constrain.instances import State
from edgellm.constrain.overlap import overlap
from edgellm.constrain.regex import translate
from edgellm.constrain.shapes import Object, Shape, together
from edgellm.constrain.statements import NEVER
from edgellm.constrain.values import writable
from edgellm.errors import Unsupported

if TYPE_CHECKING:
    from edgellm.constrain.emit import Writer

MOST_OPTIONAL = 200  # properties of an object that may be absent: llguidance tries them all at once
MOST_PATTERNS = 50  # of an object: each is held against each
MOST_WAYS = 64  # alternatives of which properties are there, for minProperties and maxProperties

Json = dict[str, Any]


class ObjectWriter:
    def __init__(self, writer: Writer, shape: Shape, found: Object, where: str) -> None:
        self._writer = writer
        self._filled = writer.branches.filled
        self._marks = dict(shape.marks)
        self._where = where
        self._found = found
        names = [name for layer in found.layers for name in layer.names]
        self._states = {name: self._state(name) for name in dict.fromkeys((*names, *found.required))}
        self._patterns = self._patterned()
        self._rest = together(*(layer.rest for layer in found.layers))
        if found.keys:
            self._limit_keys(found.keys)
        if not self._filled(self._rest):
            self._rest = NEVER

    def ways(self) -> list[Json]:
        """The alternatives; none where no object is left."""
        found = self._found
        if any(not self._filled(self._states[name]) for name in found.required):
            return []
        if found.key_not:
            raise self._refusal("propertyNames", "where the schema must not hold (below not, oneOf or if)")
        return [way for required in self._existing() for way in self._counted(required)]

    def _state(self, name: str) -> State:
        found = self._found
        if not writable(name):
            raise Unsupported(f"{self._where}: a name with a control character, which no answer may hold; leave it out")
        return found.of(name) if self._writer.holds(found.keys, name) else NEVER

    def _refusal(self, keyword: str, what: str) -> Unsupported:
        return Unsupported(f'{self._marks.get(keyword, self._where)}: "{keyword}" {what}')

    @property
    def _closed(self) -> bool:
        return self._rest == NEVER and not self._patterns

    def _patterned(self) -> dict[str, State]:
        """By pattern what its keys hold; patterns of the same meaning are one."""
        layers = self._found.layers
        by_state: dict[State, list[str]] = {}
        seen: list[tuple[str, State]] = []
        every = dict.fromkeys(pattern for layer in layers for pattern in layer.patterns)
        if len(every) > MOST_PATTERNS:
            raise self._refusal("patternProperties", f"of {len(every)} patterns; at most {MOST_PATTERNS} are compared")
        for pattern in every:
            state = together(*(layer.patterns.get(pattern, layer.rest) for layer in layers))
            state = state if self._filled(state) else NEVER
            for other, before in seen:
                if before != state and overlap(pattern, other):
                    raise self._refusal("patternProperties", f"{other!r} and {pattern!r} fit the same keys; narrow one")
            seen.append((pattern, state))
            by_state.setdefault(state, []).append(translate(pattern))
        return {"|".join(f"(?:{each})" for each in patterns): state for state, patterns in by_state.items()}

    def _limit_keys(self, keys: State) -> None:
        """propertyNames, for the keys that have no name yet: names, or one pattern."""
        if self._closed or (self._rest == NEVER and not self._filled(keys)):
            return
        shapes = self._writer.branches.shapes(keys)
        if all(shape.values is not None for shape in shapes):
            names = dict.fromkeys(value for shape in shapes for value in shape.values or () if isinstance(value, str))
            self._states |= {name: self._state(name) for name in names if name not in self._states}
            self._patterns, self._rest = {}, NEVER
            return
        ways = []
        for shape in shapes:
            string = shape.string
            if shape.values is not None or string is None or string.patterns_not or shape.excluded:
                raise self._refusal("propertyNames", "is enforced for names, one pattern or a length; use one of these")
            least, most = string.least, "" if string.most is None else string.most
            if string.patterns and (least or most != "" or len(string.patterns) > 1):
                raise self._refusal("propertyNames", "with several limits at once; use one pattern")
            if not string.patterns and not least and most == "":
                return
            ways.append(string.patterns[0] if string.patterns else rf"(?s:.{{{least},{most}}})")
        if self._patterns:
            raise self._refusal("propertyNames", 'beside "patternProperties"; use one of them')
        self._patterns, self._rest = {"|".join(f"(?:{way})" for way in ways): self._rest}, NEVER

    def _existing(self) -> Iterator[tuple[str, ...]]:
        """Which names are required so that `some` unnamed property is as it must be."""
        if not self._found.some:
            yield self._found.required
            return
        if not self._closed or len(self._found.some) > 1:
            raise self._refusal("additionalProperties", "where the schema must not hold (below not, oneOf or if)")
        ((layer, state),) = self._found.some
        for name, own in list(self._states.items()):
            if not layer.declares(name) and self._filled(together(own, state)):
                before, self._states[name] = own, together(own, state)
                yield tuple(dict.fromkeys((*self._found.required, name)))
                self._states[name] = before

    def _counted(self, required: tuple[str, ...]) -> list[Json]:
        found = self._found
        optional = [name for name, state in self._states.items() if name not in required and self._filled(state)]
        least = max(found.least - len(required), 0)
        most = None if found.most is None else found.most - len(required)
        if most is not None and most < 0:
            return []
        if self._closed:
            if least > len(optional):
                return []
            most = None if most is not None and most >= len(optional) else most
        if not least and most is None:
            return [self._written(required, optional, 0, None)]
        ways = list(islice(self._split(optional, least, most), MOST_WAYS + 1))
        if len(ways) > MOST_WAYS:
            keyword = "minProperties" if least else "maxProperties"
            raise self._refusal(keyword, f"with more than {MOST_WAYS} choices of properties; require some of them")
        return [self._written((*required, *chosen), left, more, room) for chosen, left, more, room in ways]

    def _split(
        self, optional: list[str], least: int, most: int | None
    ) -> Iterator[tuple[tuple[str, ...], list[str], int, int | None]]:
        """(names that are there, names that may be, how many others at least, at most) for each alternative."""
        free = least <= 0 and (most is None or (self._closed and most >= len(optional)))
        if free or not optional or most == 0:
            if not self._closed or least <= 0:
                yield (), optional if free else [], max(least, 0), most
            return
        if self._closed and least > len(optional):
            return
        for at, name in enumerate(optional):  # the first that is there
            fewer = None if most is None else most - 1
            for chosen, left, more, room in self._split(optional[at + 1 :], least - 1, fewer):
                yield (name, *chosen), left, more, room
        if least <= 0 or not self._closed:
            yield (), [], max(least, 0), most

    def _written(self, required: tuple[str, ...], optional: list[str], least: int, most: int | None) -> Json:
        if len(optional) > MOST_OPTIONAL:
            raise Unsupported(
                f"{self._where}: {len(optional)} properties that may be absent; at most {MOST_OPTIONAL} of one "
                f'object are tried at once: name those that are always there in "required"'
            )
        allowed = {*required, *optional}
        properties = {
            name: self._writer.write(state) if name in allowed else False for name, state in self._states.items()
        }
        found: Json = {"type": "object"}
        if properties:
            found["properties"] = properties
        if required:
            found["required"] = list(required)
        if self._patterns:
            found["patternProperties"] = {
                f"^(?:{pattern})$": False if state == NEVER else self._writer.write(state)
                for pattern, state in self._patterns.items()
            }
        if self._rest == NEVER:
            found["additionalProperties"] = False
        elif self._rest:
            found["additionalProperties"] = self._writer.write(self._rest)
        if not self._closed:
            if least:
                found["minProperties"] = least + len(required)
            if most is not None:
                found["maxProperties"] = most + len(required)
        return found
