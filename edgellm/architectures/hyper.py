"""Hyper: what an architecture's numbers are, named once for every format that is read or written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from .rope import Rope

Activation = Literal["silu", "gelu", "gelu_tanh"]
Pooling = Literal["none", "mean", "cls", "last", "rank"]


@dataclass(frozen=True)
class Hyper:
    """The hyper-parameters of a model. Lengths are in tokens or elements; None or the default where one does not apply.

    gguf: `general.architecture`; model_type: Hugging Face's name of the family.
    n_ff: columns of the feed-forward network (n_ff_expert: of each of the n_expert ones, n_expert_used run per token).
    n_ctx_train: positions the model was made for. window: keys that a windowed layer sees, itself included; of an
    encoder those before and behind a token, half of them on either side. windowed: which layers those are, none where
    it is empty. tied: the output is the embedding. attention_bias: of q, k, v and output; mlp_bias: of gate, up and
    down. attention_scale: of q·k before the soft cap, None for 1/√head_dim; embedding_scale multiplies embeddings,
    residual_scale what a block adds, logit_scale divides the logits. parallel_residual: feed-forward reads what
    attention reads, by a norm of its own or by the same one. centred: norms take the mean away, also those without a
    bias. pooling: how a vector is made of the tokens' ones; "rank": a score of two texts instead, of the vector that
    `ranked` makes.
    """

    gguf: str
    model_type: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_ctx_train: int
    norm_eps: float
    rope: Rope | None
    tied: bool
    activation: Activation = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    window: int | None = None
    windowed: tuple[bool, ...] = ()
    attention_scale: float | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    parallel_residual: bool = False
    centred: bool = False
    n_expert: int = 0
    n_expert_used: int = 0
    n_ff_expert: int = 0
    causal: bool = True
    n_token_types: int = 0
    pooling: Pooling | None = None
    ranked: Literal["cls", "mean"] = "cls"

    def rotation(self, layer: int) -> Rope | None:
        """What rotates q and k of a layer; None where nothing does."""
        rope = self.rope
        if rope is None or (rope.every and (layer + 1) % rope.every == 0):
            return None
        if rope.only_windowed and self.windowed and not self.windowed[layer]:
            return None
        if rope.local_base is not None and self.windowed and self.windowed[layer]:
            return Rope(rope.local_base, rope.dim, neighbours=rope.neighbours)
        return replace(rope, local_base=None, every=0, only_windowed=False)

    def sizes(self) -> dict[str, int]:
        """The names that tables of tensors use for dimensions."""
        q, kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        return {
            "embd": self.n_embd,
            "ff": self.n_ff,
            "ff2": 2 * self.n_ff,
            "q": q,
            "kv": kv,
            "qkv": q + 2 * kv,
            "head": self.head_dim,
            "vocab": self.n_vocab,
            "ctx": self.n_ctx_train,
            "types": self.n_token_types,
            "score": 1,
            "experts": self.n_expert,
            "ffe": self.n_ff_expert,
            "ffe2": 2 * self.n_ff_expert,
        }
