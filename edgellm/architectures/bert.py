"""BERT and DistilBERT, for embeddings: MiniLM, BGE, E5. In GGUF both are `bert`; what they predict with is left out.

A BERT with a classifier of one label scores two texts: a reranker. Its pooler and its classifier are `cls` and
`cls.output` in GGUF, whose score is cls.output · tanh(cls · x + b) + b of the first token.

The configurations say `gelu`, the exact one; llama.cpp computes its tanh approximation, which differs by up to 5e-4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import Unsupported
from ..formats.gguf import GGUFFile
from ..formats.gguf_strings import StringArray
from .architecture import Architecture, Key
from .config import Config
from .hyper import Hyper
from .table import Either, Line, Weight, biased, weight

POOLINGS = ("none", "mean", "cls", "last", "rank")  # llama.cpp's numbers
LABELS = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
CLASSIFIER = "ForSequenceClassification"  # how such a model of transformers is called
SHARED = (
    Key("attention.head_count_kv", "n_head_kv", None, 0),
    Key("vocab_size", "n_vocab", "vocab_size", 0),
    Key("context_length", "n_ctx_train", "max_position_embeddings"),
)
GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh")


def pooling_of(folder: dict[str, Any] | None) -> dict[str, Any]:
    """The `pooling` field from a sentence-transformers 1_Pooling/config.json. Raises Unsupported for other kinds."""
    if folder is None:
        return {}
    names = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last"}
    mode = folder.get("pooling_mode")
    on = [
        key.removeprefix("pooling_mode_") for key, value in folder.items() if key.startswith("pooling_mode_") and value
    ]
    kind = mode if isinstance(mode, str) else names.get(on[0]) if len(on) == 1 else None
    if kind not in POOLINGS[:4]:
        raise Unsupported(f"1_Pooling/config.json: pooling {mode or on}; llama.cpp pools by mean, cls or last")
    return {"pooling": kind}


def norm(gguf: str, hf: str) -> Either:
    """A norm, under the names of today or under those of the first checkpoints."""
    old = ((".weight", ".gamma"), (".bias", ".beta"))
    return Either(
        biased(gguf, hf, "embd"),
        tuple(Weight(((gguf + new, "embd"),), ((hf + name, "embd"),)) for new, name in old),
    )


def _layer(base: str, *names: str) -> tuple[Line, ...]:
    """names: what follows `base` for q, k, v, the output and its norm, up, down, and the last norm."""
    q, k, v, output, first, up, down, last = names
    return (
        *biased("blk.{i}.attn_q", base + q, "q embd"),
        *biased("blk.{i}.attn_k", base + k, "kv embd"),
        *biased("blk.{i}.attn_v", base + v, "kv embd"),
        *biased("blk.{i}.attn_output", base + output, "embd q"),
        norm("blk.{i}.attn_output_norm", base + first),
        *biased("blk.{i}.ffn_up", base + up, "ff embd"),
        *biased("blk.{i}.ffn_down", base + down, "embd ff"),
        norm("blk.{i}.layer_output_norm", base + last),
    )


EMBEDDING: tuple[Line, ...] = (
    weight("token_embd", "{m}embeddings.word_embeddings", "vocab embd"),
    weight("position_embd", "{m}embeddings.position_embeddings", "ctx embd"),
)
EMBEDDING_NORM = norm("token_embd_norm", "{m}embeddings.LayerNorm")


def _write_metadata(hyper: Hyper) -> dict[str, Any]:
    pooled = {} if hyper.pooling is None else {"pooling_type": POOLINGS.index(hyper.pooling)}
    return {"attention.causal": False, **pooled}


def read_pooling(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    """A read_metadata hook of encoders."""
    number = config.maybe("pooling_type", int)
    if number == POOLINGS.index("rank"):
        raise Unsupported(f"{config.where}: pooling_type is that of a reranker, and there is no cls.output.weight")
    pooled = {} if number is None or not 0 <= number < len(POOLINGS) else {"pooling": POOLINGS[number]}
    return {"tied": True, **pooled}


def has_types(file: GGUFFile) -> bool:
    """Whether a GGUF file has types of tokens."""
    return "token_types.weight" in file.tensors


def scores(file: GGUFFile) -> bool:
    """Whether a GGUF file has a classifier."""
    return "cls.output.weight" in file.tensors


def classifies(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a model with a classifier."""
    named = config.get("architectures")
    return isinstance(named, list) and any(str(name).endswith(CLASSIFIER) for name in named)


def one_label(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    """Raises Unsupported for a classifier of several labels. A read_config hook."""
    labels = config.values.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.values.get("num_labels", 2)
    if count != 1:
        raise Unsupported(f"config.json: a classifier of {str(count)[:20]} labels; what scores texts has one")
    return {"pooling": "rank"}


def read_score(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    """A read_metadata hook of rerankers."""
    config.expect("pooling_type", POOLINGS.index("rank"))
    labels = config.maybe("classifier.output_labels", StringArray)
    if labels is not None and len(labels) != 1:
        raise Unsupported(f"{config.where}: a classifier of {len(labels)} labels; what scores texts has one")
    return {"tied": True, "pooling": "rank"}


BERT = Architecture(
    gguf="bert",
    model_type="bert",
    classname="BertModel",
    before=(
        *EMBEDDING,
        weight("token_types", "{m}embeddings.token_type_embeddings", "types embd"),
        EMBEDDING_NORM,
    ),
    layer=_layer(
        "{m}encoder.layer.{i}.",
        *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
        *("attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"),
    ),
    after=(),
    keys=(
        Key("block_count", "n_layer", "num_hidden_layers"),
        Key("embedding_length", "n_embd", "hidden_size"),
        Key("feed_forward_length", "n_ff", "intermediate_size"),
        Key("attention.head_count", "n_head", "num_attention_heads"),
        Key("attention.layer_norm_epsilon", "norm_eps", "layer_norm_eps"),
        Key(None, "n_token_types", "type_vocab_size", 2),
        *SHARED,
    ),
    expect={"hidden_act": GELU},
    tolerate={"position_embedding_type": ("absolute", None)},
    constants={"activation": "gelu", "attention_bias": True, "mlp_bias": True, "causal": False},
    scalings=frozenset(),
    tied=True,
    square=True,
    read_metadata=read_pooling,
    write_metadata=_write_metadata,
    recognises=lambda file: has_types(file) and not scores(file),
    fits=lambda config: not classifies(config),
    prefixes=("", "bert."),
    skip=(r"embeddings\.position_ids$", r"^(bert\.)?pooler\.", r"^cls\."),
)

BERT_RERANKER = replace(
    BERT,
    classname="BertForSequenceClassification",
    after=(*biased("cls", "{m}pooler.dense", "embd embd"), *biased("cls.output", "classifier", "score embd")),
    read_config=one_label,
    write_config=lambda hyper: LABELS,
    read_metadata=read_score,
    recognises=lambda file: has_types(file) and scores(file),
    fits=classifies,
    prefixes=("bert.", ""),
    skip=(r"embeddings\.position_ids$",),
)

DISTILBERT = replace(
    BERT,
    model_type="distilbert",
    classname="DistilBertModel",
    before=(*EMBEDDING, EMBEDDING_NORM),
    layer=_layer(
        "{m}transformer.layer.{i}.",
        *("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
        *("sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"),
    ),
    keys=(
        Key("block_count", "n_layer", "n_layers"),
        Key("embedding_length", "n_embd", "dim"),
        Key("feed_forward_length", "n_ff", "hidden_dim"),
        Key("attention.head_count", "n_head", "n_heads"),
        Key("attention.layer_norm_epsilon", "norm_eps", None),
        *SHARED,
    ),
    expect={"activation": GELU, "sinusoidal_pos_embds": (False,)},
    tolerate={},
    constants={**BERT.constants, "n_token_types": 1},
    read_config=lambda config, fields: {"norm_eps": 1e-12},
    recognises=lambda file: not has_types(file),
    fits=lambda config: True,
    prefixes=("", "distilbert."),
    skip=(r"embeddings\.position_ids$", r"^vocab_", r"^(pre_)?classifier\.", r"^qa_outputs\."),
)
