"""ModelInfo of an ONNX folder, from the graph and the configurations beside it, without loading the model."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from edgellm.backends.base import ModelInfo
from edgellm.backends.onnx.graph import Roles, all_nodes
from edgellm.errors import InvalidModelFile, ModelError
from edgellm.files import regular
from edgellm.formats.confined import file_in, model_name
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_folder import ModelFolder, section
from edgellm.formats.onnx_graph import NUMPY, WIDTH, Graph, Node
from edgellm.formats.origin import GENERAL, base_models, licence, of_card, parse_general
from edgellm.tokenizers.ends import end_ids
from edgellm.tokenizers.text import TextTokenizer

LABELS = {"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16"}
BLOCKWISE = {"MatMulNBits": (1, 2, 3), "GatherBlockQuantized": (0, 2, 3)}  # inputs: weights, scales, zero points
MAX_CARD = 256 << 10  # bytes of a README that are looked at
MANIFEST = "edgellm.tensors"  # metadata of files that edgellm's converter wrote
OFFSET = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl")  # whose positions begin behind the padding's id
SHORTEST_TRAINED = 512  # tokens; what a model that says nothing is taken to have been trained for


def model_info(file: ONNXFile, folder: ModelFolder, roles: Roles, tokenizer: TextTokenizer) -> ModelInfo:
    """What is known of the model. Raises InvalidModelFile."""
    config, genai = folder.config, folder.genai
    sources = (config, genai, section(genai, "decoder"))
    manifest = _manifest(file)
    n_params, types, quantization = _listed(file.graph, manifest) if manifest else _weights(file.graph)
    stored = sum(types.values())
    n_ctx = _first(sources, "max_position_embeddings", "n_positions", "context_length") or SHORTEST_TRAINED
    if config.get("model_type") in OFFSET:
        n_ctx = max(1, n_ctx - 1 - (_first(sources, "pad_token_id") or 0))
    n_embd = _first(sources, "hidden_size", "n_embd") or 0
    n_head = _first(sources, "num_attention_heads", "n_head") or 0
    n_vocab = roles.n_vocab or _first(sources, "vocab_size") or tokenizer.n_vocab
    bos, eos = (_named_ids(folder, tokenizer, name, n_vocab) for name in ("bos", "eos"))
    per_token = sum(each.heads * each.size * np.dtype(NUMPY[each.dtype]).itemsize for each in roles.kept)
    if roles.decodes and n_embd == 0:
        n_embd = n_head * roles.kept[0].size
    stated = config.get("license")
    added = {text: token for text, token in tokenizer.added.items() if token < n_vocab}
    general = _general(file, folder)
    return ModelInfo(
        path=str(folder.root if folder.model.parent in (folder.root, folder.root / "onnx") else folder.model),
        format="onnx",
        architecture=str(genai.get("type") if not config.get("model_type") else config["model_type"] or "unknown"),
        name=str(general.get("general.name") or _name(folder)),
        n_vocab=n_vocab,
        n_ctx_train=min(n_ctx, roles.max_tokens or n_ctx, _first((genai,), "context_length") or n_ctx),
        n_embd=n_embd,
        n_layer=len(roles.kept) // 2 or _first(sources, "num_hidden_layers", "n_layer") or 0,
        n_head=n_head,
        n_ff=_first(sources, "intermediate_size", "n_inner") or 4 * n_embd,
        n_params=n_params,
        file_bytes=sum(path.stat().st_size for path in (file.path, *file.data_paths)),
        bits_per_weight=8 * stored / n_params if n_params else 0.0,
        quantization=quantization,
        tensor_types=dict(sorted(types.items(), key=lambda item: -item[1])),
        kv_bytes_per_token=per_token,
        fingerprint=_fingerprint(file, folder),
        stop_ids=end_ids(added, eos) if roles.decodes else frozenset(),
        bos_id=next(iter(bos), None),
        eos_id=next(iter(eos), None),
        chat_template=_chat_template(folder),
        license=licence(general) or (stated if isinstance(stated, str) else None),
        base_models=base_models(general),
        can_truncate=roles.decodes,
        can_fork=roles.decodes,
        can_embed=not roles.decodes and not roles.ranks,
        can_rerank=roles.ranks,
        can_generate=roles.decodes,
    )


def _manifest(file: ONNXFile) -> Mapping[str, Mapping[str, Any]]:
    """Where edgellm's converter put each tensor, {} in other files. Raises InvalidModelFile.

    {"blk.0.attn_q.weight": {"carrier": "INT4/32", "shape": [576, 576], "parts": [[NAME, 0, 576]]}}: NAME is what the
    names of the initializers begin with.
    """
    text = file.metadata.get(MANIFEST)
    if text is None:
        return {}
    try:
        manifest = json.loads(text)
        for entry in manifest.values():
            rows = [stop - start for _, start, stop in entry["parts"]]
            known = isinstance(entry["carrier"], str) and all(isinstance(part[0], str) for part in entry["parts"])
            if not known or not all(_is_count(number) for number in (*entry["shape"], *rows)):
                raise ValueError("an entry is not as edgellm writes them")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidModelFile(f"{file.path}: {MANIFEST} is damaged ({str(error)[:200]}); convert it again") from None
    return {str(name): entry for name, entry in manifest.items()}


def _listed(graph: Graph, manifest: Mapping[str, Mapping[str, Any]]) -> tuple[int, dict[str, int], str]:
    """What `_weights` gives, by what the converter wrote down: tensors, and carriers for types. The bytes of rows that
    lie together are split by their number; what corrects a matrix counts to its bytes."""
    stored = _bytes_by_base(graph, {str(part[0]) for entry in manifest.values() for part in entry["parts"]})
    rows = defaultdict[str, int](int)
    for entry in manifest.values():
        for base, start, stop in entry["parts"]:
            rows[base] += stop - start
    types, layers = defaultdict[str, int](int), defaultdict[str, int](int)
    for name, entry in manifest.items():
        parts = ((base, stop - start) for base, start, stop in entry["parts"])
        nbytes = sum(stored[base] * count // rows[base] for base, count in parts if count)
        types[entry["carrier"]] += nbytes
        layers[entry["carrier"]] += nbytes if name.startswith("blk.") else 0
    n_params = sum(math.prod(entry["shape"]) for entry in manifest.values())
    return n_params, types, max(layers, key=lambda label: layers[label], default="none")


def _bytes_by_base(graph: Graph, bases: set[str]) -> Mapping[str, int]:
    """Bytes of the initializers whose names begin with each of these, followed by nothing or a dot."""
    found = defaultdict[str, int](int)
    for each in graph.initializers:
        ends = (at for at in range(len(each.name), 0, -1) if each.name[at : at + 1] in ("", "."))
        base = next((each.name[:at] for at in ends if each.name[:at] in bases), None)
        if base is not None:
            found[base] += each.nbytes
    return found


def _weights(graph: Graph) -> tuple[int, dict[str, int], str]:
    """The number of weights, the bytes by type of storage, and the type that most of them have. Constants, rotary
    tables and scales of the cache are not weights; those of weights, and zero points, count with what they belong to.
    """
    blockwise: dict[str, tuple[str, int]] = {}  # of an initializer: the label and how many weights a byte holds
    parts: dict[str, str] = {}  # scales and zero points: the label
    aside: set[str] = set()
    for node in all_nodes(graph):
        if node.op in BLOCKWISE:
            weights, *rest = (node.inputs[at] if at < len(node.inputs) else "" for at in BLOCKWISE[node.op])
            bits = _attribute(node, "bits", 4)
            label = f"INT{bits}/{_attribute(node, 'block_size', 0)}"
            blockwise[weights] = label, 8 // max(1, bits)
            parts |= dict.fromkeys(filter(None, rest), label)
        elif node.op == "GroupQueryAttention":
            aside.update(node.inputs[7:9], node.inputs[12:14])
    n_params, types = 0, defaultdict[str, int](int)
    for each in graph.initializers:
        if each.name in aside or each.dtype in ("INT64", "INT32", "BOOL") or not each.shape:
            continue
        if each.name in blockwise:
            label, per_byte = blockwise[each.name]
            n_params += math.prod(each.shape) * (per_byte if WIDTH.get(each.dtype) == 1 else 1)
        elif each.name in parts:
            label = parts[each.name]
        else:
            label = LABELS.get(each.dtype, each.dtype)
            n_params += math.prod(each.shape)
        types[label] += each.nbytes
    return n_params, types, max(types, key=lambda name: types[name], default="none")


def _attribute(node: Node, name: str, default: int) -> int:
    value = node.attributes.get(name, default)
    return value if isinstance(value, int) else default


def _fingerprint(file: ONNXFile, folder: ModelFolder) -> str:
    """The graph, its weights and its tokenizer."""
    digest = hashlib.blake2b(file.fingerprint.encode(), digest_size=16)
    path = folder.file("tokenizer.json")
    if path is not None:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _named_ids(folder: ModelFolder, tokenizer: TextTokenizer, role: str, n_vocab: int) -> list[int]:
    """The ids that the tokenizer and the configurations name for "bos" or "eos", best first; one may name
    several. Those that the model does not have count as not named."""
    named: list[Any] = [getattr(tokenizer, f"{role}_id")]
    for source in (folder.generation, folder.config, folder.genai):
        for place in (source, section(source, "text_config")):
            value = place.get(f"{role}_token_id")
            named += value if isinstance(value, list) else [value]
    return [int(token) for token in named if _is_count(token) and token < n_vocab]


def _chat_template(folder: ModelFolder) -> str | None:
    """chat_template.jinja, else chat_template.json, else the one in tokenizer_config.json (the one named default where
    there are several). One of nothing but blanks is none.
    """
    given: list[Any] = [folder.text("chat_template.jinja")]
    for source in (folder.json("chat_template.json"), folder.tokenizer_config):
        value = source.get("chat_template")
        if isinstance(value, list):
            named = [
                item.get("template") for item in value if isinstance(item, Mapping) and item.get("name") == "default"
            ]
            value = named[-1] if named else None
        given.append(value)
    return next((text for text in given if isinstance(text, str) and text.strip()), None)


def _general(file: ONNXFile, folder: ModelFolder) -> dict[str, Any]:
    """Whose model it is: as the card in the folder says, else as edgellm's converter wrote down."""
    written = parse_general(file.metadata.get(GENERAL, "{}"))
    try:
        with open(file_in(folder.root, "README.md"), "rb", opener=regular) as card:
            said = of_card(card.read(MAX_CARD).decode("utf-8", "replace"))
    except (OSError, ModelError):
        said = {}
    if any(key.startswith("general.license") for key in said):
        written = {key: value for key, value in written.items() if not key.startswith("general.license")}
    return {**said, **written}


def _name(folder: ModelFolder) -> str:
    """What the model was published as, else the name of its folder."""
    value = folder.config.get("_name_or_path")
    if isinstance(value, str) and value.strip("/. \\"):
        return Path(value.replace("\\", "/")).name
    return model_name(folder.root)


def _first(sources: tuple[Mapping[str, Any], ...], *keys: str) -> int | None:
    """The first positive whole number under one of the keys; a model of several parts has its own under text_config."""
    for source in sources:
        for place in (source, section(source, "text_config")):
            for key in keys:
                value = place.get(key)
                if _is_count(value) and value:
                    if value >= 2**31:
                        raise InvalidModelFile(f"{key} is {value} in a configuration; that cannot be")
                    return int(value)
    return None


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
