"""Layers: what decoders and encoders have in common, as nodes of a graph."""

from __future__ import annotations

from edgellm.architectures.hyper import Hyper
from edgellm.errors import InvalidModelFile
from edgellm.formats.onnx_graph import DATA_TYPES

from .builder import MICROSOFT, GraphBuilder
from .weights import Weights

INT64_MAX = 2**63 - 1


class Layers:
    """Adds a model's nodes to `graph`; values are names. Hidden states are (batch, sequence, n_embd) float32."""

    def __init__(self, hyper: Hyper, weights: Weights) -> None:
        self.graph, self.hyper, self.weights = GraphBuilder(hyper.model_type), hyper, weights

    def vector(self, name: str) -> str:
        """A norm's weight or a bias, as an initializer of its own name."""
        return self.graph.once(name, lambda: self.graph.array(name, self.weights.vector(name)))

    def linear(self, x: str, *stems: str) -> str:
        """x times `{stem}.weight`, plus `{stem}.bias` where there is one; of several stems the rows of all."""
        matrix = self.weights.matrix(*(f"{stem}.weight" for stem in stems))
        biases = [f"{stem}.bias" for stem in stems]
        there = [name for name in biases if name in self.weights]
        if not there:
            return matrix.multiply(self.graph, x)
        if len(there) < len(biases):
            raise InvalidModelFile(f"of {', '.join(biases)} only {', '.join(there)} are there: fetch the model again")
        if len(biases) == 1:
            return matrix.multiply(self.graph, x, self.vector(biases[0]))
        return matrix.multiply(self.graph, x, self.graph.node("Concat", *map(self.vector, biases), axis=0))

    def norm(self, x: str, stem: str) -> str:
        """RMSNorm (https://arxiv.org/abs/1910.07467), or LayerNorm where the model has that or `{stem}.bias` exists."""
        weight, eps = self.vector(f"{stem}.weight"), self.hyper.norm_eps
        bias = [self.vector(f"{stem}.bias")] if f"{stem}.bias" in self.weights else []
        if bias or self.hyper.centred:
            return self.graph.node("LayerNormalization", x, weight, *bias, axis=-1, epsilon=eps, stash_type=1)
        return self.graph.node("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=eps, stash_type=1)

    def add_norm(self, x: str, y: str, stem: str) -> tuple[str, str]:
        """(x + y, its norm) in one step."""
        bias = [self.vector(f"{stem}.bias")] if f"{stem}.bias" in self.weights else []
        inputs = [x, y, self.vector(f"{stem}.weight"), *bias]
        op, eps = f"Skip{'' if bias or self.hyper.centred else 'Simplified'}LayerNormalization", self.hyper.norm_eps
        normed, _, _, total = self.graph.nodes(op, inputs, ("*", "", "", "*"), MICROSOFT, epsilon=eps)
        return total, normed

    def activate(self, x: str) -> str:
        """The activation that the model names, as transformers computes it."""
        if self.hyper.activation == "silu":
            return self.graph.microsoft("QuickGelu", x, alpha=1.0)  # x · sigmoid(x)
        exact = self.hyper.activation == "gelu"
        return self.graph.node("Gelu", x, approximate="none" if exact else "tanh")

    def feed_forward(self, x: str, stem: str, expert: str = "") -> str:
        """down(act(gate(x)) · up(x)), or down(act(up(x))) where there is no gate.

        stem: `blk.{i}.ffn`; expert: what follows `_up` in names of experts. `up` may hold the gate's rows before its
        own.
        """
        names = f"{stem}_gate{expert}", f"{stem}_up{expert}"
        if self.weights.stackable(*(f"{name}.weight" for name in names)):  # one product: the input is rounded once
            both = self.linear(x, *names)
            gate, up = self.graph.nodes("Split", (both,), ("*", "*"), axis=-1, num_outputs=2)
            return self.linear(self.graph.node("Mul", self.activate(gate), up), f"{stem}_down{expert}")
        up = self.linear(x, f"{stem}_up{expert}")
        if f"{stem}_gate{expert}.weight" in self.weights:
            gate = self.linear(x, f"{stem}_gate{expert}")
        elif self.weights.matrix(f"{stem}_up{expert}.weight").shape[0] == 2 * self.hyper.n_ff:
            gate, up = self.graph.nodes("Split", (up,), ("*", "*"), axis=-1, num_outputs=2)
        else:
            return self.linear(self.activate(up), f"{stem}_down{expert}")
        return self.linear(self.graph.node("Mul", self.activate(gate), up), f"{stem}_down{expert}")

    def scaled(self, x: str, by: float) -> str:
        """x · by."""
        return x if by == 1.0 else self.graph.node("Mul", x, self.graph.constant(by))

    def lengths(self, mask: str) -> str:
        """Tokens of each row so far, its new ones included: (batch, 1) int64."""
        return self.graph.once(
            "lengths", lambda: self.graph.node("ReduceSum", mask, self.graph.constant([1], "INT64"), keepdims=1)
        )

    def size(self, x: str, axis: int) -> str:
        """The size of one dimension: a scalar int64."""
        shape = self.graph.node("Shape", x)
        return self.graph.node("Gather", shape, self.graph.constant(axis, "INT64"))

    def int32(self, x: str) -> str:
        """x as int32."""
        return self.graph.nodes("Cast", (x,), ("*",), to=DATA_TYPES["INT32"])[0]
