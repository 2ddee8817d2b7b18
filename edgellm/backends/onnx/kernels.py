"""Which nodes of a graph edgellm's own kernels compute, in place of ONNX Runtime's.

A MatMulNBits that may round its activations to 8 bits (accuracy_level 4) becomes an operator of our own in the graph
that ONNX Runtime is given, and so does the attention beside it. The file stays as it is, and so does the graph where
the processor has none of our kernels. What they compute, and how exactly, is in native/onnx and native/kernels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgellm import _native
from edgellm.backends.onnx import library
from edgellm.backends.onnx.graph import Kept, Roles
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_graph import Attribute, Graph, Initializer, Node

log = logging.getLogger("edgellm.onnx")

MICROSOFT = "com.microsoft"
OURS = _native.onnx_domain
PRODUCT, ATTENTION = "MatMulNBits", "GroupQueryAttention"  # of Microsoft, and ours in their place
BYTES = 4  # the accuracy_level that lets activations be rounded to 8 bits
GROUP = 32  # columns that the kernels take at once
_GIVEN = ("query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length", "cos", "sin")
_NEUTRAL: dict[str, Attribute] = {
    "softcap": 0.0,
    "rotary_interleaved": 0,
    "smooth_softmax": 0,
    "qk_output": 0,
    "k_quant_type": "NONE",
    "v_quant_type": "NONE",
    "kv_cache_bit_width": 0,
}
_ATTENTION: dict[str, Attribute] = {"scale": 0.0, "local_window_size": -1, "do_rotary": 0}
OLDEST = (1, 23)  # ONNX Runtime that finds the data of a model that it gets as bytes


@dataclass(slots=True)
class Rewritten:
    """A model that ONNX Runtime gets as bytes. model: these bytes, until it is loaded. folder: what the files of its
    weights are named from. graph: what the bytes say. file: where the model is from. weights: what our operators
    multiply with, by name, as values of ONNX Runtime that lie in the mapped file."""

    model: bytes
    folder: Path
    graph: Graph
    file: ONNXFile
    weights: dict[str, Any]

    @property
    def operators(self) -> set[str]:
        """The names of the operators that are our own."""
        return {node.op for node in self.graph.nodes if node.domain == OURS}

    def lend(self, options: Any) -> None:
        """Have a session use the weights where they are. They shall stay until it is gone: see `close`."""
        for name, value in self.weights.items():
            options.add_initializer(name, value)

    def release(self) -> None:
        """Once it is loaded: our kernels have copies of the weights, so bytes and pages of files may leave memory, and
        what loading freed."""
        self.model = b""
        for name in self.weights:
            self.file.release(name)
        _native.trim_heap()

    def close(self) -> None:
        """Unmap the file. The session is gone, or never was."""
        self.weights.clear()
        self.file.close()


def rewritten(file: ONNXFile, roles: Roles, threads: int, *, cpu: bool) -> Rewritten | None:
    """The model with operators of our own (cpu: it runs there) for a session of so many threads, and with other names
    for files that are links out of its folder; None where neither is to be done, and ONNX Runtime takes the path of the
    file."""
    folder = _folder(file)
    if library.version() < OLDEST or folder is None:
        return None
    graph = ours(file.graph, threads, roles.n_vocab, roles.kept) if cpu and library.kernel_set() else file.graph
    inside = folder.is_relative_to(file.path.parent.resolve())
    if graph is file.graph and inside and isinstance(_spelled(str(file.path)), str):
        return None
    value = library.load_library().OrtValue.ortvalue_from_numpy
    weights = {name: value(file.array(name)) for name in multiplied(graph)}
    found = Rewritten(file.rewritten(graph, folder), folder, graph, file, weights)
    log.info("of %s these go through %s: %s", file.path, library.kernel_names(), ", ".join(sorted(found.operators)))
    return found


def _folder(file: ONNXFile) -> Path | None:
    """The folder that really holds the files of a model's weights: ONNX Runtime refuses to follow a link out of it."""
    try:
        places = [path.resolve().parent for path in file.weight_paths]
        return Path(os.path.commonpath(places)) if places else file.path.parent.resolve()
    except ValueError:  # two drives of Windows, and ONNX Runtime has the word
        return None


def ours(graph: Graph, threads: int, n_vocab: int | None, kept: Iterable[Kept] = ()) -> Graph:
    """The graph with our operators for the nodes that our kernels compute; the same one where there are none. kept: the
    KV cache.

    Rows of logits are the same whether they are asked for one by one or together: those products take bytes always.
    Attention is ours in all layers or in none, where the processor has kernels for it, and only in a graph whose
    products may be rounded.
    """
    weights = {each.name: each for each in graph.initializers}
    caches = {each.past: each for each in kept}
    microsoft = [node for node in graph.nodes if node.domain == MICROSOFT]
    products = [node for node in microsoft if node.op == PRODUCT and _multiplies(node, weights)]
    attention = [node for node in microsoft if node.op == ATTENTION]
    if not products:
        return graph
    new = {id(node): product(node, threads, logits=node.attributes["N"] == n_vocab) for node in products}
    if _native.attends_in_onnx() and all(_attends(node, caches) for node in attention):
        new |= {id(node): attend(node) for node in attention}
    return replace(graph, nodes=tuple(new.get(id(node), node) for node in graph.nodes))


def product(node: Node, threads: int, *, logits: bool, kernel_set: str | None = None) -> Node:
    """Our operator for a MatMulNBits. kernel_set: the one of this processor, where it is None."""
    given = {name: node.attributes[name] for name in ("K", "N", "bits", "block_size")}
    ours: dict[str, Attribute] = {
        "threads": threads,
        "kernels": kernel_set or library.kernel_set() or "",
        "bytes": int(logits),
    }
    return replace(node, domain=OURS, attributes={**given, **ours})


def attend(node: Node) -> Node:
    """Our operator for a GroupQueryAttention."""
    given = {name: node.attributes[name] for name in ("num_heads", "kv_num_heads")}
    with_defaults = {name: node.attributes.get(name, default) for name, default in _ATTENTION.items()}
    return replace(node, domain=OURS, inputs=node.inputs[: len(_GIVEN)], attributes={**given, **with_defaults})


def multiplied(graph: Graph) -> set[str]:
    """The weights of the products that are ours."""
    nodes = (node for node in graph.nodes if node.domain == OURS and node.op == PRODUCT)
    return {each.name for each in graph.initializers} & {name for node in nodes for name in node.inputs[1:]}


def register(options: Any, folder: Path, *, operators: bool = True) -> None:
    """Tell a session where the files of its model are, and of our operators."""
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _spelled(str(folder)))
    if operators:
        options.register_custom_ops_library(_spelled(_native.__file__))


def _spelled(path: str) -> str | bytes:
    """A path as ONNX Runtime takes it: one that is not Unicode by its bytes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def _multiplies(node: Node, weights: dict[str, Initializer]) -> bool:
    bits, block, columns = (node.attributes.get(name) for name in ("bits", "block_size", "K"))
    codes, scales, zeros, groups, bias = (*node.inputs[1:], "", "", "", "", "")[:5]
    dtypes = [weights[name].dtype if name in weights else None for name in (codes, scales, zeros, bias)]
    return (
        node.attributes.get("accuracy_level") == BYTES
        and (bits == 4 or (bits == 8 and not zeros))
        and isinstance(block, int)
        and isinstance(columns, int)
        and block > 0
        and block % GROUP == 0
        and columns % block == 0
        and dtypes[:2] == ["UINT8", "FLOAT"]
        and (not zeros or dtypes[2] == "UINT8")
        and not groups
        and (not bias or dtypes[3] == "FLOAT")
    )


def _attends(node: Node, caches: Mapping[str, Kept]) -> bool:
    given = (*node.inputs, *[""] * len(_GIVEN))[: len(_GIVEN)]
    ends = [caches.get(name) for name in given[3:5]]
    known = {"num_heads", "kv_num_heads", *_ATTENTION, *_NEUTRAL}
    scale = node.attributes.get("scale", 0.0)
    return (
        not any(node.inputs[len(_GIVEN) :])
        and all(given[at] for at in (0, 3, 4, 5, 6))
        and all(cache is not None and cache.dtype == "FLOAT" and cache.size % GROUP == 0 for cache in ends)
        and {"num_heads", "kv_num_heads"} <= node.attributes.keys() <= known
        and all(node.attributes.get(name, neutral) == neutral for name, neutral in _NEUTRAL.items())
        and isinstance(scale, float)
        and scale >= 0
        and node.attributes.get("local_window_size", -1) != 0
    )
