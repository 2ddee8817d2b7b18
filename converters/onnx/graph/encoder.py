"""Encoder: BERT and DistilBERT (https://arxiv.org/abs/1810.04805), node by node.

input_ids, token_type_ids ──▶ embeddings ▶ norm ▶ [ attention ▶ + ▶ norm ▶ feed-forward ▶ + ▶ norm ] × n_layer
"""

from __future__ import annotations

import numpy as np

from edgellm.formats.onnx_graph import Graph

from .layers import Layers

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
_UNSEEN = float(np.finfo(np.float32).min)  # the score of a key that is padding


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
        zero, one = graph.constant(0, "INT64"), graph.constant(1, "INT64")
        positions = graph.node("Range", zero, self.size(IDS, 1), one)
        # (1, sequence): of a Gather by a bare Range, ONNX Runtime 1.31 makes a Slice that fails
        positions = graph.node("Unsqueeze", positions, graph.constant([0], "INT64"))
        x = self.weights.matrix("token_embd.weight").gather(graph, ids)
        x = graph.node("Add", x, self.weights.matrix("position_embd.weight").gather(graph, positions))
        if "token_types.weight" in self.weights:
            types = graph.input(TYPES, "INT64", shape)
            x = graph.node("Add", x, self.weights.matrix("token_types.weight").gather(graph, types))
        x = self.norm(x, "token_embd_norm")
        for i in range(hyper.n_layer):
            x = self.add_norm(x, self._attention(x, mask, f"blk.{i}.attn"), f"blk.{i}.attn_output_norm")[1]
            x = self.add_norm(x, self.feed_forward(x, f"blk.{i}.ffn"), f"blk.{i}.layer_output_norm")[1]
        if hyper.pooling == "rank":
            self._score(x, "logits")
            graph.output("logits", "FLOAT", (shape[0], 1))
            return graph.build()
        graph.output("last_hidden_state", "FLOAT", (*shape, hyper.n_embd))
        graph.node("Identity", x, to="last_hidden_state")
        return graph.build()

    def _score(self, x: str, to: str) -> None:
        """The classifier of one label over the first token."""
        first = self.graph.node("Gather", x, self.graph.constant([0], "INT64"), axis=1)
        first = self.graph.node("Squeeze", first, self.graph.constant([1], "INT64"))
        pooled = self.graph.node("Tanh", self.linear(first, "cls"))
        self.graph.node("Identity", self.linear(pooled, "cls.output"), to=to)

    def _attention(self, x: str, mask: str, stem: str) -> str:
        q, k, v = (self.linear(x, f"{stem}_{part}") for part in "qkv")
        found = self.graph.microsoft(
            "MultiHeadAttention", q, k, v, "", mask, num_heads=self.hyper.n_head, mask_filter_value=_UNSEEN
        )
        return self.linear(found, f"{stem}_output")
