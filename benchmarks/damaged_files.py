"""The broken and odd GGUF files of `damage.py`: four families, each a function (generator, path) -> what it did."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from tiny_models import Tiny, bpe_vocabulary, spm_vocabulary, tiny

from edgellm.architectures import ARCHITECTURES
from edgellm.backends.llamacpp.checks import WEIGHT_TYPES
from edgellm.errors import InvalidParameter
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile

Rng = np.random.Generator


def words(text: str) -> list[str]:
    return text.split()


ARCHS = ["llama", "mixtral", *dict.fromkeys(one.gguf for one in ARCHITECTURES)]
OTHER_ARCHS = words(
    """
    falcon mpt starcoder2 phi2 plamo internlm2 minicpm command-r dbrx olmo olmoe deepseek deepseek2
    nomic-bert t5 t5encoder jais exaone rwkv6 mamba jamba gemma3n gemma4 qwen2moe qwen2vl qwen35 lfm2 clip nonsense
    llama4 bitnet stablelm bloom refact grok chatglm glm4 granitemoe cohere2 apertus gpt-oss smallthinker
    arcee dream
    """
)
TYPES = sorted(GGMLType)


def base(rng: Rng) -> Tiny:
    hidden = int(rng.choice([64, 64, 128, 256]))
    kind = GGMLType(rng.choice([0, 0, 1, 2, 8])) if hidden < 256 else GGMLType(rng.choice([0, 2, 8, 12, 14]))
    return tiny(str(rng.choice(ARCHS)), hidden=hidden, weights=kind, seed=int(rng.integers(1 << 30)))


# --- bytes ------------------------------------------------------------------------------------------------------------


def damage_bytes(rng: Rng, path: Path) -> str:
    base(rng).write(path)
    with GGUFFile.open(path) as file:
        header = min(info.offset for info in file.tensors.values())
        counts, offsets = _numbers(file)
    raw = bytearray(path.read_bytes())
    ways = ["truncate", "flip", "flip", "number", "number", "number", "insert", "nested", "overlap", "blocks"]
    how = str(rng.choice(ways))
    if how == "truncate":
        del raw[int(rng.integers(len(raw) if rng.random() < 0.3 else header)) :]
    elif how == "flip":
        for _ in range(int(rng.integers(1, 9))):
            raw[int(rng.integers(header))] ^= 1 << int(rng.integers(8))
    elif how == "number":
        at, size = counts[int(rng.integers(len(counts)))]
        value = int(rng.choice([0, 1, 2, 255, 1 << 16, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, len(raw), len(raw) // 2]))
        if size == 8 and rng.random() < 0.5:
            value = (1 << int(rng.integers(32, 64))) + int(rng.integers(-2, 3))
        raw[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
        how = f"number at {at} = {value}"
    elif how == "insert":
        at = int(rng.integers(header))
        raw[at:at] = rng.bytes(int(rng.integers(1, 40)))
    elif how == "nested":
        depth = int(rng.choice([1, 2, 50, 5000, 200000]))
        key = b"deep.array"
        nested = struct.pack("<Q", len(key)) + key + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * depth
        raw[24:24] = nested + struct.pack("<IQI", 4, 1, 7)
        raw[16:24] = struct.pack("<Q", struct.unpack_from("<Q", raw, 16)[0] + 1)
    elif how == "overlap":
        for at in rng.choice(offsets, int(rng.integers(1, 4))):
            raw[at : at + 8] = struct.pack("<Q", 32 * int(rng.integers(0, 64)))
    else:
        at = int(rng.integers(header))
        size = int(rng.integers(1, 512))
        raw[at : at + size] = bytes(size) if rng.random() < 0.5 else rng.bytes(len(raw[at : at + size]))
    path.write_bytes(raw)
    return how


def _numbers(file: GGUFFile) -> tuple[list[tuple[int, int]], list[int]]:
    """Places of counts, lengths, types, dimensions and offsets in the header, (position, bytes); those of offsets."""
    raw = bytes(file._shards[0].buffer[: file._shards[0].header_bytes])
    places, offsets = [(4, 4), (8, 8), (16, 8)], []
    for key, entry in file._shards[0].entries.items():
        start = entry.offset - (16 if entry.array else 4)
        places += [(start - len(key.encode()) - 8, 8), (start, 4)]
        if entry.array:
            places += [(start + 4, 4), (start + 8, 8)]
        if entry.item == 8 and entry.items:
            places.append((entry.offset, 8))
        elif entry.item in (4, 6):
            places.append((entry.offset, 4))
    for name, info in file.tensors.items():
        at = raw.rindex(struct.pack("<Q", len(name)) + name.encode())
        dims = at + 8 + len(name)
        offsets.append(dims + 8 + 8 * len(info.shape))
        places += [(at, 8), (dims, 4), (offsets[-1] - 4, 4), (offsets[-1], 8)]
        places += [(dims + 4 + 8 * i, 8) for i in range(len(info.shape))]
    return places, offsets


# --- meaning ----------------------------------------------------------------------------------------------------------

U32S = [0, 1, 2, 3, 5, 7, 31, 33, 63, 65, 255, 511, 512, 513, 1024, 32767, 32768, 1 << 20, 1 << 31, (1 << 32) - 1]
F32S = [0.0, -1.0, 1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"), -1e-5, 0.5]
MODELS = words(
    """
    llama bert gpt2 t5 rwkv plamo2 none no_vocab test hybriddna whitespace xyz
    """
)
PRES = words(
    """
    default llama-bpe qwen2 smollm tekken gemma4 kimi-k2 glm4 chatglm-bpe sarvam-moe deepseek-v3 gpt-4o superbpe
    hunyuan bloom xyz gpt-2 command-r poro-chat viking jais-2 whitespace grok-2 minimax-m2 youtu falcon starcoder
    granite-docling
    """
)
EXTRA_U32 = words(
    """
    expert_count expert_used_count expert_group_count expert_group_used_count nextn_predict_layers pooling_type
    attention.key_length attention.value_length attention.sliding_window vocab_size attention.sliding_window_pattern
    rope.dimension_count rope.scaling.original_context_length embedding_length_out leading_dense_block_count
    expert_shared_count expert_feed_forward_length attention.shared_kv_layers rope.dimension_count_swa
    attention.key_length_swa ssm.conv_kernel attention.kv_lora_rank attention.q_lora_rank expert_gating_func
    interleave_moe_layer_step full_attention_interval embedding_length_per_layer_input decoder_block_count
    """
)
EXTRA_F32 = words(
    """
    rope.freq_base rope.scaling.factor rope.scaling.attn_factor attn_logit_softcapping logit_scale
    final_logit_softcapping attention.max_alibi_bias attention.clamp_kqv attention.scale residual_scale
    embedding_scale rope.freq_base_swa attention.layer_norm_epsilon rope.scaling.yarn_log_multiplier
    rope.scaling.yarn_ext_factor expert_weights_scale
    """
)
TENSORS = words(
    """
    rope_freqs.weight rope_factors_long.weight rope_factors_short.weight output.weight output.bias output_norm.bias
    blk.0.attn_q.bias blk.1.attn_k.bias blk.0.attn_norm.bias blk.0.attn_q.scale blk.0.attn_qkv.weight
    blk.0.attn_output.bias blk.0.ffn_up.bias cls.weight blk.2.attn_q.weight token_types.weight position_embd.weight
    blk.0.attn_sinks.weight dense_2.weight blk.0.attn_q_norm.weight blk.0.ffn_gate_exps.weight output.scale
    blk.0.ffn_down.scale
    """
)


def change_number(rng: Rng, model: Tiny) -> str:
    arch = model.metadata["general.architecture"]
    keys = [key for key in model.metadata if key.startswith(arch)]
    key = str(rng.choice(keys))
    old = model.metadata[key]
    how = rng.random()
    if how < 0.1:
        del model.metadata[key]
        return f"{key} removed"
    if how < 0.2:
        casts: list[Any] = [
            np.uint64(1),
            np.int32(-1),
            np.float64(1),
            "x",
            np.uint8(1),
            True,
            np.array([2, 2], np.uint32),
            np.array([4, 1], np.int32),
            np.array([1.0, 2.0], np.float32),
            np.zeros(0, np.uint32),
        ]
        new = casts[int(rng.integers(len(casts)))]
    elif isinstance(old, float):
        new = float(rng.choice(F32S))
    elif isinstance(old, int):
        new = int(rng.choice([*U32S, old - 1, old + 1, 2 * old, max(1, old // 2), 3 * old])) % (1 << 32)
    else:
        new = "xyz"
    model.metadata[key] = new
    return f"{key} = {new!r}"


def add_key(rng: Rng, model: Tiny) -> str:
    arch = model.metadata["general.architecture"]
    pick, new = rng.random(), None
    if pick < 0.5:
        key, new = str(rng.choice(EXTRA_U32)), int(rng.choice(U32S))
    elif pick < 0.8:
        key, new = str(rng.choice(EXTRA_F32)), float(rng.choice(F32S))
    elif pick < 0.9:
        key, new = "rope.scaling.type", str(rng.choice(["none", "linear", "yarn", "longrope", "su", "", "max"]))
    else:
        key = str(
            rng.choice(
                [
                    "attention.causal",
                    "rope.scaling.finetuned",
                    "rope.dimension_sections",
                    "deepstack_mapping",
                    "attention.sliding_window_pattern",
                    "classifier.output_labels",
                ]
            )
        )
        values: list[Any] = [
            True,
            False,
            np.array([1, 0], bool),
            np.array([16] * 4, np.int32),
            ["a", "b"],
            np.arange(600, dtype=np.uint32),
        ]
        new = values[int(rng.integers(len(values)))]
    model.metadata[f"{arch}.{key}"] = new
    return f"{key} added: {str(new)[:30]}"


def change_vocabulary(rng: Rng, model: Tiny) -> str:
    meta, prefix = model.metadata, "tokenizer.ggml."
    tokens = list(meta[prefix + "tokens"])
    count = len(tokens)
    if count < 8:
        return "vocabulary already gone"
    some = int(rng.integers(count))
    is_bpe = meta.get(prefix + "model") == "gpt2"
    other = spm_vocabulary() if is_bpe else bpe_vocabulary()
    chosen_id = f"{rng.choice(words('bos eos unknown padding eot fim_pre mask'))}_token_id"
    flag = str(rng.choice(words("add_bos_token add_eos_token add_space_prefix add_sep_token")))
    cases: dict[str, dict[str, Any]] = {  # what is done: keys and their new values, None removes one
        "model": {"model": str(rng.choice(["", *MODELS]))},
        "pre": {"pre": str(rng.choice(["", *PRES]))},
        "tokens empty": {"tokens": []},
        "tokens same": {"tokens": ["same"] * count},
        "token repeated": {"tokens": [*tokens[:-1], tokens[5]]},
        "token blank": {"tokens": [*tokens[:-1], ""]},
        "token not UTF-8": {"tokens": [b"\xff\xfe", b"\xe4\xb8", *tokens[2:]]},
        "all not UTF-8": {"tokens": [b"\xff%d" % i for i in range(count)]},
        "token with zero": {"tokens": [*tokens[:-2], b"a\0b", b"a\0c"]},
        "token huge": {"tokens": [*tokens[:-1], "x" * 100_000]},
        "tokens cut": {"tokens": tokens[:some]},
        "tokens more": {"tokens": [*tokens, "more", "and more"]},
        "tokens shuffled": {"tokens": [tokens[i] for i in rng.permutation(count)]},
        "tokens numbers": {"tokens": np.arange(count, dtype=np.int32)},
        "tokens gone": {"tokens": None},
        "types cut": {"token_type": np.ones(some, np.int32)},
        "types random": {"token_type": rng.integers(-2, 9, count).astype(np.int32)},
        "types bytes": {"token_type": np.full(count, 6, np.int32)},
        "types control": {"token_type": np.full(count, 3, np.int32)},
        "types u8": {"token_type": np.ones(count, np.uint8)},
        "types gone": {"token_type": None},
        "scores NaN": {"scores": np.full(count, np.nan, np.float32)},
        "scores cut": {"scores": np.zeros(some, np.float32)},
        "scores f64": {"scores": np.zeros(count)},
        "scores gone": {"scores": None},
        "merges gone": {"merges": None},
        "merges empty": {"merges": []},
        "merges odd": {"merges": ["", " ", "a", "a  b", " a b", "a b c", b"\xff \xfe", "a "]},
        "merges number": {"merges": np.arange(3, dtype=np.int32)},
        "id": {chosen_id: int(rng.choice([*U32S, count, count - 1]))},
        "add bos, no id": {"add_bos_token": True, "add_eos_token": True, "bos_token_id": None, "eos_token_id": None},
        "flag": {flag: [True, False, 7][int(rng.integers(3))]},
        "charsmap": {"precompiled_charsmap": rng.integers(0, 9, 64).astype(np.uint8), "model": "t5"},
        "suppress": {"suppress_tokens": np.array([-1, 5, 1 << 30], np.int32)},
        "other vocabulary": {key.removeprefix(prefix): value for key, value in other.items()},
        "other model, same tokens": {"model": "llama" if is_bpe else "gpt2"},
    }
    how = str(rng.choice(list(cases)))
    for key, value in cases[how].items():
        meta[prefix + key] = value
        if value is None:
            del meta[prefix + key]
    return f"{how} ({meta.get(prefix + 'model')}, {meta.get(prefix + 'pre')})"


def _stored(rng: Rng, shape: tuple[int, ...], kind: GGMLType) -> tuple[tuple[int, ...], GGMLType, Any]:
    size = -(-shape[-1] // kind.block_size) * kind.block_size
    shape = (*shape[:-1], size)
    return shape, kind, rng.integers(0, 64, kind.nbytes(shape), np.uint8)


def change_tensor(rng: Rng, model: Tiny) -> str:
    name = str(rng.choice(list(model.tensors)))
    shape, kind, _ = model.tensors[name]
    how = str(rng.choice(["type", "type", "type", "types", "shape", "gone", "rename", "add", "add", "order"]))
    if how in ("type", "types"):
        kind = TYPES[int(rng.integers(len(TYPES)))]
        role = name.split(".", 2)[-1]
        for other in [n for n in model.tensors if n == name or (how == "types" and n.endswith(role))]:
            model.tensors[other] = _stored(rng, model.tensors[other][0], kind)
    elif how == "shape":
        size = kind.block_size
        shapes = [
            shape[::-1],
            (*shape, 1),
            (*shape[:-1], shape[-1] + size),
            (shape[0] + size, *shape[1:]),
            (1,) * 4,
            (size,),
            (2, *shape[1:]) if len(shape) > 1 else (2, size),
            (*shape[:-1], size),
        ]
        model.tensors[name] = _stored(rng, shapes[int(rng.integers(len(shapes)))], kind)
    elif how == "gone":
        del model.tensors[name]
    elif how == "rename":
        model.tensors[name.replace("0", "1000") if rng.random() < 0.5 else name + "x"] = model.tensors.pop(name)
    elif how == "order":
        model.tensors = {n: model.tensors[n] for n in rng.permutation(list(model.tensors))}
    else:
        name = str(rng.choice(TENSORS))
        kind = TYPES[int(rng.integers(len(TYPES)))] if rng.random() < 0.5 else GGMLType.F32
        hidden = model.tensors["output_norm.weight"][0][0] if "output_norm.weight" in model.tensors else 64
        sizes = [(hidden,), (8,), (16,), (hidden, hidden), (1,), (2 * hidden, hidden), (3, hidden)]
        model.tensors[name] = _stored(rng, sizes[int(rng.integers(len(sizes)))], kind)
    return f"tensor {name}: {how} {kind.name}"


def change_architecture(rng: Rng, model: Tiny) -> str:
    old, new = model.metadata["general.architecture"], str(rng.choice([*ARCHS, *OTHER_ARCHS]))
    new = "llama" if new == "mixtral" else new
    model.metadata = {
        key.replace(f"{old}.", f"{new}.", 1) if key.startswith(f"{old}.") else key: value
        for key, value in model.metadata.items()
    }
    model.metadata["general.architecture"] = new
    return f"{old} as {new}"


def damage_meaning(rng: Rng, path: Path) -> str:
    model = base(rng)
    changes = [
        change_number,
        change_number,
        add_key,
        change_vocabulary,
        change_vocabulary,
        change_tensor,
        change_tensor,
        change_architecture,
    ]
    done = []
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        try:
            done.append(changes[int(rng.integers(len(changes)))](rng, model))
        except KeyError:  # what an earlier change removed
            continue
    try:
        model.write(path)
    except InvalidParameter:  # two changes that GGUF cannot hold together
        base(rng).write(path)
        done = ["nothing"]
    return "; ".join(done)


# --- data and odd -----------------------------------------------------------------------------------------------------


def damage_data(rng: Rng, path: Path) -> str:
    model = base(rng)
    names = list(model.tensors) if rng.random() < 0.3 else [str(rng.choice(list(model.tensors)))]
    how = str(rng.choice(["random", "ones", "nan", "huge"]))
    for name in names:
        shape, kind, _ = model.tensors[name]
        size = kind.nbytes(shape)
        raw = {
            "random": rng.bytes(size),
            "ones": b"\xff" * size,
            "nan": b"\x00\x7e\xc0\x7f" * (size // 4 + 1),
            "huge": b"\xff\xff\x7f\x7f" * (size // 4 + 1),
        }[how][:size]
        model.tensors[name] = (shape, kind, raw)
    model.write(path)
    return f"{how} in {len(names)}: {names[0]} {kind.name}"


def odd_model(rng: Rng, path: Path) -> str:
    heads = int(rng.choice([1, 2, 3, 4, 8]))
    head = int(rng.choice([16, 24, 32, 40, 48, 64, 72, 80, 96, 128]))
    hidden = heads * head
    arch = str(rng.choice(ARCHS))
    if hidden % 32:
        heads, hidden = 2 * heads, 2 * hidden
    divisors = [d for d in range(1, heads + 1) if heads % d == 0]
    kind = sorted(WEIGHT_TYPES)[int(rng.integers(len(WEIGHT_TYPES)))]
    layers = int(rng.choice([1, 2, 3, 6, 9]))
    model = tiny(
        arch,
        hidden=hidden,
        heads=heads,
        kv_heads=int(rng.choice(divisors)),
        layers=layers,
        weights=kind,
        seed=int(rng.integers(1 << 30)),
    )
    meta, name = model.metadata, model.metadata["general.architecture"]
    choices: dict[str, list[Any]] = {
        "context_length": [1, 2, 16, 1 << 20, 1 << 27],
        "attention.layer_norm_rms_epsilon": [1e-12, 1e-2],
        "rope.freq_base": [1.0, 1e12, 5.5],
        "rope.scaling.type": ["none", "linear", "yarn"],
        "rope.scaling.factor": [0.01, 1e4, 8.0],
        "rope.scaling.attn_factor": [0.01, 100.0],
        "rope.scaling.original_context_length": [1, 64, 1 << 27],
        "rope.scaling.finetuned": [True, False],
        "vocab_size": [len(meta["tokenizer.ggml.tokens"])],
    }
    choices["attention.layer_norm_epsilon"] = choices["attention.layer_norm_rms_epsilon"]
    if f"{name}.rope.freq_base" not in meta:
        choices = {key: values for key, values in choices.items() if not key.startswith("rope.")}
    choices = {key: values for key, values in choices.items() if "epsilon" not in key or f"{name}.{key}" in meta}
    if "position_embd.weight" in model.tensors:
        del choices["context_length"]
    if name in ("phi3", "gptneox", "glm4"):
        choices["rope.dimension_count"] = [2, head // 2, head]
    if name == "gptneox":
        choices["use_parallel_residual"] = [True, False]
    if name == "bert":
        choices["pooling_type"] = [0, 1, 2, 3]
    if arch in ("gemma2", "gemma3"):
        choices |= {
            "attention.sliding_window": [1, 2, 7, 1 << 20],
            "attention.sliding_window_pattern": [2, 3, 64],
            "rope.freq_base_swa": [1.0, 1e12],
            "final_logit_softcapping": [1e-3, 1e6],
            "attn_logit_softcapping": [1e-3, 1e6],
        }
    if name in ("olmo2", "cohere2"):
        choices |= {"attention.sliding_window": [1, 2, 7, 1 << 20], "attention.sliding_window_pattern": [2, 3, 64]}
    if name == "cohere2":
        choices |= {"logit_scale": [1e-6, 1e6]}
    if name == "mistral3":
        choices |= {
            "attention.temperature_scale": [0.0, 0.1, 10.0],
            "rope.scaling.yarn_log_multiplier": [0.0, 1.0, 10.0],
            "rope.scaling.yarn_beta_fast": [1.1, 4.0, 1000.0],
        }
    if name == "granite":
        choices |= {"attention.scale": [1e-6, 1e6], "logit_scale": [1e-6, 1e6], "embedding_scale": [1e-6, 1e6]}
    if "expert_count" in str(list(meta)):
        choices["expert_used_count"] = [1, 2, 4]
    picked = rng.choice(list(choices), min(int(rng.integers(0, 4)), len(choices)), replace=False)
    for key in map(str, picked):
        meta[f"{name}.{key}"] = choices[key][int(rng.integers(len(choices[key])))]
    count = len(meta["tokenizer.ggml.tokens"])
    for which in ("bos", "eos", "unknown", "padding", "eot"):
        if rng.random() < 0.3:
            meta[f"tokenizer.ggml.{which}_token_id"] = int(rng.integers(count))
    for flag in ("add_bos_token", "add_eos_token", "add_space_prefix", "add_sep_token"):
        if rng.random() < 0.3:
            meta[f"tokenizer.ggml.{flag}"] = bool(rng.random() < 0.5)
    if "tokenizer.ggml.merges" in meta:
        meta["tokenizer.ggml.pre"] = str(
            rng.choice(
                [
                    "default",
                    "llama-bpe",
                    "qwen2",
                    "smollm",
                    "tekken",
                    "gpt-4o",
                    "falcon",
                    "deepseek-llm",
                    "command-r",
                    "starcoder",
                    "gpt-2",
                ]
            )
        )
    if rng.random() < 0.2:
        types = np.asarray(meta["tokenizer.ggml.token_type"])
        meta["tokenizer.ggml.token_type"] = np.where(types == 6, 6, rng.integers(1, 6, count)).astype(np.int32)
    if name in ("llama", "granite") and rng.random() < 0.3:
        model.tensors["rope_freqs.weight"] = (
            (head // 2,),
            GGMLType.F32,
            np.ones(head // 2, np.float32),
        )
    if name == "phi3" and rng.random() < 0.5:
        n = meta.get("phi3.rope.dimension_count", head) // 2
        for which in ("long", "short"):
            model.tensors[f"rope_factors_{which}.weight"] = ((n,), GGMLType.F32, np.ones(n, np.float32))
        meta["phi3.rope.scaling.type"] = "longrope"
    model.write(path)
    extra = {key: meta[f"{name}.{key}"] for key in map(str, picked)}
    return f"{arch} {heads}x{head} {kind.name} {layers} layers {extra}"


FAMILIES = {"bytes": damage_bytes, "meaning": damage_meaning, "data": damage_data, "odd": odd_model}
