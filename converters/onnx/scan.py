"""Scan: the weights of a graph under the names that Hugging Face gives them, whoever exported it.

Every operator says what its weights are; where it stands in the model says its name, or the name of its initializer
does:

    node /model/layers.0/self_attn/q_proj/MatMul     initializer onnx::MatMul_733             (optimum, PyTorch's names)
    node /model/layers.0/attn/qkv_proj/MatMul_Q4     model.layers.0.attn.qkv_proj.MatMul...   (onnxruntime-genai)
         model.layers.0.self_attn.q_proj.weight
"""

from __future__ import annotations

import re

import numpy as np

from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_graph import Node
from edgellm.formats.tensor import Tensor

from .blocks import BlockNames, Blocks
from .tensors import Floats, Integers

_OWN = re.compile(r"(?!.*\.(?:MatMul|Add)\.)[A-Za-z]\w*(\.\w+)*\.(weight|bias)")  # a name that PyTorch gave
_RENAMED = (
    (re.compile(r"^model\.layers\.\d+\.final_norm_layernorm\."), "model.norm."),
    (re.compile(r"^(model\.layers\.\d+)\.attn\.([qk])_norm\.layernorm\."), r"\1.self_attn.\2_norm."),
    (re.compile(r"^(model\.layers\.\d+)\.attn\."), r"\1.self_attn."),
)
# inputs that are tables of sines and cosines, by operator
_ROTARY = {"GroupQueryAttention": (7, 8), "RotaryEmbedding": (2, 3)}


class Scan:
    """What a graph holds. weights: by Hugging Face name. factors: the vectors that the graph multiplies with as they
    are, so that a norm has its 1 added already. unused: initializers that carry no weights, but rotary tables and what
    no node needs.

    Raises Unsupported for a weight that is not understood, naming it and what uses it.
    """

    def __init__(self, file: ONNXFile) -> None:
        self._file = file
        self.weights: dict[str, Tensor] = {}
        self.factors: set[str] = set()
        self.unused: list[str] = []
        self._aliases: dict[str, tuple[str, bool]] = {}  # of values: an initializer, and whether it is transposed
        self._readers: dict[str, list[Node]] = {}
        self._taken: set[str] = set()
        graph = file.graph
        for node in graph.nodes:
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node)
        for node in graph.nodes:
            self._visit(node)
        for info in graph.initializers:
            number = info.dtype in ("FLOAT", "FLOAT16", "BFLOAT16", "INT8", "UINT8", "INT4", "UINT4")
            if info.name in self._taken or not number or int(np.prod(info.shape)) < 2:
                continue
            users = self._readers.get(info.name, [])
            if users:
                what = f"is read by {users[0].op} {users[0].name!r}, whose weights edgellm does not understand"
                raise file.error(Unsupported, info.name, f"{what}; convert the original checkpoint instead")
            self.unused.append(info.name)

    def _visit(self, node: Node) -> None:
        handler = _HANDLERS.get(node.op)
        if handler is not None:
            handler(self, node)
        for position in _ROTARY.get(node.op, ()):
            name = _input(node, position)
            if name in self._file and name not in self._taken:
                self._taken.add(name)
                self.unused.append(name)
        for position in range(len(node.inputs)):
            self._vector(node, position)

    def alias(self, node: Node) -> None:
        """The same initializer, seen another way."""
        name, transposed = self._constant(node, 0)
        if name:
            self._aliases[node.outputs[0]] = name, transposed != (node.op == "Transpose")

    def matmul(self, node: Node) -> None:
        """x (..., K) by (K, N)."""
        name, transposed = self._constant(node, 1)
        if name and len(self._file.info(name).shape) == 2:
            stored_as_rows = transposed != (node.op == "Gemm" and node.attributes.get("transB") == 1)
            self._add(node, "weight", Floats(self._file, name, not stored_as_rows), name)

    def blocks(self, node: Node) -> None:
        """MatMulNBits: x, q, scales, zero points, group indices, bias."""
        q, _ = self._constant(node, 1)
        scale, zero, order = (_input(node, i) for i in (2, 3, 4))
        if not q or scale not in self._file or order:
            raise self._unreadable(node)
        size = {key: node.attributes.get(key) for key in ("N", "K", "block_size")}
        shape, block = (_int(node, size["N"]), _int(node, size["K"])), _int(node, size["block_size"])
        made = Blocks(
            self._file, BlockNames(q, scale, zero or None), shape, _int(node, node.attributes.get("bits", 4)), block
        )
        self._add(node, "weight", made, q, scale, zero)
        if bias := _input(node, 5):
            self._add(node, "bias", Floats(self._file, bias), bias)

    def gather_blocks(self, node: Node) -> None:
        """GatherBlockQuantized: q, ids, scales, zero points."""
        q, _ = self._constant(node, 0)
        scale, zero = _input(node, 2), _input(node, 3)
        along = node.attributes.get("quantize_axis", 1), node.attributes.get("gather_axis", 0)
        if not q or scale not in self._file or along not in ((1, 0), (-1, 0)):
            raise self._unreadable(node)
        if self._file.info(q).dtype != "UINT8":
            raise self._file.error(Unsupported, q, f"looked up by {node.name!r}; of such tables UINT8 is read")
        bits, block = (
            _int(node, node.attributes.get(key, default)) for key, default in (("bits", 4), ("block_size", 128))
        )
        scales = self._file.info(scale).shape
        rows = scales[0] if scales else 0
        elements = int(np.prod(self._file.info(q).shape)) * 8 // max(bits, 1)
        made = Blocks(self._file, BlockNames(q, scale, zero or None), (rows, elements // max(rows, 1)), bits, block)
        self._add(node, "weight", made, q, scale, zero)

    def gather(self, node: Node) -> None:
        """A table of rows: numbers, or integers that DequantizeLinear makes numbers of."""
        name, transposed = self._constant(node, 0)
        if not name or len(self._file.info(name).shape) != 2 or node.attributes.get("axis", 0) != 0:
            return
        if self._file.info(name).dtype not in ("INT8", "UINT8"):
            if self._file.info(name).dtype in ("FLOAT", "FLOAT16", "BFLOAT16"):
                self._add(node, "weight", Floats(self._file, name, transposed), name)
            return
        readers = self._readers.get(node.outputs[0], [])
        if len(readers) != 1 or readers[0].op != "DequantizeLinear":
            raise self._unreadable(node)
        scale, zero = _input(readers[0], 1), _input(readers[0], 2)
        self._add(node, "weight", Integers(self._file, name, scale, zero or None, transposed), name, scale, zero)

    def integers(self, node: Node) -> None:
        """MatMulInteger: x, q, zero points of both. The scale is a factor of what comes out: (x's scale) · (q's)."""
        name, transposed = self._constant(node, 1)
        if not name:
            return
        zero = _input(node, 3)
        stem = name.removesuffix("_quantized")
        scale = f"{stem}_scale"
        if stem == name or not any(reader.op == "Mul" for reader in self._readers.get(scale, [])):
            raise self._unreadable(node)
        made = Integers(self._file, name, scale, zero or None, not transposed)
        self._add(node, "weight", made, name, scale, zero)

    def _vector(self, node: Node, position: int) -> None:
        """A norm's factors, or a bias."""
        name, _ = self._constant(node, position)
        copied = name != node.inputs[position]  # the exporter kept equal vectors once: the node tells whose this is
        if not name or (name in self._taken and not copied):
            return
        info = self._file.info(name)
        if len(info.shape) != 1 or info.shape[0] < 2 or info.dtype not in ("FLOAT", "FLOAT16", "BFLOAT16"):
            return
        bias = node.op in ("Add", "Gemm") or (node.op == "LayerNormalization" and position == 2)
        hf = self._add(node, "bias" if bias else "weight", Floats(self._file, name), name, own=not copied)
        if not bias:
            self.factors.add(hf)

    def _constant(self, node: Node, position: int) -> tuple[str, bool]:
        """The initializer that an input is, "" if it is none, and whether it is transposed."""
        name = _input(node, position)
        return (name, False) if name in self._file else self._aliases.get(name, ("", False))

    def _add(self, node: Node, kind: str, weight: Tensor, *initializers: str, own: bool = True) -> str:
        """Add a weight under the name of its first initializer (own), or that of its node, and return that."""
        self._taken |= {name for name in initializers if name}
        name = initializers[0]
        made = name.removesuffix("_quantized") if own and _OWN.fullmatch(name.removesuffix("_quantized")) else ""
        scope = node.name.strip("/").split("/")[:-1]
        if not made and not scope:
            raise self._file.error(
                Unsupported, name, f"neither its name nor that of its node, {node.op} {node.name!r}, tells what it is"
            )
        made = made or ".".join([*scope, kind])
        for pattern, new in _RENAMED:
            made = pattern.sub(new, made)
        before = self.weights.setdefault(made, weight)
        if before.shape != weight.shape:
            raise InvalidModelFile(f"{self._file.path}: two weights would be called {made!r}; export it again")
        return made

    def _unreadable(self, node: Node) -> Unsupported:
        return Unsupported(
            f"{self._file.path}: the weights of {node.op} {node.name!r} are not where edgellm looks for them; "
            "convert the original checkpoint instead"
        )


_HANDLERS = {
    "Identity": Scan.alias,
    "Reshape": Scan.alias,
    "Transpose": Scan.alias,
    "MatMul": Scan.matmul,
    "Gemm": Scan.matmul,
    "MatMulNBits": Scan.blocks,
    "GatherBlockQuantized": Scan.gather_blocks,
    "Gather": Scan.gather,
    "MatMulInteger": Scan.integers,
}


def _input(node: Node, position: int) -> str:
    return node.inputs[position] if position < len(node.inputs) else ""


def _int(node: Node, value: object) -> int:
    if not isinstance(value, int):
        raise InvalidModelFile(f"node {node.op} {node.name!r} lacks an attribute, or it is no integer; export it again")
    return value
