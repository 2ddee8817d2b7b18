"""Which nodes of a graph edgellm's own kernels compute, in place of ONNX Runtime's.

A MatMulNBits that may round its activations to 8 bits (accuracy_level 4) becomes an operator of our own by another
domain in the copy of the graph that ONNX Runtime is given, and so does the attention beside it. The file stays as it
is, and so does the graph where the processor has none of our kernels. What they compute, and how exactly, is in
native/kernels/product.h and native/kernels/attention.h.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm import _native
from edgellm.backends.onnx import library
from edgellm.backends.onnx.graph import Kept, Roles
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_graph import Attribute, Graph, Initializer, Node

log = logging.getLogger("edgellm.onnx")

MICROSOFT = "com.microsoft"
ANY_KERNEL, BYTES_ONLY = _native.onnx_domains
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
OLDEST = (1, 23)  # ONNX Runtime that finds the data of a model that it gets as bytes
MAX_GRAPH = 256 << 20  # bytes; weights inside of the file would be in memory once more while it loads


def names() -> str:
    """The kernels that this processor has, "avx512_vnni amx_bf16" for one; "" without any. Once ONNX Runtime is loaded:
    it asks the system for AMX."""
    return _native.kernel_names()


@dataclass(slots=True)
class Rewritten:
    """A model that ONNX Runtime gets as bytes. model: these bytes, until it is loaded. folder: where the files beside
    it are. operators: some are our own; attention: it is among them. file: where the model is from. weights: what our
    operators multiply with, by name, as values of ONNX Runtime that lie in the mapped file."""

    model: bytes
    folder: Path
    operators: bool
    file: ONNXFile
    weights: dict[str, Any]
    attention: bool

    def lend(self, options: Any) -> None:
        """Have a session use the weights where they are. They shall stay until it is gone: see `close`."""
        for name, value in self.weights.items():
            options.add_initializer(name, value)

    def release(self) -> None:
        """Once it is loaded: our kernels have copies of the weights, so bytes and pages of files may leave memory."""
        self.model = b""
        for name in self.weights:
            self.file.release(name)

    def close(self) -> None:
        """Unmap the file. The session is gone, or never was."""
        self.weights.clear()
        self.file.close()


def rewritten(file: ONNXFile, roles: Roles, *, cpu: bool) -> Rewritten | None:
    """The model with operators of our own (cpu: it runs there), and with other names for files beside it that are links
    out of its folder; None where neither is to be done, and ONNX Runtime takes the path of the file."""
    if library.version() < OLDEST:
        return None
    runs = cpu and names() and file.path.stat().st_size <= MAX_GRAPH
    domains = chosen(file.graph, roles.n_vocab, roles.kept) if runs else {}
    away = _linked(file)
    if not domains and away is None and isinstance(_spelled(str(file.path)), str):
        return None
    log.info("%d nodes of %s go through %s", len(domains), file.path, names())
    value = library.load_library().OrtValue.ortvalue_from_numpy
    weights = {name: value(file.array(name)) for name in multiplied(file.graph, domains)}
    model, folder = file.rewritten(domains, away), away or file.path.parent
    return Rewritten(model, folder, bool(domains), file, weights, attends(file.graph, domains))


def _linked(file: ONNXFile) -> Path | None:
    """The folder that really holds the files beside a model, where a link leads out of the model's: ONNX Runtime
    refuses to follow it."""
    places, own = [path.resolve().parent for path in file.data_paths], file.path.parent.resolve()
    if all(place.is_relative_to(own) for place in places):
        return None
    try:
        return Path(os.path.commonpath(places))
    except ValueError:  # two drives of Windows, and ONNX Runtime has the word
        return None


def chosen(graph: Graph, n_vocab: int | None, kept: Iterable[Kept] = ()) -> dict[int, str]:
    """The domains of the nodes that our kernels compute, by their places in the graph. kept: the KV cache.

    Rows of logits are the same whether they are asked for one by one or together: those products take bytes always.
    Attention is ours in all layers or in none, and only in a graph whose products may be rounded.
    """
    nodes = [(at, node) for at, node in enumerate(graph.nodes) if node.domain == MICROSOFT]
    weights = {each.name: each for each in graph.initializers}
    domains = {
        at: BYTES_ONLY if node.attributes.get("N") == n_vocab else ANY_KERNEL
        for at, node in nodes
        if node.op == "MatMulNBits" and _multiplies(node, weights)
    }
    attention = [(at, node) for at, node in nodes if node.op == "GroupQueryAttention"]
    caches = {each.past: each for each in kept}
    if domains and all(_attends(node, caches) for _, node in attention):
        domains |= {at: ANY_KERNEL for at, _ in attention}
    return domains


def attends(graph: Graph, domains: Mapping[int, str]) -> bool:
    """Whether attention is ours."""
    return any(graph.nodes[at].op == "GroupQueryAttention" for at in domains)


def multiplied(graph: Graph, domains: Mapping[int, str]) -> set[str]:
    """The weights of the products that are ours."""
    nodes = (graph.nodes[at] for at in domains)
    given = {name for node in nodes if node.op == "MatMulNBits" for name in node.inputs[1:]}
    return {each.name for each in graph.initializers} & given


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
    known = _NEUTRAL.keys() | {"num_heads", "kv_num_heads", "scale", "local_window_size", "do_rotary"}
    scale = node.attributes.get("scale", 0.0)
    return (
        not any(node.inputs[len(_GIVEN) :])
        and all(given[at] for at in (0, 3, 4, 5, 6))
        and all(cache is not None and cache.dtype == "FLOAT" and cache.size % GROUP == 0 for cache in ends)
        and node.attributes.keys() <= known
        and all(node.attributes.get(name, neutral) == neutral for name, neutral in _NEUTRAL.items())
        and isinstance(scale, float)
        and scale >= 0
        and node.attributes.get("local_window_size", -1) != 0
    )
