"""Architecture: one family as data, read in both directions: its tensors, its numbers, and what must be so."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, get_type_hints

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidModelFile, Unsupported
from ..formats.gguf import GGUFFile
from . import rope as ropes
from .config import Config, shortest
from .hyper import Hyper
from .relation import Part, Relation
from .seeing import TOWERS
from .table import EMBEDDING, HEAD, Either, Line, Weight, expand, spellings, stored


class Key(NamedTuple):
    """A number under its three names; a side that does not say it has None. default: where a file may leave it out.

    also: another name that config.json may give it.
    """

    gguf: str | None
    field: str
    config: str | None
    default: Any = None
    also: str | None = None


DECODER = (
    Key("block_count", "n_layer", "num_hidden_layers"),
    Key("context_length", "n_ctx_train", "max_position_embeddings"),
    Key("embedding_length", "n_embd", "hidden_size"),
    Key("feed_forward_length", "n_ff", "intermediate_size"),
    Key("attention.head_count", "n_head", "num_attention_heads"),
    Key("attention.head_count_kv", "n_head_kv", "num_key_value_heads", 0),
    Key("attention.key_length", "head_dim", "head_dim", 0),
    Key("vocab_size", "n_vocab", "vocab_size", 0),
    Key("attention.layer_norm_rms_epsilon", "norm_eps", "rms_norm_eps"),
)
BIASES = tuple(Key(None, name, name, False) for name in ("attention_bias", "mlp_bias"))  # in GGUF, tensors say it


def keys(*more: Key) -> tuple[Key, ...]:
    """DECODER's keys, those of the same fields replaced, and `more`."""
    changed = {key.field for key in more}
    return (*(key for key in DECODER if key.field not in changed), *more)


Hook = Callable[[Config, "dict[str, Any]"], "dict[str, Any]"]


@dataclass(frozen=True)
class Architecture:
    """One family.

    gguf: `general.architecture`. model_type, classname: of config.json and of transformers; other_types are read too.
    onnx_type: what onnxruntime-genai calls it where that is not model_type; "decoder" fits all that it has no name for.
    before, layer, after: tables of tensors, in file order. keys: numbers that both sides have.
    expect: config keys that change the mathematics, with the values llama.cpp computes, the one to write first;
    tolerate: the same for keys that need not be written. defaults: config values that checkpoints leave out; tied: the
    same for the output. constants: fields of Hyper that the family fixes.
    scalings: rotary scalings llama.cpp honours; none at all for learned positions. rope_base, rope_share: the defaults
    for θ and for the share of a head that rotates; local_base: θ of windowed layers, where a GGUF file does not say;
    rope_names: rotary config keys to rename on writing, "" for those not to write. tempered: llama.cpp computes
    Rope.temperature and Rope.fast. neighbours: as Rope has it. biased: the tensor whose bias says that attention has
    some. partial: it rotates a part of a head, too.
    square: it computes heads that fill the embedding exactly.
    read_config, read_metadata: further fields of Hyper from (what is read, the fields so far); write_config,
    write_metadata: further keys from a Hyper. recognises: whether a GGUF file of this name is this family; fits: the
    same of a config.json with its model_type.
    prefixes: what stands for `{m}`, the one to write first. skip: Hugging Face names that carry nothing.
    """

    gguf: str
    model_type: str
    classname: str
    layer: tuple[Line, ...]
    before: tuple[Line, ...] = EMBEDDING
    after: tuple[Line, ...] = HEAD
    keys: tuple[Key, ...] = DECODER
    other_types: tuple[str, ...] = ()
    onnx_type: str = ""
    expect: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    tolerate: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    scalings: frozenset[str] = frozenset({"none", "linear", "yarn"})
    tied: bool = False
    rope_base: float = 10000.0
    rope_share: float = 1.0
    local_base: float | None = None
    rope_names: Mapping[str, str] = field(default_factory=dict)
    tempered: bool = False
    neighbours: bool = False
    biased: str = "attn_output"
    partial: bool = False
    square: bool = False
    read_config: Hook = lambda config, fields: {}
    write_config: Callable[[Hyper], dict[str, Any]] = lambda hyper: {}
    read_metadata: Hook = lambda config, fields: {}
    write_metadata: Callable[[Hyper], dict[str, Any]] = lambda hyper: {}
    recognises: Callable[[GGUFFile], bool] = lambda file: True
    fits: Callable[[Mapping[str, Any]], bool] = lambda config: True
    prefixes: tuple[str, ...] = ("model.", "language_model.model.", "model.language_model.", "model.text_model.", "")
    skip: tuple[str, ...] = (r"rotary_emb\.inv_freq$", r"\.masked_bias$", TOWERS)

    def hyper_from_config(self, values: Mapping[str, Any]) -> Hyper:
        """Every key of config.json is consumed; raises Unsupported or InvalidModelFile."""
        config = Config({**self.defaults, **values}, "config.json")
        fields = self._numbers(config, lambda key: key.also if key.also in config else key.config)
        fields["tied"] = config.take("tie_word_embeddings", bool, self.tied)
        fields["rope"] = None
        for key, allowed in (*self.expect.items(), *self.tolerate.items()):
            config.expect(key, *allowed)
        if self.scalings:
            where = fields["head_dim"], fields["n_ctx_train"], self.rope_base, self.rope_share
            fields["rope"] = self._computed(ropes.from_config(config, *where), fields["head_dim"])
        fields |= self.read_config(config, fields)
        config.finish()
        return self._made(fields)

    def hyper_from_metadata(self, file: GGUFFile) -> Hyper:
        """Every key of the architecture in a GGUF file is consumed; raises Unsupported or InvalidModelFile."""
        prefix = self.gguf + "."
        values = {key[len(prefix) :]: file.metadata[key] for key in file.metadata if key.startswith(prefix)}
        config = Config(values, f"{file.path.name}: {self.gguf}")
        fields = self._numbers(config, lambda key: key.gguf)
        fields = {name: shortest(value) if isinstance(value, float) else value for name, value in fields.items()}
        if "token_embd.weight" not in file.tensors:
            raise InvalidModelFile(f"{file.path}: tensor 'token_embd.weight' is missing")
        fields["n_vocab"] = file.tensors["token_embd.weight"].shape[0]
        if "token_types.weight" in file.tensors:
            fields["n_token_types"] = file.tensors["token_types.weight"].shape[0]
        config.expect("attention.value_length", fields["head_dim"])
        config.expect("attention.causal", self.constants.get("causal", True))
        fields["tied"] = "output.weight" not in file.tensors
        if fields["tied"] not in self.expect.get("tie_word_embeddings", (True, False)):
            told = "has no output.weight and must have one" if fields["tied"] else "has an output.weight of its own"
            raise InvalidModelFile(f"{file.path.name}: a model of the family {self.gguf} that {told}")
        fields["attention_bias"] = f"blk.0.{self.biased}.bias" in file.tensors
        fields["mlp_bias"] = "blk.0.ffn_down.bias" in file.tensors
        fields["rope"] = None
        if self.scalings:
            where = fields["head_dim"], fields["n_ctx_train"], self.local_base
            read = ropes.from_metadata(config, file, *where, tempered=self.tempered)
            fields["rope"] = self._computed(read, fields["head_dim"])
        fields |= self.read_metadata(config, fields)
        config.finish(frozenset({"expert_count", "expert_used_count", "rope.dimension_count", "tensor_data_layout"}))
        return self._made(fields)

    def relations(self, hyper: Hyper, names: Collection[str]) -> list[Relation]:
        """How the tensors of the two sides correspond, in file order.

        names: all tensors of the checkpoint, of either side. Raises Unsupported for a name that nothing explains.
        """
        prefix = self.prefix(names)
        found = [
            relation
            for table, layers in ((self.before, [0]), (self.layer, range(hyper.n_layer)), (self.after, [0]))
            for i in layers
            for relation in expand(table, hyper, names, prefix, i)
        ]
        known = {part.name for relation in found for part in (*relation.hf, *relation.gguf)}
        known |= {name for name, _ in self.extra(hyper)} | {duplicate for duplicate, _ in self.duplicates(hyper, names)}
        ours = "token_embd.weight" in names
        left = sorted(name for name in names if name not in known and (ours or not self.skips(name)))
        if left:
            shown = ", ".join(left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
            raise Unsupported(f"tensors that a {self.model_type} model does not have: {shown}; they would be lost")
        return found

    def tensors(self, hyper: Hyper, names: Collection[str]) -> dict[str, tuple[int, ...]]:
        """Every tensor of a GGUF file of these numbers, and its shape.

        names: what is there, for what a file may have or leave out; all layers are like the first in that.
        """
        once, layers = range(1), range(hyper.n_layer)
        tables = ((self.before, once), (self.layer, layers), (self.after, once))
        made = {part.name: part.shape for table, i in tables for part in stored(table, hyper, names, i)}
        return made | {name: values.shape for name, values in self.extra(hyper)}

    def skips(self, name: str) -> bool:
        """Whether a Hugging Face tensor carries nothing that GGUF needs."""
        return any(re.search(pattern, name) for pattern in self.skip)

    def duplicates(self, hyper: Hyper, names: Collection[str]) -> list[tuple[str, str]]:
        """Pairs of Hugging Face tensors that must be equal, of which the first is left out: a tied output."""
        pair = self.tied_pair(names) if hyper.tied else None
        return [] if pair is None else [(name, pair[1]) for name in self.outputs() if name in names]

    def outputs(self) -> list[str]:
        """What Hugging Face may call the output where it is not the embedding."""
        each = (line for one in self.after for line in (one.usual + one.other if isinstance(one, Either) else (one,)))
        return [line.hf[0][0] for line in each if line.untied]

    def tied_pair(self, names: Collection[str]) -> tuple[str, str] | None:
        """What a checkpoint calls output and embedding, which are one in tied models; None without an output."""
        outputs, embedding = self.outputs(), self.before[0]
        if not outputs or not isinstance(embedding, Weight):
            return None
        output = next((name for name in outputs if name in names), outputs[0])
        return output, embedding.hf[0][0].replace("{m}", self.prefix(names))

    def stored_as(self, name: str, names: Collection[str]) -> str | None:
        """Which of `names` is a tensor of this name with the prefix that is stored, or without; None where none is."""
        bare = [name[len(prefix) :] for prefix in self.prefixes if name.startswith(prefix)]
        found = (prefix + rest for rest in bare for prefix in self.prefixes if prefix + rest in names)
        return name if name in names else next(found, None)

    def spellings(self, hyper: Hyper, names: Collection[str]) -> Iterator[tuple[Part, list[tuple[Part, ...]]]]:
        """As `table.spellings`, of all layers."""
        prefix = self.prefix(names)
        return (each for i in range(hyper.n_layer) for each in spellings(self.layer, hyper, prefix, i))

    def metadata(self, hyper: Hyper) -> dict[str, Any]:
        """The key-values below the architecture's name, for write_gguf: without general.* and tokenizer.*.

        One exception: the count of token types, a size of BERT's, is called `tokenizer.ggml.token_type_count`.
        """
        pairs = {key.gguf: getattr(hyper, key.field) for key in self.keys if key.gguf}
        pairs = {name: value for name, value in pairs.items() if value is not None}
        if "attention.key_length" in pairs:
            pairs["attention.value_length"] = hyper.head_dim
        pairs |= (ropes.to_metadata(hyper.rope, tempered=self.tempered) if hyper.rope else {}) | self.write_metadata(
            hyper
        )
        made = {f"{self.gguf}.{name}": value for name, value in pairs.items()}
        return made | ({"tokenizer.ggml.token_type_count": hyper.n_token_types} if hyper.n_token_types else {})

    def config(self, hyper: Hyper) -> dict[str, Any]:
        """config.json for transformers 4 and 5."""
        made: dict[str, Any] = {"architectures": [self.classname], "model_type": self.model_type}
        made |= {key.config: getattr(hyper, key.field) for key in self.keys if key.config}
        made |= {"tie_word_embeddings": hyper.tied} | {key: allowed[0] for key, allowed in self.expect.items()}
        if hyper.rope:
            rope = ropes.to_config(hyper.rope, hyper.n_ctx_train, tempered=self.tempered)
            made |= {self.rope_names.get(name, name): value for name, value in rope.items()}
            made.pop("", None)
        return made | self.write_config(hyper)

    def extra(self, hyper: Hyper) -> list[tuple[str, NDArray[np.float32]]]:
        """GGUF tensors that are computed from the numbers: (name, float32 values)."""
        return ropes.extra(hyper.rope) if hyper.rope else []

    def _numbers(self, config: Config, side: Callable[[Key], str | None]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in self.keys:
            name = side(key)
            if name is not None:
                kind, optional = _KINDS[key.field]
                found[key.field] = config.maybe(name, kind) if optional else config.take(name, kind, key.default)
        self._check_limits(found, given=True)  # before anything is computed with them
        found["n_head_kv"] = found.get("n_head_kv") or found["n_head"]
        found["head_dim"] = found.get("head_dim") or found["n_embd"] // max(found["n_head"], 1)
        if min(found["n_head"], found["head_dim"]) < 1:
            raise InvalidModelFile(f"{config.where}: n_head = {found['n_head']} of an embedding of {found['n_embd']}")
        return found

    def _made(self, fields: dict[str, Any]) -> Hyper:
        made = Hyper(**{"gguf": self.gguf, "model_type": self.model_type, **self.constants, **fields})
        self._check_limits(vars(made))
        if made.n_head % made.n_head_kv or made.head_dim % 2:
            what = f"{made.n_head} heads of {made.head_dim} elements, {made.n_head_kv} of them for keys"
            raise InvalidModelFile(f"{self.model_type}: {what}; they do not divide")
        if self.square and made.n_head * made.head_dim != made.n_embd:
            what = f"{made.n_head} heads of {made.head_dim} elements do not fill the embedding of {made.n_embd}"
            raise Unsupported(f"{self.model_type}: {what}, and llama.cpp computes no other heads here")
        return made

    def _check_limits(self, numbers: Mapping[str, Any], *, given: bool = False) -> None:
        """given: only those that are there, of which 0 may stand for what is found out later."""
        for name, least, most in _LIMITS:
            if not (0 if given else least) <= (number := numbers.get(name, least)) <= most:
                raise InvalidModelFile(f"{self.model_type}: {name} = {str(number)[:40]}, expected {least} to {most}")

    def _computed(self, rope: ropes.Rope, head: int) -> ropes.Rope:
        if rope.dim != head and not (self.partial and rope.dim < head):
            raise Unsupported(
                f"{self.model_type}: {rope.dim} rotated elements of a head of {head}; llama.cpp computes here: "
                + ("at most a head" if self.partial else "whole heads")
            )
        if rope.scaling not in self.scalings:
            known = ", ".join(sorted(self.scalings - {"none"})) or "none"
            raise Unsupported(f"{self.model_type}: {rope.scaling} rope scaling; llama.cpp computes here: {known}")
        if not self.tempered and (rope.fast != ropes.FAST or rope.temperature):
            what = f"beta_fast = {rope.fast:g} and llama_4_scaling_beta = {rope.temperature:g}"
            raise Unsupported(f"{self.model_type}: rope scaling with {what}; llama.cpp computes here: 32 and 0")
        return replace(rope, neighbours=self.neighbours)

    def prefix(self, names: Collection[str]) -> str:
        """What checkpoints with these tensors have for `{m}`."""
        first = self.before[0]
        line = first if isinstance(first, Weight) else first.usual[0]
        fits = (prefix for prefix in self.prefixes if line.hf[0][0].replace("{m}", prefix) in names)
        return next(fits, self.prefixes[0])


_LARGE = 1 << 24
_LIMITS = (  # of the fields that shapes are made of
    ("n_layer", 1, 512),
    *((name, 1, _LARGE) for name in ("n_embd", "n_ff", "n_head", "n_head_kv", "head_dim", "n_vocab")),
    ("n_ctx_train", 1, 1 << 31),
    *((name, 0, _LARGE) for name in ("n_expert", "n_expert_used", "n_ff_expert", "n_token_types")),
)
_KINDS: dict[str, tuple[type[Any], bool]] = {}
for _name, _hint in get_type_hints(Hyper).items():
    _choices = [kind for kind in getattr(_hint, "__args__", (_hint,)) if kind in (int, float, bool)]
    if _choices:
        _KINDS[_name] = (_choices[0], type(None) in getattr(_hint, "__args__", ()))


def windowed_context(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    """The context of a family whose sliding window llama.cpp ignores: up to the window it makes no difference.

    A read_config hook.
    """
    window = config.maybe("sliding_window", int)
    return {} if window is None else {"n_ctx_train": min(window, fields["n_ctx_train"])}
