"""Encoder: BERT and DistilBERT (https://arxiv.org/abs/1810.04805), and ModernBERT (https://arxiv.org/abs/2412.13663),
node by node.

input_ids, token_type_ids ──▶ embeddings ▶ norm ▶ [ attention ▶ + ▶ norm ▶ feed-forward ▶ + ▶ norm ] × n_layer
input_ids ──▶ embeddings ▶ norm ▶ [ norm ▶ attention ▶ + ▶ norm ▶ feed-forward ▶ + ] × n_layer ▶ norm
"""

from __future__ import annotations

from functools import partial

import numpy as np

from edgellm.architectures.rope import Rope
from edgellm.formats.onnx_graph import DATA_TYPES, Graph

from . import rotary
from .layers import Layers

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
_UNSEEN = float(np.finfo(np.float32).min)  # the score of a key that is padding, or outside of the window


class Encoder(Layers):
    """The graph of an encoder.

    Inputs: input_ids, attention_mask (1 for tokens, 0 for padding) and, for models with types of tokens,
    token_type_ids; (batch, sequence) int64. Output: last_hidden_state (batch, sequence, n_embd) float32, not pooled; of
    a reranker logits (batch, 1) float32, the scores.

    Raises InvalidModelFile for missing weights.
    """

    def build(self) -> Graph:
        graph, hyper, shape = self.graph, self.hyper, ("batch_size", "sequence_length")
        ids = graph.input(IDS, "INT64", shape)
        mask = self.int32(graph.input(MASK, "INT64", shape))
        x = self.weights.matrix("token_embd.weight").gather(graph, ids)
        if "position_embd.weight" in self.weights:
            x = graph.node("Add", x, self.weights.matrix("position_embd.weight").gather(graph, self._positions()))
        if "token_types.weight" in self.weights:
            types = graph.input(TYPES, "INT64", shape)
            x = graph.node("Add", x, self.weights.matrix("token_types.weight").gather(graph, types))
        x = self.norm(x, "token_embd_norm")
        x = self._normed_first(x, mask) if "output_norm.weight" in self.weights else self._normed_behind(x, mask)
        if hyper.pooling == "rank":
            self._score(x, "logits")
            graph.output("logits", "FLOAT", (shape[0], 1))
            return graph.build()
        graph.output("last_hidden_state", "FLOAT", (*shape, hyper.n_embd))
        graph.node("Identity", x, to="last_hidden_state")
        return graph.build()

    def _normed_behind(self, x: str, mask: str) -> str:
        """The layers of BERT, whose norms stand behind what is added."""
        for i in range(self.hyper.n_layer):
            x = self.add_norm(x, self._attention(x, mask, i), f"blk.{i}.attn_output_norm")[1]
            x = self.add_norm(x, self.feed_forward(x, f"blk.{i}.ffn"), f"blk.{i}.layer_output_norm")[1]
        return x

    def _normed_first(self, x: str, mask: str) -> str:
        """Layers whose norms stand in front, but in front of the first attention."""
        normed = x
        for i in range(self.hyper.n_layer):
            x, normed = self.add_norm(x, self._attention(normed, mask, i), f"blk.{i}.ffn_norm")
            behind = f"blk.{i + 1}.attn_norm" if i + 1 < self.hyper.n_layer else "output_norm"
            x, normed = self.add_norm(x, self.feed_forward(normed, f"blk.{i}.ffn"), behind)
        return normed

    def _attention(self, x: str, mask: str, i: int) -> str:
        graph, hyper, stem = self.graph, self.hyper, f"blk.{i}.attn"
        if f"{stem}_qkv.weight" in self.weights:
            q, k, v = graph.nodes("Split", (self.linear(x, f"{stem}_qkv"),), ("*", "*", "*"), axis=-1, num_outputs=3)
        else:
            q, k, v = (self.linear(x, f"{stem}_{part}") for part in "qkv")
        rope = hyper.rotation(i)
        if rope is not None:
            q, k = (self._rotated(each, rope) for each in (q, k))
        inputs = [q, k, v, "", mask]
        if hyper.windowed and hyper.windowed[i]:
            inputs += [self._window()]
        found = graph.microsoft("MultiHeadAttention", *inputs, num_heads=hyper.n_head, mask_filter_value=_UNSEEN)
        return self.linear(found, f"{stem}_output")

    def _rotated(self, x: str, rope: Rope) -> str:
        """Queries or keys, each head rotated by the position of its token."""
        reach = self.hyper.n_ctx_train
        cos, sin = (
            self.graph.tensor(
                f"rotary.{rope.base:g}.{name}",
                "FLOAT",
                (reach, rope.dim // 2),
                partial(rotary.tables, rope, reach, sine=name == "sin"),
            )
            for name in ("cos", "sin")
        )
        rows = self.graph.once(
            "rows",
            lambda: self.graph.node("Expand", self._positions(), self.graph.node("Shape", IDS)),
        )
        return self.graph.microsoft(
            "RotaryEmbedding", x, rows, cos, sin, num_heads=self.hyper.n_head, rotary_embedding_dim=rope.dim
        )

    def _window(self) -> str:
        """What is added to the scores where a layer sees half a window on either side: (1, 1, sequence, sequence)."""

        def make() -> str:
            graph, half = self.graph, (self.hyper.window or 0) // 2
            positions = self._positions()
            behind = graph.node("Unsqueeze", positions, graph.constant([2], "INT64"))
            far = graph.node("Abs", graph.node("Sub", graph.node("Unsqueeze", positions, self._one()), behind))
            outside = graph.node("Greater", far, graph.constant([half], "INT64"))
            unseen = graph.node("Where", outside, graph.constant(_UNSEEN), graph.constant(0.0))
            return graph.node("Unsqueeze", unseen, graph.constant([0], "INT64"))

        return self.graph.once("window", make)

    def _one(self) -> str:
        return self.graph.constant([1], "INT64")

    def _positions(self) -> str:
        """(1, sequence): of a Gather by a bare Range, ONNX Runtime 1.31 makes a Slice that fails."""

        def make() -> str:
            graph, zero, one = self.graph, self.graph.constant(0, "INT64"), self.graph.constant(1, "INT64")
            return graph.node(
                "Unsqueeze", graph.node("Range", zero, self.size(IDS, 1), one), graph.constant([0], "INT64")
            )

        return self.graph.once("positions", make)

    def _score(self, x: str, to: str) -> None:
        """The classifier of one label, over the first token or the mean of all."""
        graph = self.graph
        if self.hyper.ranked == "mean":
            pooled = self._mean(x)
        else:
            first = graph.node("Gather", x, graph.constant([0], "INT64"), axis=1)
            pooled = graph.node("Squeeze", first, self._one())
        pooled = self.linear(pooled, "cls")
        if "cls.norm.weight" in self.weights:
            pooled = self.norm(self.activate(pooled), "cls.norm")
        else:
            pooled = graph.node("Tanh", pooled)
        graph.node("Identity", self.linear(pooled, "cls.output"), to=to)

    def _mean(self, x: str) -> str:
        """The mean of the tokens that are none of the padding: (batch, n_embd)."""
        graph = self.graph
        counted = graph.nodes("Cast", (MASK,), ("*",), to=DATA_TYPES["FLOAT"])[0]
        counted = graph.node("Unsqueeze", counted, graph.constant([2], "INT64"))
        total = graph.node("ReduceSum", graph.node("Mul", x, counted), self._one(), keepdims=0)
        return graph.node("Div", total, graph.node("ReduceSum", counted, self._one(), keepdims=0))
