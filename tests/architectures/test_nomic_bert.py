"""nomic-bert: the spellings of its configurations, and vectors on both engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_models import CONFIGS, checkpoint
from hf_models import folder_of

import edgellm
from edgellm.architectures import from_config
from edgellm.backends.llamacpp.checks import check_header
from edgellm.converters import ConvertParams, convert
from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.formats.gguf import GGUFFile

CONFIG = CONFIGS["nomic_bert"]
FIRST: dict[str, Any] = {  # keys of the published nomic-embed-text-v1
    "activation_function": "swiglu",
    "architectures": ["NomicBertModel"],
    "attn_pdrop": 0.0,
    "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
    "bos_token_id": None,
    "causal": False,
    "dense_seq_output": True,
    "embd_pdrop": 0.0,
    "eos_token_id": None,
    "fused_bias_fc": True,
    "fused_dropout_add_ln": True,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-12,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "model_type": "nomic_bert",
    "n_embd": 768,
    "n_head": 12,
    "n_inner": 3072,
    "n_layer": 12,
    "n_positions": 2048,
    "pad_vocab_size_multiple": 64,
    "parallel_block": False,
    "parallel_block_tied_norm": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.0,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.0,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "torch_dtype": "float32",
    "transformers_version": "4.31.0",
    "type_vocab_size": 2,
    "use_cache": True,
    "use_flash_attn": True,
    "use_rms_norm": False,
    "use_xentropy": True,
    "vocab_size": 30528,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "nomic-embed-text-v1": FIRST,
    "nomic-embed-text-v1.5": {**FIRST, "max_trained_positions": 2048, "n_positions": 8192},
    "as transformers has it": {
        "architectures": ["NomicBertModel"],
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": None,
        "dtype": "float32",
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 768,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 2048,
        "model_type": "nomic_bert",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 0,
        "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "transformers_version": "5.24.0",
        "type_vocab_size": 2,
        "vocab_size": 30528,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_one(name: str) -> None:
    architecture, hyper = from_config(PUBLISHED[name])
    assert architecture.gguf == "nomic-bert"
    assert hyper == from_config(FIRST)[1]
    assert (hyper.n_ctx_train, hyper.n_ff, hyper.head_dim, hyper.n_token_types) == (2048, 3072, 64, 2)
    assert hyper.rope is not None
    assert (hyper.rope.base, hyper.rope.dim) == (1000.0, 64)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"prenorm": True}, "prenorm"),
        ({"activation_function": "gelu"}, "activation_function"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"qkv_proj_bias": True}, "qkv_proj_bias"),
        ({"rotary_emb_interleaved": True}, "rotary_emb_interleaved"),
        ({"rotary_scaling_factor": 2.0}, "rotary_scaling_factor"),
        ({"rotary_emb_fraction": 0.5}, "rotary_emb_fraction"),
        ({"num_experts": 8, "moe_every_n_layers": 2}, "moe_every_n_layers"),
    ],
)
def test_what_would_change_the_mathematics_is_refused(changed: dict[str, Any], word: str) -> None:
    with pytest.raises(Unsupported, match=word):
        from_config({**FIRST, **changed})


def test_a_configuration_without_sizes_is_refused() -> None:
    with pytest.raises(InvalidModelFile, match="hidden_size"):
        from_config({key: value for key, value in FIRST.items() if key != "n_embd"})


def test_vectors_are_the_same_on_both_engines(tmp_path: Path) -> None:
    tensors = checkpoint(CONFIG)
    for name, values in tensors.items():
        values += np.float32(name.endswith(("ln.weight", "norm1.weight", "norm2.weight")))
    source = folder_of(tmp_path / "source", CONFIG, dtype="F32", tensors=tensors)
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    texts = [
        "".join(chr(0x4E00 + at) for at in range(start, start + size)) for start, size in ((0, 5), (9, 100), (3, 1))
    ]
    found = []
    for to in ("gguf", "onnx"):
        path = convert(source, tmp_path / f"made.{to}", ConvertParams(to=to, quant="f32", verify=False)).path
        if to == "gguf":
            with GGUFFile.open(path) as file:
                assert check_header(file) == []
        with edgellm.load(path) as model:
            assert (model.info.can_embed, model.info.can_generate, model.n_ctx) == (True, False, 128)
            vectors = model.embed(texts)
            found.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    assert ((found[0] * found[1]).sum(axis=1) > 0.99999).all()
    assert found[0][0] @ found[0][1] < 0.9
