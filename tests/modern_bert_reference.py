"""ModernBERT in numpy, an oracle for embeddings and scores: float64, the exact GELU, one text at a time.

Warner et al., 2024, https://arxiv.org/abs/2412.13663; names of tensors and keys are those of `transformers`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])


class ModernBert:
    """A ModernBertModel, or a ModernBertForSequenceClassification of one label that scores the mean."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]]) -> None:
        self._config = config
        self._weights = {name.removeprefix("model."): value.astype(np.float64) for name, value in tensors.items()}

    def hidden(self, tokens: Sequence[int]) -> Array:
        """The last hidden state, (tokens, hidden)."""
        config = self._config
        x = self._norm("embeddings.norm", self._weights["embeddings.tok_embeddings.weight"][list(tokens)])
        for i in range(config["num_hidden_layers"]):
            base = f"layers.{i}."
            x = x + self._attention(i, self._norm(f"{base}attn_norm", x) if i else x)
            inner, gate = np.split(self._linear(f"{base}mlp.Wi", self._norm(f"{base}mlp_norm", x)), 2, axis=-1)
            x = x + self._linear(f"{base}mlp.Wo", _gelu(inner) * gate)
        return self._norm("final_norm", x)

    def score(self, tokens: Sequence[int]) -> float:
        """The logit of the one label."""
        pooled = self._norm("head.norm", _gelu(self._linear("head.dense", self.hidden(tokens).mean(axis=0))))
        return float(self._linear("classifier", pooled)[0] + self._weights["classifier.bias"][0])

    def _attention(self, i: int, x: Array) -> Array:
        config, count = self._config, len(x)
        full = i % config["global_attn_every_n_layers"] == 0
        q, k, v = (
            self._linear(f"layers.{i}.attn.Wqkv", x)
            .reshape(count, 3, config["num_attention_heads"], -1)
            .swapaxes(0, 2)
            .swapaxes(0, 1)
        )
        theta = config["global_rope_theta"] if full else config.get("local_rope_theta", 10000.0)
        q, k = _rotated(q, theta), _rotated(k, theta)
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
        if not full:
            apart = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
            scores = np.where(apart > config["local_attention"] // 2, -np.inf, scores)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = weights / weights.sum(axis=-1, keepdims=True) @ v
        return self._linear(f"layers.{i}.attn.Wo", mixed.swapaxes(0, 1).reshape(x.shape))

    def _linear(self, name: str, x: Array) -> Array:
        result: Array = x @ self._weights[f"{name}.weight"].T
        return result

    def _norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled: Array = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
        return scaled * self._weights[f"{name}.weight"]


def _gelu(x: Array) -> Array:
    result: Array = 0.5 * x * (1 + _erf(x / math.sqrt(2)))
    return result


def _rotated(x: Array, theta: float) -> Array:
    """Heads (heads, tokens, size), whose halves turn by the position of the token."""
    size = x.shape[-1]
    angles = np.outer(np.arange(x.shape[1]), theta ** -(np.arange(0, size, 2) / size))
    first, second = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
