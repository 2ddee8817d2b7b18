"""Decoder: a causal language model, node by node.

    input_ids ──▶ embedding ──▶ [ norm ▶ q, k, v ▶ attention ▶ output ▶ + ▶ norm ▶ feed-forward ▶ + ] × n_layer
              ──▶ norm ──▶ the last num_logits_to_keep rows (0: all) ──▶ output ──▶ logits

Positions come from the attention mask. A pass of several tokens that has a past is of one row; the rows of a first
pass, and of passes of one token each, may have different lengths, padded on the right. Attention, its caches and their
rotation are those of ONNX Runtime's GroupQueryAttention:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgellm.architectures.hyper import Hyper
from edgellm.architectures.rope import Rope
from edgellm.errors import InvalidParameter, Unsupported
from edgellm.formats.onnx_graph import DATA_TYPES, Graph

from . import rotary
from .builder import MICROSOFT
from .experts import mixture
from .layers import INT64_MAX, Layers
from .weights import Weights

IDS, MASK, KEEP = "input_ids", "attention_mask", "num_logits_to_keep"
_ROTATING = 16  # GroupQueryAttention rotates multiples of this, of heads of multiples of this
_K_SCALE = 12  # the input of GroupQueryAttention; the values' follows
KVScales = NDArray[np.float32]  # (n_layer, 2, n_head_kv, head_dim): what 1 is worth in keys and values of 8 bits
BATCH, NEW, TOTAL, PAST = "batch_size", "sequence_length", "total_sequence_length", "past_sequence_length"


class Decoder(Layers):
    """The graph of a decoder. n_ctx: tokens that its rotary tables reach, hyper.n_ctx_train where it is None.
    kv_scales: keep keys and values in int8, not float32: round(x / scale), each channel with its own.

    Inputs: input_ids (batch, new) and attention_mask (batch, past + new) int64, 1 for tokens; past_key_values.{i}.key
    and .value (batch, n_head_kv, past, head_dim); num_logits_to_keep (1,) int64, which need not be fed.
    Outputs: logits (batch, kept, n_vocab) float32 and present.{i}.key and .value.
    longrope changes its factors when a text outgrows the original context, as transformers does: keys that were cached
    before keep the old ones.

    Raises Unsupported for heads that ONNX Runtime's attention does not take, InvalidParameter for n_ctx,
    InvalidModelFile for missing weights.
    """

    def __init__(
        self, hyper: Hyper, weights: Weights, n_ctx: int | None = None, kv_scales: KVScales | None = None
    ) -> None:
        reach = hyper.n_ctx_train if n_ctx is None else n_ctx
        if reach < 1:
            raise InvalidParameter(f"n_ctx = {reach}; a context has at least one token")
        if hyper.rope is None and reach > hyper.n_ctx_train:
            raise InvalidParameter(f"n_ctx = {reach}; this model has learned {hyper.n_ctx_train} positions")
        if hyper.head_dim % 8:
            raise Unsupported(
                f"{hyper.model_type}: heads of {hyper.head_dim} elements; ONNX Runtime's attention takes multiples of "
                "8. Convert to GGUF instead"
            )
        super().__init__(hyper, weights)
        self._n_ctx, self._kv_scales = reach, kv_scales
        self._ropes: dict[Rope, int] = {}
        self._embedding = weights.matrix("token_embd.weight")

    def build(self) -> Graph:
        graph, hyper = self.graph, self.hyper
        ids = graph.input(IDS, "INT64", (BATCH, NEW))
        graph.input(MASK, "INT64", (BATCH, TOTAL))
        kept = "FLOAT" if self._kv_scales is None else "INT8"
        for i in range(hyper.n_layer):
            for part in ("key", "value"):
                graph.input(f"past_key_values.{i}.{part}", kept, (BATCH, hyper.n_head_kv, PAST, hyper.head_dim))
        graph.input(KEEP, "INT64", (1,))
        graph.array(KEEP, np.zeros(1, np.int64))
        x = self.scaled(self._embedding.gather(graph, ids), hyper.embedding_scale)
        if "position_embd.weight" in self.weights:
            x = graph.node("Add", x, self.weights.matrix("position_embd.weight").gather(graph, self._positions()))
        added: str | None = None
        for i in range(hyper.n_layer):
            x, added = self._block(x, added, i)
        graph.output("logits", "FLOAT", (BATCH, "logits_length", hyper.n_vocab))
        self._head(self._normed(x, added, "output_norm")[1])
        for i in range(hyper.n_layer):
            for part in ("key", "value"):
                graph.output(f"present.{i}.{part}", kept, (BATCH, hyper.n_head_kv, TOTAL, hyper.head_dim))
        return graph.build()

    def _block(self, x: str, added: str | None, i: int) -> tuple[str, str]:
        """A layer: (the residual stream, what is still to be added to it) -> the same."""
        attention, feed_forward = f"blk.{i}.attn", f"blk.{i}.ffn"
        if self.hyper.parallel_residual:
            x, normed = self._normed(x, added, f"{attention}_norm")
            own = f"{feed_forward}_norm.weight" in self.weights
            side = self._feed_forward(self.norm(x, f"{feed_forward}_norm") if own else normed, i)
            return self.graph.node("Add", x, self._attention(normed, i)), side
        x, normed = self._normed(x, added, f"{attention}_norm")
        made = self._after(self._attention(normed, i), f"blk.{i}.post_attention_norm")
        x, normed = self._normed(x, made, f"{feed_forward}_norm")
        return x, self._after(self._feed_forward(normed, i), f"blk.{i}.post_ffw_norm")

    def _normed(self, x: str, added: str | None, stem: str) -> tuple[str, str]:
        """(x + added, its norm); the sum itself where the layer has no norm of this name."""
        if f"{stem}.weight" not in self.weights:
            total = x if added is None else self.graph.node("Add", x, added)
            return total, total
        return (x, self.norm(x, stem)) if added is None else self.add_norm(x, added, stem)

    def _after(self, x: str, stem: str) -> str:
        """What a part of a layer adds: its norm where the family has one, scaled."""
        return self.scaled(self.norm(x, stem) if f"{stem}.weight" in self.weights else x, self.hyper.residual_scale)

    def _feed_forward(self, x: str, i: int) -> str:
        return mixture(self, x, i) if self.hyper.n_expert else self.feed_forward(x, f"blk.{i}.ffn")

    def _attention(self, x: str, i: int) -> str:
        graph, hyper, stem = self.graph, self.hyper, f"blk.{i}.attn"
        q, k, v = self._projected(x, stem)
        cos, sin, positions, rope = "", "", "", hyper.rotation(i)
        if rope and rope.temperature:
            q, k, v = self._apart(q, k, v)
            q = graph.node("Mul", q, self._growth(rope))  # the rotation keeps it
        if rope and (hyper.head_dim % _ROTATING or rope.dim % _ROTATING):
            q, k, v = self._rotated(q, k, v, rope)
        elif rope:
            cos, sin, positions = self._tables(rope)
        windowed = bool(hyper.windowed) and hyper.windowed[i]
        inputs = [q, k, v, f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        inputs += [self._last(), self._total(), cos, sin, positions]
        quantized: dict[str, str | int] = {}
        if self._kv_scales is not None:
            inputs += [""] * (_K_SCALE - len(inputs))
            inputs += [graph.inside(scales[None, :, None]) for scales in self._kv_scales[i]]
            quantized = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        while not inputs[-1]:
            inputs.pop()
        (found, _, _) = graph.nodes(
            "GroupQueryAttention",
            inputs,
            ("*", f"present.{i}.key", f"present.{i}.value"),
            MICROSOFT,
            num_heads=hyper.n_head,
            kv_num_heads=hyper.n_head_kv,
            scale=hyper.attention_scale or hyper.head_dim**-0.5,
            softcap=hyper.attention_softcap or 0.0,
            local_window_size=hyper.window if windowed and hyper.window else -1,
            do_rotary=int(bool(cos)),
            rotary_interleaved=int(bool(cos) and rope is not None and rope.neighbours),
            **quantized,
        )
        return self.linear(found, f"{stem}_output")

    def _projected(self, x: str, stem: str) -> tuple[str, str, str]:
        """q, k and v of (batch, new, heads · head_dim); k and v are "" where q holds all three."""
        names = [f"{stem}_{part}" for part in "qkv"]
        if f"{stem}_qkv.weight" in self.weights:
            return self.linear(x, f"{stem}_qkv"), "", ""
        normed = f"{stem}_q_norm.weight" in self.weights
        if not normed and self.weights.stackable(*(f"{name}.weight" for name in names)):
            return self.linear(x, *names), "", ""
        q, k, v = (self.linear(x, name) for name in names)
        if normed:
            q, k = self._heads_normed(q, f"{stem}_q_norm"), self._heads_normed(k, f"{stem}_k_norm")
        return q, k, v

    def _heads_normed(self, x: str, stem: str) -> str:
        """The norm of each head, or of all of them together: the weight's length says which."""
        if self.weights.vector(f"{stem}.weight").size != self.hyper.head_dim:
            return self.norm(x, stem)
        graph = self.graph
        heads = graph.node("Reshape", x, graph.constant([0, 0, -1, self.hyper.head_dim], "INT64"))
        return graph.node("Reshape", self.norm(heads, stem), graph.constant([0, 0, -1], "INT64"))

    def _rotated(self, q: str, k: str, v: str, rope: Rope) -> tuple[str, str, str]:
        """q, k and v apart, q and k rotated, for heads that the attention does not rotate itself."""
        graph, hyper = self.graph, self.hyper
        q, k, v = self._apart(q, k, v)
        cos, sin, positions = self._tables(rope)
        rest = positions or self._positions(), cos, sin
        rotate = partial(graph.microsoft, rotary_embedding_dim=rope.dim, interleaved=int(rope.neighbours))
        q = rotate("RotaryEmbedding", q, *rest, num_heads=hyper.n_head)
        k = rotate("RotaryEmbedding", k, *rest, num_heads=hyper.n_head_kv)
        return q, k, v

    def _apart(self, q: str, k: str, v: str) -> tuple[str, str, str]:
        """q, k and v, where q may hold all three."""
        if k:
            return q, k, v
        kv = self.hyper.n_head_kv * self.hyper.head_dim
        sizes = self.graph.constant([self.hyper.n_head * self.hyper.head_dim, kv, kv], "INT64")
        q, k, v = self.graph.nodes("Split", (q, sizes), ("*", "*", "*"), axis=-1)
        return q, k, v

    def _growth(self, rope: Rope) -> str:
        """What q is multiplied with where it stands, as Rope.temperature has it: (batch, new, 1) float32."""

        def make() -> str:
            graph, one = self.graph, self.graph.constant(1.0)
            past = graph.node("Div", self._positions(), graph.constant(rope.original, "INT64"))
            (times,) = graph.nodes("Cast", (past,), ("*",), to=DATA_TYPES["FLOAT"])
            logs = graph.node("Log", graph.node("Add", times, one))
            growth = graph.node("Add", graph.node("Mul", logs, graph.constant(rope.temperature)), one)
            return graph.node("Unsqueeze", growth, graph.constant([-1], "INT64"))

        return self.graph.once("growth", make)

    def _tables(self, rope: Rope) -> tuple[str, str, str]:
        """The tables of cos and sin and, where they are not simply looked up in by position, the rows to look up."""
        shape = rotary.rows(rope, self._n_ctx), rope.dim // 2
        number = self._ropes.setdefault(rope, len(self._ropes))
        cos, sin = (
            self.graph.tensor(
                f"rotary.{number}.{name}", "FLOAT", shape, partial(rotary.tables, rope, self._n_ctx, sine=name == "sin")
            )
            for name in ("cos", "sin")
        )
        return cos, sin, self._shifted(rope.original) if rotary.is_double(rope, self._n_ctx) else ""

    def _shifted(self, original: int) -> str:
        """Positions, `original` rows further once the text is longer than that."""

        def make() -> str:
            graph = self.graph
            long = graph.node("Greater", self._total(), graph.constant(original, "INT32"))
            none, shift = graph.constant(0, "INT64"), graph.constant(original, "INT64")
            return graph.node("Add", self._positions(), graph.node("Where", long, shift, none))

        return self.graph.once("shifted", make)

    def _positions(self) -> str:
        """Where each new token of each row stands: (batch, new) int64. Padding of a first pass stands on the right."""

        def make() -> str:
            graph, zero, one = self.graph, self.graph.constant(0, "INT64"), self.graph.constant(1, "INT64")
            new = self.size(IDS, 1)
            past = graph.node("Max", graph.node("Sub", self.lengths(MASK), new), zero)
            return graph.node("Add", past, graph.node("Range", zero, new, one))

        return self.graph.once("positions", make)

    def _last(self) -> str:
        """The position of each row's last token: (batch,) int32."""

        def make() -> str:
            graph = self.graph
            lengths = graph.node("Squeeze", self.lengths(MASK), graph.constant([1], "INT64"))
            return self.int32(graph.node("Sub", lengths, graph.constant(1, "INT64")))

        return self.graph.once("last", make)

    def _total(self) -> str:
        """Tokens of the longest row: a scalar int32."""
        return self.graph.once("total", lambda: self.int32(self.size(MASK, 1)))

    def _head(self, normed: str) -> None:
        """The logits of the rows that are kept."""
        graph, hyper = self.graph, self.hyper
        start, end = graph.node("Neg", KEEP), graph.constant([INT64_MAX], "INT64")
        kept = graph.node("Slice", normed, start, end, graph.constant([1], "INT64"))
        head = self._embedding if hyper.tied else self.weights.matrix("output.weight")
        logits = head.multiply(graph, self.scaled(kept, 1.0 / hyper.logit_scale))
        if hyper.final_softcap:
            cap = graph.constant(hyper.final_softcap)
            logits = graph.node("Mul", graph.node("Tanh", graph.node("Div", logits, cap)), cap)
        graph.node("Identity", logits, to="logits")
