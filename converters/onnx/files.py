"""The small files of an ONNX folder: what edgellm, onnxruntime-genai and transformers.js read beside the graph.

config.json  generation_config.json  tokenizer.json  tokenizer_config.json  chat_template.jinja  genai_config.json
onnx/model_q4.onnx  onnx/model_q4.onnx_data
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgellm.architectures import Architecture, Hyper, from_config
from edgellm.architectures.seeing import has_parts, text_part

from ..model import Model
from .graph.carrier import Carrier
from .recipes import Choice

_RENEWED = {"quantization_config", "transformers.js_config"}


def model_file(choices: Sequence[Choice]) -> str:
    """The path of the graph in the folder: transformers.js tells by the name what most of its layers are."""
    sizes = {"": 0, "_int8": 0, "_q4": 0}
    for choice in choices:
        if not choice.name.startswith("blk."):
            continue
        bits = choice.storage.bits if isinstance(choice.storage, Carrier) else 0
        sizes[{4: "_q4", 8: "_int8"}.get(bits, "")] += choice.nbytes
    return f"onnx/model{max(sizes, key=lambda name: sizes[name])}.onnx"


def small_files(model: Model, n_ctx: int, graph: str, *, external: bool) -> dict[str, bytes]:
    """All files but the graph and its data, by name; graph: its path. external: whether it has a data file."""
    hyper = model.description.hyper
    made = dict(model.files)
    config = {key: value for key, value in _of_text(model).items() if key not in _RENEWED}
    name = Path(graph).name
    dtype = {"model_q4.onnx": "q4", "model_int8.onnx": "int8"}.get(name, "fp32")
    data = {"use_external_data_format": {name: 1}} if external else {}
    config["transformers.js_config"] = {"dtype": dtype, **data}
    made["config.json"] = _json(config)
    if hyper.causal:
        generation = json.loads(made.get("generation_config.json", b"{}"))
        genai = _genai(model.description.architecture, hyper, n_ctx, graph, {**config, **generation})
        made["genai_config.json"] = _json(genai)
    return made


def _of_text(model: Model) -> dict[str, Any]:
    """config.json of the graph: that of the text where the model also sees, and tied where the graph is."""
    config, found = text_part(model.config), model.description
    if has_parts(model.config):
        ids = {key: value for key, value in model.config.items() if key.endswith("_token_id")}
        own = {"architectures": [found.architecture.classname], "model_type": found.architecture.model_type}
        config = {**ids, **config, **own}
    if from_config({**config, "quantization_config": None})[1].tied != found.hyper.tied:
        config["tie_word_embeddings"] = found.hyper.tied
    return config


def _genai(architecture: Architecture, hyper: Hyper, n_ctx: int, graph: str, ids: Mapping[str, Any]) -> dict[str, Any]:
    """https://onnxruntime.ai/docs/genai/reference/config.html"""
    eos, pad = ids.get("eos_token_id"), ids.get("pad_token_id")
    first = eos[0] if isinstance(eos, list) and eos else eos
    pad = first if pad is None else pad
    tokens = {"bos_token_id": ids.get("bos_token_id"), "eos_token_id": eos, "pad_token_id": pad}
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": graph,
        "head_size": hyper.head_dim,
        "hidden_size": hyper.n_embd,
        "num_attention_heads": hyper.n_head,
        "num_hidden_layers": hyper.n_layer,
        "num_key_value_heads": hyper.n_head_kv,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    kind = architecture.onnx_type or architecture.model_type
    given = {name: number for name, number in tokens.items() if number is not None}
    model = {"type": kind, **given, "context_length": n_ctx, "vocab_size": hyper.n_vocab, "decoder": decoder}
    search = {"max_length": n_ctx, "min_length": 0, "do_sample": False, "past_present_share_buffer": True}
    return {"model": model, "search": search}


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=2).encode()  # escaped: half of a surrogate pair is no UTF-8
