"""Tiny decoders, dense or with experts, computed in float64, and the same ones as edgellm._native.DenseModel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from edgellm import _native

Array = NDArray[Any]
Key = tuple[int, str]
F32 = int(GGMLQuantizationType.F32)


def _stored(values: Array, kind: GGMLQuantizationType, generator: np.random.Generator) -> Array:
    """Rows as a file has them, (rows, bytes); of Q4_K, which numpy cannot make of values, any of about their size."""
    if kind != GGMLQuantizationType.Q4_K:
        return np.ascontiguousarray(quantize(values, kind)).view(np.uint8)
    rows, columns = values.shape
    blocks = generator.integers(0, 256, (rows * columns // 256, 144), np.uint8)
    scale = np.float16(float(np.std(values)) / 140)  # codes of 0 to 15 times 0 to 63, less as much on average
    blocks[:, :4] = np.array([scale, scale * np.float16(7.5)]).view(np.uint8)
    return blocks.reshape(rows, -1)


@dataclass
class Tiny:
    """Numbers as DenseModel takes them; which norms, biases and matrices there are; weights of its own for each seed.

    rotary: {kind: (frequencies, magnitude)}; extra: {role: length} of vectors that a layer has beside the usual norms.
    gate: whether the network has one; positions: how many are learned, 0 for none.
    """

    n_layer: int = 3
    n_embd: int = 64
    n_ff: int = 96
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 16
    n_vocab: int = 70
    n_expert: int = 0
    n_expert_used: int = 0
    norm_eps: float = 1e-5
    activation: str = "silu"
    attention_scale: float = 0.25
    attention_softcap: float = 0.0
    final_softcap: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    parallel_residual: bool = False
    windows: tuple[int, ...] = (0, 0, 0)
    rotations: tuple[int, ...] = (1, 1, 1)
    rotary: dict[int, tuple[Array, float]] = field(default_factory=lambda: {1: (100.0 ** -(np.arange(8) / 8), 1.0)})
    norms: tuple[str, ...] = ("attn_norm", "ffn_norm")
    extra: dict[str, int] = field(default_factory=dict)
    tied: bool = True
    gate: bool = True
    positions: int = 0
    type: int = F32
    seed: int = 0

    def __post_init__(self) -> None:
        generator = np.random.default_rng(self.seed)
        q, kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        shapes = {
            "attn_q": (q, self.n_embd), "attn_k": (kv, self.n_embd), "attn_v": (kv, self.n_embd),
            "attn_output": (self.n_embd, q),
        }  # fmt: skip
        suffix, each = ("_exps", self.n_expert) if self.n_expert else ("", 1)
        shapes |= {f"ffn_{part}{suffix}": (each * self.n_ff, self.n_embd) for part in ("gate", "up")[not self.gate :]}
        shapes[f"ffn_down{suffix}"] = each * self.n_embd, self.n_ff
        if self.n_expert:
            shapes["ffn_gate_inp"] = self.n_expert, self.n_embd
        keys: dict[Key, tuple[int, int]] = {(-1, "token_embd"): (self.n_vocab, self.n_embd)}
        if self.positions:
            keys[-1, "position_embd"] = (self.positions, self.n_embd)
        if not self.tied:
            keys[-1, "output"] = (self.n_vocab, self.n_embd)
        keys |= {(i, role): shape for i in range(self.n_layer) for role, shape in shapes.items()}
        self.files: dict[Key, Array] = {}  # rows as a file stores them
        self.matrices: dict[Key, Array] = {}
        for key, shape in keys.items():
            values = generator.normal(0, 2 / np.sqrt(shape[1]), shape).astype(np.float32)
            self.files[key] = _stored(values, GGMLQuantizationType(self.type), generator)
            self.matrices[key] = dequantize(self.files[key], GGMLQuantizationType(self.type))
        sizes = {(i, role): self.n_embd for i in range(self.n_layer) for role in self.norms}
        sizes |= {(i, role): size for i in range(self.n_layer) for role, size in self.extra.items()}
        sizes[-1, "output_norm"] = self.n_embd
        self.vectors = {key: generator.normal(1, 0.3, n).astype(np.float32) for key, n in sizes.items()}

    def native(self, threads: int = 2, micro_batch: int = 512, kernels: str | None = None) -> _native.DenseModel:
        model = self.unset(threads, micro_batch, kernels)
        for (layer, role), rows in self.files.items():
            count, columns = self.matrices[layer, role].shape
            model.set_matrix(layer, role, self.type, count, columns, rows.reshape(-1).data)
        for (layer, role), values in self.vectors.items():
            model.set_vector(layer, role, values)
        for kind, (frequencies, magnitude) in self.rotary.items():
            model.set_rotation(kind, frequencies, magnitude)
        model.finish()
        return model

    def unset(self, threads: int = 2, micro_batch: int = 512, kernels: str | None = None) -> _native.DenseModel:
        """Without any weights."""
        names = (
            "n_layer", "n_embd", "n_ff", "n_head", "n_head_kv", "head_dim", "n_vocab", "n_expert", "n_expert_used",
            "norm_eps", "activation",
            "attention_scale", "attention_softcap", "final_softcap", "embedding_scale", "residual_scale", "logit_scale",
            "parallel_residual",
        )  # fmt: skip
        numbers: dict[str, Any] = {name: getattr(self, name) for name in names}
        windows, rotations = list(self.windows), list(self.rotations)
        return _native.DenseModel(
            **numbers, windows=windows, rotations=rotations, threads=threads, micro_batch=micro_batch, kernels=kernels
        )

    def pages(self, kind: str = "f32", most: int = 64) -> _native.KvPages:
        return _native.KvPages(self.n_layer, self.n_head_kv, self.head_dim, kind, most)

    def logits(self, tokens: list[int]) -> Array:
        """(tokens, n_vocab) float64"""
        x = self.matrices[-1, "token_embd"].astype(np.float64)[tokens] * self.embedding_scale
        if self.positions:
            x = x + self.matrices[-1, "position_embd"][: len(tokens)]
        for i in range(self.n_layer):
            before = x
            added = self._attention(self._norm(x, i, "attn_norm"), i)
            x = x + self.residual_scale * self._norm(added, i, "post_attention_norm")
            h = self._norm(before if self.parallel_residual else x, i, "ffn_norm")
            added = self._experts(h, i) if self.n_expert else self._feed_forward(h, i)
            x = x + self.residual_scale * self._norm(added, i, "post_ffw_norm")
        x = self._norm(x, -1, "output_norm") / self.logit_scale
        found = self._product(x, -1, "token_embd" if self.tied else "output")
        return np.asarray(self.final_softcap * np.tanh(found / self.final_softcap) if self.final_softcap else found)

    def _feed_forward(self, h: Array, i: int) -> Array:
        up = self._product(h, i, "ffn_up")
        hidden = self._activate(self._product(h, i, "ffn_gate")) * up if self.gate else self._activate(up)
        return self._product(hidden, i, "ffn_down")

    def _experts(self, h: Array, i: int) -> Array:
        """A softmax over all, of which the largest are taken and made to sum to 1."""
        scores = self._product(h, i, "ffn_gate_inp")
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        best = np.argsort(-scores, axis=-1, kind="stable")[:, : self.n_expert_used]
        weights = np.take_along_axis(shares / shares.sum(axis=-1, keepdims=True), best, axis=-1)
        weights /= weights.sum(axis=-1, keepdims=True)
        gate, up, down = (
            self.matrices[i, f"ffn_{part}_exps"].astype(np.float64).reshape(self.n_expert, -1, columns)
            for part, columns in (
                ("gate" if self.gate else "up", self.n_embd),
                ("up", self.n_embd),
                ("down", self.n_ff),
            )
        )
        made = np.zeros_like(h)
        for row, x in enumerate(h):
            for expert, weight in zip(best[row], weights[row], strict=True):
                times = up[expert] @ x if self.gate else 1.0
                made[row] += weight * (down[expert] @ (self._activate(gate[expert] @ x) * times))
        return made

    def _product(self, x: Array, layer: int, role: str) -> Array:
        return x @ self.matrices[layer, role].astype(np.float64).T + self.vectors.get((layer, f"{role}.bias"), 0.0)

    def _norm(self, x: Array, layer: int, role: str) -> Array:
        """x itself where there is no such norm; one with a bias takes the mean away."""
        weight, bias = self.vectors.get((layer, role)), self.vectors.get((layer, f"{role}.bias"))
        if weight is None:
            return x
        if bias is not None:
            x = x - np.mean(x, axis=-1, keepdims=True)
        normed = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + self.norm_eps) * weight
        return np.asarray(normed if bias is None else normed + bias)

    def _activate(self, x: Array) -> Array:
        if self.activation == "silu":
            return np.asarray(x / (1 + np.exp(-x)))
        assert self.activation == "gelu_tanh"
        return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))

    def _attention(self, h: Array, i: int) -> Array:
        count = len(h)
        heads = []
        for part, n in (("q", self.n_head), ("k", self.n_head_kv), ("v", self.n_head_kv)):
            x = self._product(h, i, f"attn_{part}")
            weight = self.vectors.get((i, f"attn_{part}_norm"))
            whole = weight is not None and weight.size != self.head_dim
            x = (self._norm(x, i, f"attn_{part}_norm") if whole else x).reshape(count, n, self.head_dim)
            if weight is not None and not whole:
                x = self._norm(x, i, f"attn_{part}_norm")
            heads.append(x if part == "v" else self._turned(x, self.rotations[i]))
        q, k, v = (np.repeat(x, self.n_head // x.shape[1], axis=1) for x in heads)
        scores = np.einsum("qhd,khd->hqk", q, k) * self.attention_scale
        if self.attention_softcap:
            scores = self.attention_softcap * np.tanh(scores / self.attention_softcap)
        behind = np.arange(count)[:, None] - np.arange(count)[None, :]
        hidden = (behind < 0) | (behind >= (self.windows[i] or count))
        scores = np.where(hidden, -np.inf, scores)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        found = np.einsum("hqk,khd->qhd", weights / weights.sum(axis=-1, keepdims=True), v)
        return self._product(found.reshape(count, -1), i, "attn_output")

    def _turned(self, x: Array, kind: int) -> Array:
        if kind == 0:
            return x
        frequencies, magnitude = self.rotary[kind]
        angles = np.arange(len(x))[:, None, None] * frequencies
        cos, sin, n = magnitude * np.cos(angles), magnitude * np.sin(angles), len(frequencies)
        a, b = x[..., :n], x[..., n : 2 * n]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2 * n :]], axis=-1)
