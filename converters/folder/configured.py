"""ConfiguredFolder: what Hugging Face's folders and ONNX folders have in common: config.json, a tokenizer, a card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.architectures import Architecture, Hyper, from_config, to_hf
from edgellm.architectures.seeing import has_parts
from edgellm.formats.confined import path_in
from edgellm.formats.strict_json import read_object
from edgellm.formats.tensor import Tensor, chunks, n_rows

from ..model import Contents, Description, LeftOut, Model
from ..numbers import shifts_exactly
from ..origin import Origin, beside
from ..tokens import Vocabulary, read_huggingface, to_files, to_metadata

MAX_FILE = 64 << 20  # bytes of a small file
POOLING = "1_Pooling/config.json"
TOKENIZER = "tokenizer.json"
QUANTIZED = "quantization_config"  # already applied
_COPIED = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)


class ConfiguredFolder(Model):
    """folder: where config.json is. left_out, notes: what opening it found. embedded: metadata of its weights."""

    _config: Mapping[str, Any]
    folder: Path
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    embedded: Mapping[str, str]
    _pre: str | None

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    @cached_property
    def description(self) -> Description:
        architecture, hyper = self._family()
        left_out, notes = [*self.left_out], [*self.notes]
        skipped = (name for name in self.tensors if architecture.skips(name))
        left_out += [LeftOut(name, "no part of the model that is converted") for name in skipped]
        for name, other in architecture.duplicates(hyper, self.tensors):
            if equal(self.tensors[name], self.tensors[other]):
                left_out.append(LeftOut(name, f"equal to {other}, which serves as both"))
            else:  # some checkpoints store one that differs, and that is what they were trained with
                notes.append(f"{name} differs from {other} although config.json says that they are one: it is kept")
                hyper = replace(hyper, tied=False)
        relations = tuple(architecture.relations(hyper, self.tensors))
        if self.names == "gguf":
            for relation in relations:
                to_hf(relation, self.tensors)  # raises where one is missing or has another shape
        return Description(architecture, hyper, relations, tuple(left_out), tuple(notes))

    def _family(self) -> tuple[Architecture, Hyper]:
        config = {key: value for key, value in self.config.items() if key != QUANTIZED}  # already applied
        if has_parts(config):
            text = config["text_config"]
            config["text_config"] = {key: value for key, value in text.items() if key != QUANTIZED}
        names = frozenset(self.tensors) if self.names == "huggingface" else frozenset()
        architecture, hyper = from_config(config, self._pooling(), names)
        if has_parts(config) and names and names.isdisjoint(architecture.outputs()):
            hyper = replace(hyper, tied=True)  # which either part may say, or neither
        return architecture, hyper

    def _pooling(self) -> dict[str, Any] | None:
        """How a sentence-transformers folder makes one vector of the tokens' ones. Raises InvalidModelFile."""
        return read_object(path_in(self.folder, POOLING), MAX_FILE)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return read_huggingface(self.folder, self.description.hyper.n_vocab, pre=self._pre)

    @cached_property
    def origin(self) -> Origin:
        return beside(self.folder, self.config, self.embedded)

    @cached_property
    def files(self) -> dict[str, bytes]:
        made = {}
        for name in (*_COPIED, POOLING):
            path = path_in(self.folder, name)
            if path.is_file() and path.stat().st_size <= MAX_FILE:
                made[name] = path.read_bytes()
        if TOKENIZER not in made:
            made = {name: text.encode() for name, text in to_files(self.vocabulary).items()} | made
        return self.origin.files | made

    @cached_property
    def contents(self) -> Contents:
        found = self.description
        extra: dict[str, Tensor] = {name: _Computed(values) for name, values in found.architecture.extra(found.hyper)}
        tensors = extra | self.weights
        rounded: set[str] = set()
        for relation in found.relations if self.names == "huggingface" else ():
            before = [self.tensors[part.name] for part in relation.hf] if relation.shift else []
            if relation.shift and not shifts_exactly(before, tensors[relation.gguf[0].name], relation.shift):
                rounded |= {part.name for part in relation.gguf}
        metadata = {
            "general.architecture": found.architecture.gguf,
            "general.type": "model",
            "general.size_label": size_label(sum(n_rows(t) * t.shape[-1] for t in tensors.values())),
            **self.origin.metadata,
            **found.architecture.metadata(found.hyper),
            **to_metadata(self.vocabulary),
        }
        notes = (*self.vocabulary.notes, *found.notes)
        return Contents(metadata, tensors, None, found.left_out, notes, frozenset(extra), frozenset(rounded))


class _Computed:
    """A Tensor over an array."""

    stored = "F32"

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.shape, self._values = values.shape, values.reshape(-1, values.shape[-1])

    def rows(self, which: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """See Tensor."""
        return self._values[which]


def pooling_files(hyper: Hyper) -> dict[str, bytes]:
    """What sentence-transformers writes of an encoder: how one vector is made of the tokens' ones. Where nothing says:
    their mean, as it has it."""
    kind = hyper.pooling if hyper.pooling in ("mean", "cls", "last") else "mean"
    modes = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
    flags = {f"pooling_mode_{name}": name == modes[kind] for name in modes.values()}
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    return {
        POOLING: json.dumps({"word_embedding_dimension": hyper.n_embd, **flags}, indent=2).encode(),
        "modules.json": json.dumps(modules, indent=2).encode(),
    }


def fingerprint_of(*said: object) -> str:
    """BLAKE2b over values as JSON has them: 32 hex digits."""
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()


def size_label(n_params: int) -> str:
    """ "135M": two digits at least, as the naming convention of GGUF files has it."""
    unit, scale = next(((u, s) for u, s in (("T", 1e12), ("B", 1e9), ("M", 1e6)) if n_params > s), ("K", 1e3))
    digits = len(str(round(n_params / scale)).lstrip("0"))
    return f"{n_params / scale:.{max(2 - digits, 0)}f}{unit}"


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers; both are read, as far as they do."""
    if one.shape != other.shape:
        return False
    return all(np.array_equal(one.rows(part), other.rows(part)) for part in chunks(one))
