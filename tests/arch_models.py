"""Small checkpoints of every architecture: their config.json, random tensors, and the GGUF file that they become."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from tiny_models import bpe_vocabulary, wordpiece_vocabulary

import edgellm
from edgellm.architectures import Architecture, Hyper, from_config, to_gguf, to_hf
from edgellm.backends.base import Step
from edgellm.backends.llamacpp.library import load_library
from edgellm.converters.quant import ggml
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_writer import write_gguf
from edgellm.formats.tensor import Tensor, chunks
from edgellm.params import Backend

COMMON: dict[str, Any] = {
    "vocab_size": 271,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 2,
}
SHORT, LONG = [1.0, 1.1, 1.3, 1.5, 1.7, 2.0, 2.5, 3.0], [1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MINISTRAL = {  # where q begins to grow within the tests' texts
    "rope_type": "yarn",
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "max_position_embeddings": 128,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
    "rope_theta": 1e6,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
GEMMA = {"tie_word_embeddings": True, "head_dim": 32, "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 16}
NEOX = {"rotary_pct": 0.25, "rotary_emb_base": 10000, "layer_norm_eps": 1e-5, "hidden_act": "gelu"}
LONGROPE = {
    **COMMON,
    "model_type": "phi3",
    "hidden_size": 96,
    "partial_rotary_factor": 2 / 3,
    "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
}
STARCODER2 = {**COMMON, "model_type": "starcoder2", "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5}
OLMO3 = {**COMMON, "model_type": "olmo3", "sliding_window": 16, "rope_theta": 500000.0}
COHERE2 = {**COMMON, "model_type": "cohere2", "sliding_window": 16, "layer_norm_eps": 1e-5, "logit_scale": 0.25}
COHERE2["tie_word_embeddings"] = True
NO_WINDOW = {"sliding_window": None, "layer_types": ["full_attention"] * 2}
LLAMA = {**COMMON, "model_type": "llama"}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama-tied-biases": {**LLAMA, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "llama-heads": {**LLAMA, "head_dim": 32, "num_key_value_heads": 4},
    "llama-llama3": {**LLAMA, "rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "llama-linear": {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama-yarn": {**LLAMA, "rope_scaling": YARN},
    "llama-yarn-factor": {**LLAMA, "rope_scaling": {**YARN, "attention_factor": 1.3}},
    "mistral": {**COMMON, "model_type": "mistral", "sliding_window": None},
    "ministral3": {**COMMON, "model_type": "ministral3", "head_dim": 32, "rope_parameters": MINISTRAL},
    "ministral3-devstral": {
        **COMMON,
        "model_type": "ministral3",
        "head_dim": 32,
        "rope_parameters": {**MINISTRAL, "beta_fast": 4.0, "mscale_all_dim": 0.0, "llama_4_scaling_beta": 0.0},
    },
    "ministral3-tied": {
        **COMMON,
        "model_type": "ministral3",
        "head_dim": 32,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 0.5,
        },
    },
    "mixtral": {**COMMON, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {**COMMON, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {**COMMON, "model_type": "qwen3", "head_dim": 32},
    "qwen3moe": {
        **COMMON,
        "model_type": "qwen3_moe",
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    "gemma": {**COMMON, **GEMMA, "model_type": "gemma", "hidden_act": "gelu_pytorch_tanh"},
    "gemma2": {**COMMON, **GEMMA, "model_type": "gemma2", "query_pre_attn_scalar": 32, "final_logit_softcapping": 30.0}
    | {"attn_logit_softcapping": 50.0},
    "gemma3": {
        **COMMON,
        **GEMMA,
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "query_pre_attn_scalar": 32,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "gemma3-pattern": {
        **COMMON,
        **GEMMA,
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": 32,
        "rope_theta": 1e6,
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_local_base_freq": 20000.0,
    },
    "phi3": {**COMMON, "model_type": "phi3", "original_max_position_embeddings": 128},
    "phi3-longrope": {**LONGROPE, "max_position_embeddings": 2048, "original_max_position_embeddings": 512},
    "phi3-longrope-long": {**LONGROPE, "original_max_position_embeddings": 32},
    "smollm3": {**COMMON, "model_type": "smollm3", "num_hidden_layers": 5, "tie_word_embeddings": True},
    "granite": {
        **COMMON,
        "model_type": "granite",
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 4.0,
    },
    "olmo2": {**COMMON, "model_type": "olmo2"},
    "olmo3": {**OLMO3, "num_hidden_layers": 5, "rope_scaling": YARN},
    "olmo3-pattern": {
        **OLMO3,
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {**YARN, "rope_theta": 20000.0, "attention_factor": 1.3},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
        },
    },
    "ernie4_5": {**COMMON, "model_type": "ernie4_5", "head_dim": 32, "tie_word_embeddings": True, "use_bias": False},
    "ernie4_5-untied": {**COMMON, "model_type": "ernie4_5", "head_dim": 16, "rope_scaling": YARN},
    "ernie4_5-24": {**COMMON, "model_type": "ernie4_5", "head_dim": 24},
    "glm4": {**COMMON, "model_type": "glm4", "head_dim": 32, "partial_rotary_factor": 0.5},
    "glm4-unbiased": {**COMMON, "model_type": "glm4", "head_dim": 32, "attention_bias": False, "rope_scaling": YARN},
    "glm4-16": {**COMMON, "model_type": "glm4", "head_dim": 16, "partial_rotary_factor": 0.5},
    "cohere2": {**COHERE2, "num_hidden_layers": 5},
    "cohere2-pattern": {**COHERE2, "layer_types": ["full_attention", "sliding_attention"], "logit_scale": 1.0},
    "cohere2-24": {**COHERE2, "hidden_size": 96, "sliding_window_pattern": 2},
    "exaone4": {**COMMON, "model_type": "exaone4", **NO_WINDOW, "rope_scaling": LLAMA3},
    "exaone4-32b": {**COMMON, "model_type": "exaone4", "num_hidden_layers": 64, "sliding_window": 16},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 271,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "bos_token_id": 1,
        "eos_token_id": 0,
    },
    "gpt_neox": {**COMMON, **NEOX, "model_type": "gpt_neox", "use_parallel_residual": True},
    "gpt_neox-serial": {**COMMON, **NEOX, "model_type": "gpt_neox", "use_parallel_residual": False},
    "starcoder2": {**STARCODER2, "tie_word_embeddings": True},
    "starcoder2-untied": {**STARCODER2, "num_key_value_heads": 4, "rope_scaling": YARN},
    "bert": {
        **COMMON,
        "model_type": "bert",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "type_vocab_size": 2,
    },
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 271,
        "dim": 64,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 96,
        "max_position_embeddings": 128,
        "activation": "gelu",
        "pad_token_id": 2,
    },
}
MODERN_BERT = {
    "model_type": "modernbert",
    "vocab_size": 271,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "local_attention": 16,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "cls_token_id": 1,
    "sep_token_id": 0,
}
CONFIGS["modernbert"] = {**MODERN_BERT, "global_attn_every_n_layers": 3, "global_rope_theta": 80000.0}
CONFIGS["modernbert-new"] = {
    **MODERN_BERT,
    "layer_types": ["full_attention", *["sliding_attention"] * 4],
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
    },
}
CONFIGS["nomic_bert"] = {
    "model_type": "nomic_bert",
    "vocab_size": 271,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "hidden_act": "silu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "pad_token_id": 2,
}
for _name in ("gpt_neox", "gpt_neox-serial", "bert"):
    for _key in ("num_key_value_heads", "rms_norm_eps", "rope_theta"):
        del CONFIGS[_name][_key]
for _name in ("ministral3", "ministral3-devstral", "ministral3-tied"):
    del CONFIGS[_name]["rope_theta"]
for _name in ("cohere2", "cohere2-pattern", "cohere2-24", "starcoder2", "starcoder2-untied"):
    del CONFIGS[_name]["rms_norm_eps"]
del CONFIGS["gemma"]["sliding_window"]
del CONFIGS["bert"]["tie_word_embeddings"]
ONE_LABEL: dict[str, Any] = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
RERANKER = {**CONFIGS["bert"], "architectures": ["BertForSequenceClassification"], **ONE_LABEL}  # of two texts
MODERN_RERANKER = {
    **CONFIGS["modernbert"],
    "architectures": ["ModernBertForSequenceClassification"],
    "classifier_pooling": "mean",
    **ONE_LABEL,
}
EMBEDDERS = [name for name, config in CONFIGS.items() if not from_config(config)[1].causal]

PUBLISHED: dict[str, dict[str, Any]] = {  # keys of published configurations beyond those above
    "llama": {
        "is_llama_config": True,
        "rope_interleaved": False,
        "transformers.js_config": {},
        "rope_scaling": None,
        "pretraining_tp": 1,
        "mlp_bias": False,
        "torch_dtype": "bfloat16",
        "_name_or_path": "x",
    },
    "qwen2": {"max_window_layers": 21, "sliding_window": 32768, "use_mrope": False, "use_sliding_window": False},
    "qwen3moe": {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "output_router_logits": False,
        "max_window_layers": 4,
    },
    "gemma2": {"cache_implementation": "hybrid", "hidden_act": "gelu_pytorch_tanh", "attention_bias": False},
    "gemma3": {"_sliding_window_pattern": 6, "use_bidirectional_attention": False, "attn_logit_softcapping": None},
    "phi3": {
        "auto_map": {},
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "full_attn_mod": 1,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "mlp_bias": False,
        "sliding_window": 262144,
    },
    "smollm3": {"max_window_layers": 28, "pretraining_tp": 2, "no_rope_layer_interval": 4, "use_sliding_window": False},
    "gpt2": {
        "n_ctx": 128,
        "task_specific_params": {},
        "summary_type": "cls_index",
        "attn_pdrop": 0.1,
        "_num_labels": 1,
    },
    "gpt_neox": {"custom_pipelines": {}, "gradient_checkpointing": False, "hidden_dropout": 0.0},
    "starcoder2": {
        "activation_function": "gelu",
        "attention_softmax_in_fp32": True,
        "embedding_dropout": 0.1,
        "layer_norm_epsilon": 1e-05,
        "mlp_type": "default",
        "norm_type": "layer_norm",
        "residual_dropout": 0.1,
        "scale_attention_softmax_in_fp32": True,
        "scale_attn_weights": True,
        "sliding_window": 4096,
        "use_bias": True,
    },
    "bert": {"position_embedding_type": "absolute", "classifier_dropout": None, "hidden_dropout_prob": 0.1},
    "distilbert": {"sinusoidal_pos_embds": False, "tie_weights_": True, "qa_dropout": 0.1, "seq_classif_dropout": 0.2},
}

GOLDEN: dict[str, str] = {  # see tests/architectures/test_golden.py
    "llama": "a2f972368ca9 4bc4388dc092",
    "mistral": "a2f972368ca9 4bc4388dc092",
    "ministral3": "740f9b151ef1 802b281e5a9a",
    "mixtral": "367ee072d9af ac961f0886de",
    "qwen2": "a43794567151 216891a88234",
    "qwen3": "1440b14e24fc 8a1f15dfc28d",
    "qwen3moe": "8d627caa8f7c c6a8272f9ef2",
    "gemma": "510491af1891 415607d283a4",
    "gemma2": "ceed51e8c9be a0855eb30c66",
    "gemma3": "372012ea74b6 9e70ac47d58e",
    "phi3": "0f69ef6e2ff8 d201e65c86dd",
    "phi3-longrope": "dfa69e943e98 da5b78bbe2d1",
    "smollm3": "2b43cf757420 d431a191defb",
    "granite": "d6fb15576b7b 4bc4388dc092",
    "olmo2": "1d187827a110 f85fbf844891",
    "olmo3": "3e3faf5a8153 5ef35da583fe",
    "ernie4_5": "9cc8773f306e d8845f5edbb0",
    "glm4": "2033c5d3d9ea a981093bd1e8",
    "cohere2": "ab5f1da8b6fa 24930b5eb021",
    "exaone4": "208df5ae8a8d b2654a425313",
    "gpt2": "a775f80d53ae 9a2a86d3c8cb",
    "gpt_neox": "bde7ae3a67df c2d61a675e4d",
    "bert": "74b007b9ca1c 8ac50752a4b2",
    "starcoder2": "87c1d21f8745 468b7a291392",
    "distilbert": "3981f69e8e3c 78e53f02ea0f",
    "modernbert": "23f363420cfd 2b27422008d3",
    "nomic_bert": "2cfe5b41be7a aa4563278ee7",
}


def atol(config: Mapping[str, Any]) -> float:
    """How near llama.cpp's logits must be in f32: it looks GELU up in a table of float16."""
    return 1e-3 if from_config(config)[1].activation == "silu" else 0.05


@dataclass(frozen=True)
class Array:
    """A Tensor over an array."""

    values: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def stored(self) -> str:
        return "F32"

    def rows(self, which: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        return self.values.reshape(-1, self.values.shape[-1])[which]


def arrays(values: Mapping[str, NDArray[np.float32]]) -> dict[str, Tensor]:
    return {name: Array(value) for name, value in values.items()}


def whole(tensor: Tensor) -> NDArray[np.float32]:
    """All of a tensor, read in chunks of rows."""
    return np.concatenate([tensor.rows(chunk) for chunk in chunks(tensor)]).reshape(tensor.shape)


class _Biases(Collection[str]):
    """Names that are there: biases, if the model has them."""

    def __init__(self, hyper: Hyper) -> None:
        self._hyper = hyper

    def __contains__(self, name: object) -> bool:
        text = str(name)
        there = self._hyper.attention_bias if "attn" in text else self._hyper.mlp_bias
        return text.endswith(".bias") and there

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def checkpoint(config: dict[str, Any], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random Hugging Face tensors of a config.json, by name."""
    architecture, hyper = from_config(config)
    rng = np.random.default_rng(seed)
    made = {}
    for relation in architecture.relations(hyper, _Biases(hyper)):
        for part in relation.hf:
            values = rng.integers(-128, 128, part.shape).astype(np.float32) / np.float32(512)  # the same everywhere
            made[part.name] = values + np.float32(1.0) if part.name.endswith("norm.weight") else values
    return made


def vocabulary(architecture: Architecture) -> dict[str, Any]:
    """What tokenizes for the model: byte-level BPE, or WordPiece for BERT. Encoders have an end, too."""
    if architecture.constants.get("causal", True):
        return bpe_vocabulary()
    if not architecture.constants.get("centred"):
        return wordpiece_vocabulary()
    made = bpe_vocabulary() | {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    return made | {"tokenizer.ggml.tokens": ["[SEP]", "[CLS]", "[PAD]", *made["tokenizer.ggml.tokens"][3:]]}


def convert(
    config: dict[str, Any],
    tensors: Mapping[str, NDArray[np.float32]],
    path: Path,
    pooling: dict[str, Any] | None = None,
    *,
    kind: GGMLType = GGMLType.F32,
) -> Path:
    """The checkpoint as a GGUF file of F32 tensors, or of another kind where rows are whole blocks of it. What chooses
    among experts stays F32."""
    architecture, hyper = from_config(config, pooling)
    written: list[tuple[str, tuple[int, ...], GGMLType, Any]] = []
    written += [(name, values.shape, GGMLType.F32, values) for name, values in architecture.extra(hyper)]
    for relation in architecture.relations(hyper, list(tensors)):
        for part, tensor in to_gguf(relation, arrays(tensors)):
            plain = len(part.shape) == 1 or part.shape[-1] % kind.block_size or "gate_inp" in part.name
            stored, values = GGMLType.F32 if plain else kind, whole(tensor)
            data = values if plain else ggml.quantize(stored, values.reshape(-1, part.shape[-1]))
            written.append((part.name, part.shape, stored, data))
    general = {"general.architecture": architecture.gguf, "general.name": "tiny", "general.file_type": 0}
    write_gguf(path, {**general, **architecture.metadata(hyper), **vocabulary(architecture)}, written)
    return path


def dequantized(path: Path, target: Path) -> Path:
    """The same file in F32, by the gguf package's reading of the blocks."""
    with GGUFFile.open(path) as file:
        tensors = []
        for name, info in file.tensors.items():
            rows = file.data(name).reshape(math.prod(info.shape[:-1]), -1)
            values = gguf.dequantize(rows, gguf.GGMLQuantizationType(info.type)).reshape(info.shape)
            tensors.append((name, info.shape, GGMLType.F32, values.astype(np.float32)))
        write_gguf(target, dict(file.metadata), tensors)
    return target


def embeddings(path: Path, tokens: list[int]) -> NDArray[np.float32]:
    """What llama.cpp makes of each token, before pooling: (n, n_embd) float32."""
    load_library()
    import llama_cpp

    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.embeddings, params.pooling_type, params.n_ctx = True, 0, 128
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds keys and values to f16
    context = llama_cpp.llama_init_from_model(model, params)
    ids = (llama_cpp.llama_token * len(tokens))(*tokens)
    code = llama_cpp.llama_encode(context, llama_cpp.llama_batch_get_one(ids, len(tokens)))
    size = llama_cpp.llama_model_n_embd(model)
    rows = [llama_cpp.llama_get_embeddings_ith(context, i)[:size] for i in range(len(tokens))]
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    if code:
        raise AssertionError(f"llama_encode returned {code}")
    return np.array(rows, np.float32)


def logits(path: Path, tokens: list[int], ctx: int = 128, backend: Backend = "llamacpp") -> NDArray[np.float32]:
    """The logits with an f32 cache: (n, n_vocab) float32."""
    with edgellm.load(path, ctx=ctx, kv_type="f32", trust=True, backend=backend) as model:

        def run(backend: Any) -> NDArray[np.float32]:
            rows = backend.forward([Step(backend.new_sequence(), tokens, "all")])[0]
            return np.array(rows)

        return model._engine.call(run)


def read_back(architecture: Architecture, hyper: Hyper, file: GGUFFile) -> dict[str, NDArray[np.float32]]:
    """The Hugging Face tensors of a GGUF file of F32 tensors."""
    stored = {name: file.data(name).view(np.float32).reshape(info.shape) for name, info in file.tensors.items()}
    found = {}
    for relation in architecture.relations(hyper, list(stored)):
        found |= {part.name: whole(tensor) for part, tensor in to_hf(relation, arrays(stored))}
    return found
