"""GraphBuilder: a graph as it grows, node by node, with names that nobody needs to think of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgellm.formats.onnx_graph import Attribute, Graph, Initializer, Node, Value

MICROSOFT = "com.microsoft"
_DTYPES = {
    "float32": "FLOAT",
    "float16": "FLOAT16",
    "int64": "INT64",
    "int32": "INT32",
    "uint8": "UINT8",
    "bool": "BOOL",
}


class GraphBuilder:
    """Values are strings: the names that nodes give their outputs."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._inputs: list[Value] = []
        self._outputs: list[Value] = []
        self._nodes: list[Node] = []
        self._initializers: dict[str, Initializer] = {}
        self._counts: dict[str, int] = {}
        self._made: dict[object, str] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """A value that is fed."""
        self._inputs.append(Value(name, dtype, tuple(shape)))
        return name

    def output(self, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """A value that is given back; a node must have it as an output."""
        self._outputs.append(Value(name, dtype, tuple(shape)))

    def node(self, op: str, *inputs: str, domain: str = "", to: str | None = None, **attributes: Attribute) -> str:
        """Add a node of one output, and return that; to: its name, if it must have one."""
        return self.nodes(op, inputs, (to or self._fresh(op),), domain, **attributes)[0]

    def nodes(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Attribute
    ) -> tuple[str, ...]:
        """Add a node with these outputs ("" for one that is not wanted; "*" for one of any name)."""
        named = tuple(self._fresh(op) if output == "*" else output for output in outputs)
        self._nodes.append(Node(op, tuple(inputs), named, domain, self._fresh(f"{op}_node"), attributes))
        return named

    def microsoft(self, op: str, *inputs: str, to: str | None = None, **attributes: Attribute) -> str:
        """A node of ONNX Runtime's own operators, with one output."""
        return self.node(op, *inputs, domain=MICROSOFT, to=to, **attributes)

    def constant(self, values: NDArray[np.generic] | float | int | Sequence[int], dtype: str = "FLOAT") -> str:
        """A small constant; equal ones are kept once. dtype: of plain numbers; arrays keep their own."""
        if not isinstance(values, np.ndarray):
            values = np.asarray(values, np.float32 if dtype == "FLOAT" else np.int32 if dtype == "INT32" else np.int64)
        array: NDArray[np.generic] = np.ascontiguousarray(values)
        key = str(array.dtype), array.shape, array.tobytes()
        if key not in self._constants:
            self._constants[key] = self.array(self._fresh("constant"), array)
        return self._constants[key]

    def inside(self, values: NDArray[np.generic]) -> str:
        """A constant that stays in the graph, whatever its size: the weights' file does not change with it."""
        return self.node("Constant", value=np.ascontiguousarray(values))

    def array(self, name: str, values: NDArray[np.generic]) -> str:
        """An initializer over an array."""
        return self.tensor(name, _DTYPES[str(values.dtype)], values.shape, lambda: iter([values]))

    def tensor(
        self, name: str, dtype: str, shape: Sequence[int], data: Callable[[], Iterator[NDArray[np.generic]]]
    ) -> str:
        """An initializer whose bytes are made when it is written; the same name is added once."""
        if name not in self._initializers:
            self._initializers[name] = Initializer(name, dtype, tuple(shape), data)
        return name

    def once(self, key: object, make: Callable[[], str]) -> str:
        """What `make` gave for this key the first time: work that several nodes share."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def build(self) -> Graph:
        """The graph so far."""
        return Graph(
            self._name,
            tuple(self._inputs),
            tuple(self._outputs),
            tuple(self._nodes),
            tuple(self._initializers.values()),
        )

    def _fresh(self, stem: str) -> str:
        number = self._counts[stem] = self._counts.get(stem, -1) + 1
        return f"{stem}_{number}"
