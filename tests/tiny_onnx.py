"""Tiny random ONNX models for tests, written with the `onnx` package: a folder each, as exporters lay them out.

decoder("shared")   llama-like: 2 layers, width 64, 4 heads of 16 over 2 KV heads, GroupQueryAttention with rotation
decoder("int8")     the same weights, keys and values kept in 8 bits with a scale for each of their numbers
decoder("concat")   the same weights in plain operators, with position_ids and a KV cache that each pass copies
encoder()           one bidirectional layer: last_hidden_state
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiny_models import bpe_vocabulary

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, FF, CONTEXT = 2, 64, 4, 2, 16, 96, 4096
VOCABULARY = bpe_vocabulary()
N_VOCAB = len(VOCABULARY["tokenizer.ggml.tokens"])
PROMPT = [int(token) for token in np.random.default_rng(1).integers(3, N_VOCAB, 48)]
KINDS = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}


class Maker:
    """Collects the parts of a graph."""

    def __init__(self, seed: int = 7) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._count = 0

    def node(self, op: str, *inputs: str, domain: str = "", outputs: int = 1, to: str = "", **attributes: Any) -> Any:
        self._count += 1
        names = [to or f"{op}_{self._count}"] if outputs == 1 else [f"{op}_{self._count}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, f"n{self._count}", domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def weight(self, name: str, values: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def noise(self, name: str, *shape: int, scale: float = 0.2) -> str:
        return self.weight(name, self.random.normal(0, scale, shape).astype(np.float32))

    def ints(self, *values: int) -> str:
        self._count += 1
        return self.weight(f"c{self._count}", np.array(values, np.int64))

    def scalar(self, value: int) -> str:
        self._count += 1
        return self.weight(f"c{self._count}", np.array(value, np.int64))

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, kind: int, shape: Sequence[int | str]) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "tiny", self.inputs, self.outputs, self.weights)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="tests")


def caches() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    angles = np.outer(np.arange(CONTEXT), 10000.0 ** (-np.arange(0, HEAD, 2) / HEAD))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def decoder(layout: str = "shared", *, keep: bool = True, seed: int = 7) -> onnx.ModelProto:
    """keep: with `num_logits_to_keep` (not for layout "concat")."""
    m = Maker(seed)
    shared = layout != "concat"
    kept = TensorProto.INT8 if layout == "int8" else TensorProto.FLOAT
    m.input("input_ids", TensorProto.INT64, ["batch", "sequence"])
    m.input("attention_mask", TensorProto.INT64, ["batch", "total"])
    cos, sin = (m.weight(name, table) for name, table in zip(("cos", "sin"), caches(), strict=True))
    if shared:
        counts = m.node("ReduceSum", "attention_mask", m.ints(1), keepdims=0)
        lengths = m.node("Cast", m.node("Sub", counts, m.ints(1)), to="lengths")
        m.nodes[-1].attribute.append(helper.make_attribute("to", TensorProto.INT32))
        total = m.node("Gather", m.node("Shape", "attention_mask"), m.scalar(1))
        total = m.node("Cast", total, to="total32")
        m.nodes[-1].attribute.append(helper.make_attribute("to", TensorProto.INT32))
    else:
        m.input("position_ids", TensorProto.INT64, ["batch", "sequence"])
        total = m.node("Gather", m.node("Shape", "attention_mask"), m.scalar(1))
        keys = m.node("Range", m.scalar(0), total, m.scalar(1))
        later = m.node("Greater", keys, m.node("Unsqueeze", "position_ids", m.ints(2)))
        bias = m.node("Where", later, m.weight("low", np.float32(-1e9)), m.weight("zero", np.float32(0)))
        bias = m.node("Unsqueeze", bias, m.ints(1, 2))  # (b, 1, 1, s, total)
        rows = [m.node("Unsqueeze", m.node("Gather", table, "position_ids"), m.ints(1)) for table in (cos, sin)]
    x = m.node("Gather", m.noise("embed", N_VOCAB, WIDTH, scale=1.0), "input_ids")
    for layer in range(LAYERS):
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        for name in past:
            m.input(name, kept, ["batch", KV_HEADS, "past", HEAD])
        h = norm(m, x, f"norm{layer}")
        q, k, v = (
            m.node("MatMul", h, m.noise(f"{name}{layer}", WIDTH, size))
            for name, size in (("q", WIDTH), ("k", KV_HEADS * HEAD), ("v", KV_HEADS * HEAD))
        )
        if shared:
            attended, quantized, scales = f"attended{layer}", {}, []
            if layout == "int8":
                each = np.linspace(0.06, 0.08, KV_HEADS * HEAD, dtype=np.float32).reshape(1, KV_HEADS, 1, HEAD)
                scales = ["", "", "", m.weight(f"kscale{layer}", each), m.weight(f"vscale{layer}", each[..., ::-1])]
                quantized = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
            m.nodes.append(
                helper.make_node(
                    "GroupQueryAttention",
                    [q, k, v, *past, lengths, total, cos, sin, *scales],
                    [attended, *present],
                    f"gqa{layer}",
                    domain="com.microsoft",
                    num_heads=HEADS,
                    kv_num_heads=KV_HEADS,
                    do_rotary=1,
                    **quantized,
                )
            )
        else:
            q, k = (rotate(m, heads(m, part, count), rows) for part, count in ((q, HEADS), (k, KV_HEADS)))
            k = m.node("Concat", past[0], k, axis=2, to=present[0])
            v = m.node("Concat", past[1], heads(m, v, KV_HEADS), axis=2, to=present[1])
            q = m.node("Reshape", q, m.ints(0, KV_HEADS, HEADS // KV_HEADS, -1, HEAD))
            k = m.node("Transpose", m.node("Unsqueeze", k, m.ints(2)), perm=[0, 1, 2, 4, 3])
            scores = m.node("Mul", m.node("MatMul", q, k), m.weight(f"scale{layer}", np.float32(HEAD**-0.5)))
            weights = m.node("Softmax", m.node("Add", scores, bias), axis=-1)
            attended = m.node("MatMul", weights, m.node("Unsqueeze", v, m.ints(2)))
            attended = m.node("Reshape", attended, m.ints(0, HEADS, -1, HEAD))
            attended = m.node("Transpose", attended, perm=[0, 2, 1, 3])
            attended = m.node("Reshape", attended, m.ints(0, -1, WIDTH))
        x = m.node("Add", x, m.node("MatMul", attended, m.noise(f"o{layer}", WIDTH, WIDTH)))
        h = m.node("MatMul", norm(m, x, f"ffnorm{layer}"), m.noise(f"up{layer}", WIDTH, FF))
        h = m.node("Mul", h, m.node("Sigmoid", h))
        x = m.node("Add", x, m.node("MatMul", h, m.noise(f"down{layer}", FF, WIDTH)))
        for name in present:
            m.output(name, kept, ["batch", KV_HEADS, "total", HEAD])
    if keep and shared:
        m.input("num_logits_to_keep", TensorProto.INT64, [1])
        m.weight("num_logits_to_keep", np.zeros(1, np.int64))
        first = m.node("Neg", "num_logits_to_keep")
        x = m.node("Slice", x, first, m.ints(2**63 - 1), m.ints(1))
    x = norm(m, x, "last")
    bits = m.weight("head", m.random.integers(0, 256, (N_VOCAB, WIDTH // 32, 32), np.uint8))
    halves = m.random.normal(0, 0.02, (N_VOCAB, WIDTH // 32)).astype(np.float16)  # as our kernels keep them
    scales = m.weight("head_scales", halves.astype(np.float32))
    sizes = {"K": WIDTH, "N": N_VOCAB, "bits": 8, "block_size": 32, "accuracy_level": 4}
    m.node("MatMulNBits", x, bits, scales, domain="com.microsoft", to="logits", **sizes)
    m.output("logits", TensorProto.FLOAT, ["batch", "rows", N_VOCAB])
    return m.model()


def encoder(*, seed: int = 3) -> onnx.ModelProto:
    """last_hidden_state (batch, sequence, WIDTH) of one layer in which every token sees every unmasked one."""
    m = Maker(seed)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        m.input(name, TensorProto.INT64, ["batch", "sequence"])
    x = m.node("Gather", m.noise("embed", N_VOCAB, WIDTH, scale=1.0), "input_ids")
    x = m.node("Add", x, m.node("Gather", m.noise("types", 2, WIDTH), "token_type_ids"))
    seen = m.node("Equal", m.node("Unsqueeze", "attention_mask", m.ints(1)), m.scalar(1))
    bias = m.node("Where", seen, m.weight("zero", np.float32(0)), m.weight("low", np.float32(-1e9)))
    q, k, v = (m.node("MatMul", x, m.noise(name, WIDTH, WIDTH)) for name in "qkv")
    scores = m.node("Add", m.node("MatMul", q, m.node("Transpose", k, perm=[0, 2, 1])), bias)
    x = m.node("Add", x, m.node("MatMul", m.node("Softmax", scores, axis=-1), v), to="last_hidden_state")
    m.output("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", WIDTH])
    return m.model()


def norm(m: Maker, x: str, name: str) -> str:
    scale = m.noise(name, WIDTH, scale=1.0)
    return str(m.node("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=1e-5, stash_type=1))


def heads(m: Maker, x: str, count: int) -> str:
    return str(m.node("Transpose", m.node("Reshape", x, m.ints(0, -1, count, HEAD)), perm=[0, 2, 1, 3]))


def rotate(m: Maker, x: str, rows: list[str]) -> str:
    cos, sin = rows
    a, b = (m.node("Slice", x, m.ints(start), m.ints(start + HEAD // 2), m.ints(3)) for start in (0, HEAD // 2))
    first = m.node("Sub", m.node("Mul", a, cos), m.node("Mul", b, sin))
    second = m.node("Add", m.node("Mul", b, cos), m.node("Mul", a, sin))
    return str(m.node("Concat", first, second, axis=3))


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json of `tiny_models.bpe_vocabulary`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = {token: index for index, token in enumerate(VOCABULARY["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in VOCABULARY["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(tokens, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<|end|>", "<|bos|>", "<|pad|>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for message in messages %}<|bos|>{{ message['content'] }}<|end|>{% endfor %}"
    config = {"bos_token": "<|bos|>", "eos_token": "<|end|>", "add_bos_token": False, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def write_decoder(folder: Path, layout: str = "shared", name: str = "model.onnx", **options: Any) -> Path:
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    onnx.save(decoder(layout, **options), folder / "onnx" / name)
    config = {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "intermediate_size": FF,
        "max_position_embeddings": CONTEXT,
        "vocab_size": N_VOCAB,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0]}), encoding="utf-8")
    write_tokenizer(folder)
    return folder


def write_encoder(folder: Path, *, normalize: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(encoder(), folder / "model.onnx")
    config = {"model_type": "bert", "hidden_size": WIDTH, "num_hidden_layers": 1, "max_position_embeddings": 128}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
    modules += [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    modules += [{"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}] if normalize else []
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    write_tokenizer(folder)
    return folder
