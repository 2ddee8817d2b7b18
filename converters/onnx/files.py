"""The small files of an ONNX folder: what edgellm, onnxruntime-genai and transformers.js read beside the graph.

config.json  generation_config.json  tokenizer.json  tokenizer_config.json  chat_template.jinja  genai_config.json
onnx/model_q4.onnx  onnx/model_q4.onnx_data
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgellm.architectures import Architecture, Hyper
from edgellm.formats.confined import file_in, path_in

from ..description import Source
from ..folder.source import MAX_INDEX
from ..gguf.source import GGUF
from ..tokens import read_gguf, read_huggingface, to_files
from .graph.carrier import Carrier
from .recipes import Choice

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
_COPIED = (
    _TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
_RENEWED = {"quantization_config", "transformers.js_config"}
_POOLING = "1_Pooling/config.json"


def model_file(choices: Sequence[Choice]) -> str:
    """The path of the graph in the folder: transformers.js tells by the name what most of its layers are."""
    sizes = {"": 0, "_int8": 0, "_q4": 0}
    for choice in choices:
        if not choice.name.startswith("blk."):
            continue
        bits = choice.storage.bits if isinstance(choice.storage, Carrier) else 0
        sizes[{4: "_q4", 8: "_int8"}.get(bits, "")] += choice.nbytes
    return f"onnx/model{max(sizes, key=lambda name: sizes[name])}.onnx"


def texts_of(checkpoint: Source, architecture: Architecture, hyper: Hyper, more: Mapping[str, Any]) -> dict[str, bytes]:
    """The files by name, without those that name the graph; more: what config.json also says.

    Raises Unsupported, InvalidModelFile.
    """
    if isinstance(checkpoint, GGUF):
        vocabulary = read_gguf(checkpoint.file)
        made = {name: text.encode() for name, text in to_files(vocabulary).items()}
        special = vocabulary.special
        ids = {f"{name}_token_id": special[name] for name in ("bos", "eos", "pad") if name in special}
        made[_CONFIG] = _json({**more, **architecture.config(hyper), **ids, "torch_dtype": "float32"})
        return made | (_sentences(hyper) if not hyper.causal else {})
    folder = checkpoint.folder
    made = {}
    for name in _COPIED:
        path = file_in(folder, name)
        if path.is_file() and path.stat().st_size <= MAX_INDEX:
            made[name] = path.read_bytes()
    pooling = path_in(folder, _POOLING)
    if pooling.is_file():
        made[_POOLING] = pooling.read_bytes()
    if _TOKENIZER not in made:
        texts = to_files(read_huggingface(folder, hyper.n_vocab, pre=None))
        made = {name: text.encode() for name, text in texts.items()} | made
    config = {key: value for key, value in checkpoint.config.items() if key not in _RENEWED}
    made[_CONFIG] = _json(config)
    return made


def finished(
    texts: Mapping[str, bytes], architecture: Architecture, hyper: Hyper, n_ctx: int, graph: str, *, external: bool
) -> dict[str, bytes]:
    """The files with those that name the graph. external: whether it has a data file."""
    config = json.loads(texts[_CONFIG])
    name = Path(graph).name
    dtype = {"model_q4.onnx": "q4", "model_int8.onnx": "int8"}.get(name, "fp32")
    data = {"use_external_data_format": {name: 1}} if external else {}
    config["transformers.js_config"] = {"dtype": dtype, **data}
    made = dict(texts) | {_CONFIG: _json(config)}
    if hyper.causal:
        generation = json.loads(texts.get("generation_config.json", b"{}"))
        made["genai_config.json"] = _json(_genai(architecture, hyper, n_ctx, graph, {**config, **generation}))
    return made


def _genai(architecture: Architecture, hyper: Hyper, n_ctx: int, graph: str, ids: Mapping[str, Any]) -> dict[str, Any]:
    """https://onnxruntime.ai/docs/genai/reference/config.html"""
    eos = ids.get("eos_token_id")
    pad = ids.get("pad_token_id")
    first = eos[0] if isinstance(eos, list) and eos else eos
    tokens = {
        "bos_token_id": ids.get("bos_token_id"),
        "eos_token_id": eos,
        "pad_token_id": first if pad is None else pad,
    }
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


def _sentences(hyper: Hyper) -> dict[str, bytes]:
    """What sentence-transformers writes of an encoder: how one vector is made of the tokens' ones."""
    kind = hyper.pooling if hyper.pooling in ("mean", "cls", "last") else "mean"
    modes = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
    flags = {f"pooling_mode_{name}": name == modes[kind] for name in modes.values()}
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    return {
        _POOLING: _json({"word_embedding_dimension": hyper.n_embd, **flags}),
        "modules.json": json.dumps(modules, indent=2).encode(),
    }


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=2, ensure_ascii=False).encode()
