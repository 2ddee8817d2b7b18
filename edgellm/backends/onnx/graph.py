"""Roles: what a graph's inputs and outputs are for, read from the graph, never from the model's name.

A decoder keeps the state of attention in one of two ways:

    shared   GroupQueryAttention: past and present are one buffer of fixed capacity, the mask tells how much is in use
    copied   past (length n) in, present (length n + new) out; the graph joins them on every pass

Names are those of optimum and transformers.js (input_ids, past_key_values.0.key, present.0.key, …) unless
genai_config.json gives others; the cache of GroupQueryAttention is found through its nodes.
GroupQueryAttention: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidModelFile, Unsupported, UnsupportedArchitecture
from edgellm.formats.onnx_folder import section
from edgellm.formats.onnx_graph import DATA_TYPES, Graph, Node, Value

KV_TYPES = {"FLOAT": "f32", "FLOAT16": "f16", "BFLOAT16": "bf16", "INT8": "int8", "UINT8": "uint8"}
WHOLE = ("INT64", "INT32")
HIDDEN = ("sentence_embedding", "last_hidden_state", "token_embeddings")  # of encoders; the first needs no pooling
MAX_LAYERS, MAX_HEADS, MAX_HEAD_SIZE = 1024, 4096, 4096  # beyond every model; larger numbers are damage


@dataclass(frozen=True, slots=True)
class Kept:
    """One tensor of the KV cache, keys or values of a layer: (batch, heads, tokens, size) of dtype."""

    past: str
    present: str
    dtype: str  # as in onnx_graph.DATA_TYPES
    heads: int
    size: int


@dataclass(frozen=True, slots=True)
class Roles:
    """Names of inputs and outputs, None where the graph has none. types: the dtype of each input and output.

    output: logits, the hidden states of an encoder, or the scores of a reranker. kept: empty for both of these. rows:
    of logits a pass gives: "keep" (as many as `keep` is fed), "all", or "last". max_tokens: rows of the rotary caches,
    the most tokens that a sequence can have; None where the graph sets no limit.
    """

    ids: str
    mask: str | None
    positions: str | None
    token_types: str | None
    keep: str | None
    output: str
    kept: tuple[Kept, ...]
    shared: bool
    rows: str
    n_vocab: int | None
    max_tokens: int | None
    types: Mapping[str, int]

    @property
    def decodes(self) -> bool:
        """A decoder, not an encoder."""
        return bool(self.kept)

    @property
    def ranks(self) -> bool:
        """A reranker: an encoder that gives two texts one score."""
        return not self.kept and self.output not in HIDDEN

    @property
    def pooled(self) -> bool:
        """The output is one vector, or one score, for each text."""
        return self.ranks or self.output == HIDDEN[0]

    @property
    def kv_type(self) -> str | None:
        """The dtype of the KV cache; None without one."""
        return KV_TYPES[self.kept[0].dtype] if self.kept else None

    def cast(self, name: str, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Whole numbers as the input `name` takes them."""
        kind = np.int32 if self.types[name] == DATA_TYPES["INT32"] else np.int64
        return np.ascontiguousarray(values, kind)


def roles(graph: Graph, path: Path, config: Mapping[str, Any], genai: Mapping[str, Any]) -> Roles:
    """What the graph of `path` takes and gives. config: config.json; genai: genai_config.json's model; {} without.

    Raises UnsupportedArchitecture for a graph that is neither a decoder with a KV cache nor an encoder, and names the
    inputs that nothing here can feed; InvalidModelFile for numbers that cannot be.
    """
    _check_numbers(graph, path)
    decoder = section(genai, "decoder")
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    named = _names(decoder.get("inputs"))
    given = _names(decoder.get("outputs"))

    def role(name: str) -> str | None:
        name = named.get(name, name)
        return name if name in inputs else None

    attention = [node for node in graph.nodes if node.op == "GroupQueryAttention"]
    sizes = _Sizes(path, config, decoder)
    if attention:
        kept = _of_nodes(attention, inputs, outputs, sizes)
    else:
        kept = _of_names(inputs, outputs, named, given, sizes)
    logits = given.get("logits", "logits")
    hidden = next((name for name in HIDDEN if name in outputs), None)
    output = logits if kept else hidden or (logits if _is_score(outputs.get(logits), path, config) else None)
    if output is None or output not in outputs:
        raise UnsupportedArchitecture(
            f"{path}: neither a decoder with a KV cache nor an encoder: its outputs are {_some(outputs)}. "
            "Export the model with its cache (text-generation-with-past in optimum's words)"
        )
    ids = role("input_ids")
    fed = {role(name) for name in ("input_ids", "attention_mask", "position_ids", "token_type_ids")}
    keep = role("num_logits_to_keep")
    known = fed | {keep} | {each.past for each in kept} | {each.name for each in graph.initializers}
    unknown = [name for name in inputs if name not in known]
    if ids is None or unknown:
        what = f"asks for {_some(unknown)}" if unknown else "does not take input_ids"
        raise UnsupportedArchitecture(f"{path}: the graph {what}, which edgellm cannot give; export another one")
    for name in filter(None, (*fed, keep)):
        if inputs[name].dtype not in WHOLE:
            raise UnsupportedArchitecture(f"{path}: {name} is {inputs[name].dtype}, not one of {', '.join(WHOLE)}")
    if outputs[output].dtype not in ("FLOAT", "FLOAT16"):
        raise UnsupportedArchitecture(f"{path}: {output} is {outputs[output].dtype}; only FLOAT and FLOAT16 are read")
    shape = outputs[output].shape
    width = shape[-1] if shape else None
    values = (*graph.inputs, *graph.outputs)
    return Roles(
        ids=ids,
        mask=role("attention_mask"),
        positions=role("position_ids"),
        token_types=role("token_type_ids"),
        keep=keep,
        output=output,
        kept=kept,
        shared=bool(attention),
        rows="keep" if keep else "last" if len(shape) == 3 and shape[1] == 1 else "all",
        n_vocab=width if isinstance(width, int) and kept else None,
        max_tokens=_rotary_rows(attention, graph),
        types={value.name: DATA_TYPES[value.dtype] for value in values if value.dtype in DATA_TYPES},
    )


def _is_score(logits: Value | None, path: Path, config: Mapping[str, Any]) -> bool:
    """Whether these are the logits of a text's classifier, one for each text. Raises Unsupported for several."""
    if logits is None or len(logits.shape) != 2:
        return False
    labels = config.get("id2label")
    count = logits.shape[1] if isinstance(logits.shape[1], int) else len(labels) if isinstance(labels, Mapping) else 1
    if count != 1:
        raise Unsupported(f"{path}: a classifier of {count} labels; what scores texts has one")
    return True


def all_nodes(graph: Graph) -> Iterator[Node]:
    """The nodes of a graph, and of the branches in it."""
    for node in graph.nodes:
        yield node
        for value in node.attributes.values():
            if isinstance(value, Graph):
                yield from all_nodes(value)


def _check_numbers(graph: Graph, path: Path) -> None:
    """ONNX Runtime reads these numbers as 32 bits, and divides by the heads without a look: the process would die.

    Raises InvalidModelFile.
    """
    for node in all_nodes(graph):
        for name, value in node.attributes.items() if node.domain == "com.microsoft" else ():
            low = 1 if name in ("num_heads", "kv_num_heads") and node.op == "GroupQueryAttention" else -(2**31)
            if isinstance(value, int) and not low <= value < 2**31:
                raise InvalidModelFile(f"{path}: {name} of {node.name[:100]!r} ({node.op[:100]}) is {value}; damaged")


class _Sizes:
    """Sizes of the KV cache where the graph leaves them open."""

    def __init__(self, path: Path, config: Mapping[str, Any], decoder: Mapping[str, Any]) -> None:
        self.path = path
        heads = _count(config, "num_key_value_heads") or _count(decoder, "num_key_value_heads")
        queries = _count(config, "num_attention_heads") or _count(decoder, "num_attention_heads")
        width = _count(config, "hidden_size") or _count(decoder, "hidden_size")
        self.heads = heads or queries
        size = _count(config, "head_dim") or _count(decoder, "head_size")
        self.size = size or (width // queries if width and queries else None)

    def kept(self, past: Value, present: Value, node: Node | None) -> Kept:
        """The tensor of a pair of input and output. Raises UnsupportedArchitecture, InvalidModelFile."""
        if past.dtype not in KV_TYPES or past.dtype != present.dtype or len(past.shape) != 4:
            raise UnsupportedArchitecture(
                f"{self.path}: {past.name} is {past.dtype} of {len(past.shape)} dimensions and {present.name} "
                f"{present.dtype}; a KV cache is (batch, heads, tokens, size) of {', '.join(KV_TYPES)}, alike in both"
            )
        attribute = node.attributes.get("kv_num_heads") if node else None
        heads = next((each for each in (past.shape[1], attribute, self.heads) if isinstance(each, int)), None)
        size = next((each for each in (past.shape[3], self.size) if isinstance(each, int)), None)
        if heads is None or size is None:
            raise InvalidModelFile(f"{self.path}: neither the graph nor a configuration tells the shape of {past.name}")
        if not (0 < heads <= MAX_HEADS and 0 < size <= MAX_HEAD_SIZE):
            raise InvalidModelFile(f"{self.path}: {past.name} has {heads} heads of {size}; that cannot be")
        return Kept(past.name, present.name, past.dtype, heads, size)


def _of_nodes(
    nodes: list[Node], inputs: Mapping[str, Value], outputs: Mapping[str, Value], sizes: _Sizes
) -> tuple[Kept, ...]:
    """The caches that GroupQueryAttention nodes read (inputs 3 and 4) and give back (outputs 1 and 2)."""
    kept: list[Kept] = []
    for node in nodes:
        if node.attributes.get("sliding_window_cache", 0):
            raise Unsupported(f"{sizes.path}: {node.name} keeps only the newest tokens (sliding_window_cache); no part "
                              "of a prompt could be used again. Export the model without it")  # fmt: skip
        for past, present in zip(node.inputs[3:5], node.outputs[1:3], strict=False):
            if past not in inputs or present not in outputs:
                raise UnsupportedArchitecture(
                    f"{sizes.path}: {node.name} does not take and give its KV cache as inputs and outputs of the graph"
                )
            kept.append(sizes.kept(inputs[past], outputs[present], node))
    if len(kept) != 2 * len(nodes) or len({each.past for each in kept}) != len(kept) or len(nodes) > MAX_LAYERS:
        raise UnsupportedArchitecture(f"{sizes.path}: not every GroupQueryAttention node has a KV cache of its own")
    return tuple(kept)


def _of_names(
    inputs: Mapping[str, Value],
    outputs: Mapping[str, Value],
    named: Mapping[str, str],
    given: Mapping[str, str],
    sizes: _Sizes,
) -> tuple[Kept, ...]:
    """The caches whose names count the layers."""
    kept: list[Kept] = []
    for layer in range(MAX_LAYERS):
        for part in ("key", "value"):
            past = named.get(f"past_{part}_names", f"past_key_values.%d.{part}").replace("%d", str(layer))
            present = given.get(f"present_{part}_names", f"present.%d.{part}").replace("%d", str(layer))
            if past in inputs and present in outputs:
                kept.append(sizes.kept(inputs[past], outputs[present], None))
        if len(kept) < 2 * (layer + 1):
            break
    return tuple(kept)


def _rotary_rows(nodes: list[Node], graph: Graph) -> int | None:
    """Rows of the smallest table of cosines or sines that attention reads."""
    shapes = {each.name: each.shape for each in graph.initializers}
    tables = [shapes[name] for node in nodes for name in node.inputs[7:9] if name in shapes]
    return min((shape[0] for shape in tables if shape), default=None)


def _names(value: object) -> dict[str, str]:
    """The names that genai_config.json gives."""
    items = value.items() if isinstance(value, Mapping) else ()
    return {str(key): name for key, name in items if isinstance(name, str)}


def _count(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _some(names: Any) -> str:
    shown = [name[:100] for name in names][:8]
    return (", ".join(shown) + (", …" if len(names) > len(shown) else "")) or "none"
