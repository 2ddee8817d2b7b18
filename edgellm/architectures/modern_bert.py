"""ModernBERT (https://arxiv.org/abs/2412.13663): an encoder with rotary positions, a gate, norms in front, no biases.

Each third layer sees the whole text, with a θ of its own; the others see `local_attention` tokens around each. In GGUF
it is `modern-bert`. Like BERT's, its GELU is the exact one, and llama.cpp's the tanh approximation.

With a classifier of one label it is a reranker, whose score is cls.output · norm(gelu(cls · x)) + b, where x is the
mean of all tokens: llama.cpp knows none that scores the first token.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import InvalidModelFile, Unsupported
from .architecture import Architecture, Key
from .bert import GELU, LABELS, POOLINGS, SHARED, classifies, one_label, read_pooling, read_score, scores
from .config import Config
from .hyper import Hyper
from .table import biased, weight

EVERY = 3  # layers to one that sees all
PATTERN = "attention.sliding_window_pattern"


def _windowed(every: int, n_layer: int) -> tuple[bool, ...]:
    return tuple(bool(i % every) for i in range(n_layer))


def _read_config(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    every, kinds = config.take("global_attn_every_n_layers", int, EVERY), config.maybe("layer_types", list)
    if kinds is not None:
        if set(map(str, kinds)) - {"full_attention", "sliding_attention"} or len(kinds) != fields["n_layer"]:
            raise InvalidModelFile(f"{config.where}: layer_types is not a known kind of attention for each layer")
        full = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
        every = full[1] if len(full) > 1 else len(kinds)
        if tuple(kind != "full_attention" for kind in kinds) != _windowed(every, len(kinds)):
            raise Unsupported(f"{config.where}: layer_types: llama.cpp knows full attention in each n-th layer alone")
    return {"tied": True, **_window(config, fields, every)}


def _window(config: Config, fields: dict[str, Any], every: int) -> dict[str, Any]:
    if every < 1 or (fields["window"] or 0) < 2:
        raise InvalidModelFile(f"{config.where}: a window of {fields['window']} tokens in all but each {every}th layer")
    return {"windowed": _windowed(every, fields["n_layer"])}


def _read_metadata(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    return _window(config, fields, config.take(PATTERN, int, EVERY))


def _every(hyper: Hyper) -> int:
    """Layers from one that sees all to the next; all where there is no next."""
    return next((i for i, windowed in enumerate(hyper.windowed) if i and not windowed), hyper.n_layer)


def _write_metadata(hyper: Hyper) -> dict[str, Any]:
    pooled = {} if hyper.pooling is None else {"pooling_type": POOLINGS.index(hyper.pooling)}
    return {"attention.causal": False, PATTERN: _every(hyper), **pooled}


def _write_config(hyper: Hyper) -> dict[str, Any]:
    return {"global_attn_every_n_layers": _every(hyper), "norm_bias": False}


MODERN_BERT = Architecture(
    gguf="modern-bert",
    model_type="modernbert",
    classname="ModernBertModel",
    before=(
        weight("token_embd", "{m}embeddings.tok_embeddings", "vocab embd"),
        weight("token_embd_norm", "{m}embeddings.norm", "embd"),
    ),
    layer=(
        weight("blk.{i}.attn_norm", "{m}layers.{i}.attn_norm", "embd", later=True),
        weight("blk.{i}.attn_qkv", "{m}layers.{i}.attn.Wqkv", "qkv embd"),
        weight("blk.{i}.attn_output", "{m}layers.{i}.attn.Wo", "embd q"),
        weight("blk.{i}.ffn_norm", "{m}layers.{i}.mlp_norm", "embd"),
        weight("blk.{i}.ffn_up", "{m}layers.{i}.mlp.Wi", "ff2 embd"),
        weight("blk.{i}.ffn_down", "{m}layers.{i}.mlp.Wo", "embd ff"),
    ),
    after=(weight("output_norm", "{m}final_norm", "embd"),),
    keys=(
        Key("block_count", "n_layer", "num_hidden_layers"),
        Key("embedding_length", "n_embd", "hidden_size"),
        Key("feed_forward_length", "n_ff", "intermediate_size"),
        Key("attention.head_count", "n_head", "num_attention_heads"),
        Key("attention.layer_norm_epsilon", "norm_eps", "norm_eps"),
        Key("attention.sliding_window", "window", "local_attention"),
        *SHARED,
    ),
    expect={"hidden_activation": GELU, "attention_bias": (False,), "mlp_bias": (False,)},
    tolerate={"norm_bias": (False,), "position_embedding_type": ("absolute", None), "layer_norm_eps": (1e-5,)},
    defaults={"norm_eps": 1e-5, "local_attention": 128, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0},
    constants={"activation": "gelu", "centred": True, "causal": False},
    scalings=frozenset({"none"}),
    tied=True,
    rope_base=160000.0,
    local_base=10000.0,
    rope_names={"rope_theta": "global_rope_theta", "rope_local_base_freq": "local_rope_theta"},
    square=True,
    read_config=_read_config,
    write_config=_write_config,
    read_metadata=lambda config, fields: _read_metadata(config, fields) | read_pooling(config, fields),
    write_metadata=_write_metadata,
    recognises=lambda file: not scores(file),
    fits=lambda config: not classifies(config),
    prefixes=("", "model."),
    skip=(r"^head\.", r"^decoder\."),
)


def _read_ranked(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    if config.values.get("classifier_pooling", "cls") != "mean":
        raise Unsupported(f"{config.where}: classifier_pooling is not 'mean', and llama.cpp scores no other vector")
    config.expect("classifier_bias", False)
    config.expect("classifier_activation", *GELU)
    return _read_config(config, fields) | one_label(config, fields)


MODERN_BERT_RERANKER = replace(
    MODERN_BERT,
    classname="ModernBertForSequenceClassification",
    after=(
        *MODERN_BERT.after,
        weight("cls", "head.dense", "embd embd"),
        weight("cls.norm", "head.norm", "embd"),
        *biased("cls.output", "classifier", "score embd"),
    ),
    constants={**MODERN_BERT.constants, "ranked": "mean"},
    read_config=_read_ranked,
    write_config=lambda hyper: _write_config(hyper) | {"classifier_pooling": "mean"} | LABELS,
    read_metadata=lambda config, fields: _read_metadata(config, fields) | read_score(config, fields),
    recognises=scores,
    fits=classifies,
    prefixes=("model.", ""),
    skip=(),
)
