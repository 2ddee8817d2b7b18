"""BERT in numpy, an oracle for embeddings: float64, the exact GELU, mean pooling, vectors of length 1.

Devlin et al., 2019, https://arxiv.org/abs/1810.04805; names of tensors and keys are those of `transformers`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Array = NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])


class Bert:
    """A BertModel of a Hugging Face folder, or a BertForSequenceClassification of one label."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert config["hidden_act"] == "gelu"
        self._layers, self._heads = config["num_hidden_layers"], config["num_attention_heads"]
        self._eps = config["layer_norm_eps"]
        stored = load_file(folder / "model.safetensors")
        self._weights = {name.removeprefix("bert."): value.astype(np.float64) for name, value in stored.items()}

    def hidden(self, tokens: Sequence[int], first: int | None = None) -> Array:
        """The last hidden state, (tokens, hidden). first: tokens of type 0, before those of type 1; None: all."""
        w = self._weights
        types = [int(first is not None and at >= first) for at in range(len(tokens))]
        x = w["embeddings.word_embeddings.weight"][list(tokens)] + w["embeddings.token_type_embeddings.weight"][types]
        x = self._norm("embeddings.LayerNorm", x + w["embeddings.position_embeddings.weight"][: len(tokens)])
        for i in range(self._layers):
            base = f"encoder.layer.{i}."
            x = self._norm(f"{base}attention.output.LayerNorm", x + self._attention(f"{base}attention.", x))
            inner = self._linear(f"{base}intermediate.dense", x)
            inner = 0.5 * inner * (1 + _erf(inner / math.sqrt(2)))
            x = self._norm(f"{base}output.LayerNorm", x + self._linear(f"{base}output.dense", inner))
        return x

    def embed(self, tokens: Sequence[int]) -> Array:
        """(hidden,): the mean over the tokens, scaled to length 1."""
        vector: Array = self.hidden(tokens).mean(axis=0)
        vector /= np.linalg.norm(vector)
        return vector

    def score(self, tokens: Sequence[int], first: int | None = None) -> float:
        """The logit of the one label."""
        pooled = np.tanh(self._linear("pooler.dense", self.hidden(tokens, first)[:1]))
        return float(self._linear("classifier", pooled)[0, 0])

    def _attention(self, base: str, x: Array) -> Array:
        q, k, v = (
            self._linear(f"{base}self.{name}", x).reshape(len(x), self._heads, -1).swapaxes(0, 1)
            for name in ("query", "key", "value")
        )  # each (heads, tokens, size of a head)
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = weights / weights.sum(axis=-1, keepdims=True) @ v
        return self._linear(f"{base}output.dense", mixed.swapaxes(0, 1).reshape(x.shape))

    def _linear(self, name: str, x: Array) -> Array:
        result: Array = x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]
        return result

    def _norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled: Array = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self._eps)
        scaled *= self._weights[f"{name}.weight"]
        return scaled + self._weights[f"{name}.bias"]
