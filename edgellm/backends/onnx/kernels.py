"""Which products of a graph edgellm's own kernels compute, in place of ONNX Runtime's.

A MatMulNBits that may round its activations to 8 bits (accuracy_level 4) becomes an operator of our own by another
domain in the copy of the graph that ONNX Runtime is given: the file stays as it is, and where the processor has none of
our kernels, so does the graph. What they compute, and how exactly, is in native/kernels/product.h.
"""

from __future__ import annotations

import logging
from typing import Any

from edgellm import _native
from edgellm.backends.onnx.graph import Roles
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_graph import Graph, Initializer, Node

log = logging.getLogger("edgellm.onnx")

MICROSOFT = "com.microsoft"
ANY_KERNEL, BYTES_ONLY = _native.onnx_domains
BYTES = 4  # the accuracy_level that lets activations be rounded to 8 bits
GROUP = 32  # columns that the kernels take at once
MAX_GRAPH = 256 << 20  # bytes; weights inside of the graph itself would be in memory once more while it loads


def names() -> str:
    """The kernels that this processor has, "avx512_vnni amx_bf16" for one; "" without any. Once ONNX Runtime is loaded:
    it asks the system for AMX."""
    return _native.kernel_names()


def rewritten(file: ONNXFile, roles: Roles) -> bytes | None:
    """The graph with operators of our own; None where there is nothing that they could do, or no kernel."""
    if not names() or file.path.stat().st_size > MAX_GRAPH:
        return None
    domains = chosen(file.graph, roles.n_vocab)
    if not domains:
        return None
    log.info("%d of the products of %s go through %s", len(domains), file.path, names())
    return file.with_domains(domains)


def chosen(graph: Graph, n_vocab: int | None) -> dict[int, str]:
    """The domains of the nodes that our kernels compute, by their places in the graph.

    Rows of logits are the same whether they are asked for one by one or together: those products take bytes always.
    """
    weights = {each.name: each for each in graph.initializers}
    return {
        at: BYTES_ONLY if node.attributes.get("N") == n_vocab else ANY_KERNEL
        for at, node in enumerate(graph.nodes)
        if node.op == "MatMulNBits" and node.domain == MICROSOFT and _fits(node, weights)
    }


def register(options: Any) -> None:
    """Make our operators known to a session."""
    options.register_custom_ops_library(_native.__file__)


def _fits(node: Node, weights: dict[str, Initializer]) -> bool:
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
