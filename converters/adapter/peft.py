"""Adapter: a PEFT folder, opened: what it adds to which module, and which tensors it puts in the place of others.

    folder/
      adapter_config.json          {"peft_type": "LORA", "r": 16, "lora_alpha": 32, ...}
      adapter_model.safetensors    base_model.model.MODULE.lora_A.weight (r, in)    .lora_B.weight (out, r)
                                   base_model.model.MODULE.lora_magnitude_vector (out,), of DoRA
                                   base_model.model.TENSOR, whole: modules_to_save, biases, embeddings

Every key of the configuration that changes what the model computes must be understood, every tensor have its place.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from edgellm.arguments import is_int, is_real, shown
from edgellm.errors import InvalidModelFile, ModelNotFound, Unsupported
from edgellm.formats.confined import file_in, model_name
from edgellm.formats.safetensors import SafetensorsFile
from edgellm.formats.strict_json import read_object
from edgellm.formats.tensor import Tensor

from ..folder.configured import fingerprint_of
from ..folder.source import ADAPTER, MAX_CONFIG, PICKLES, SafetensorsTensor, pickle
from ..numbers import WIDTH

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LORA = re.compile(
    r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector)(?:\.weight)?"
)
_WRAPPERS = re.compile(r"\.(?:base_layer|modules_to_save)(?=\.|$)")
_BIASES = ("none", "all", "lora_only")
_INITS = ("true", "false", "gaussian", "orthogonal", "eva")  # others change the base's weights before training
_ANY = {  # say how it was trained, or what of the model, which the names of the tensors say as well
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config",
    "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "target_parameters", "task_type", "use_dora", "use_rslora",
}  # fmt: skip
_PATTERNS, _STRONGEST = 10_000, 1e30
_SLOW = re.compile(r"\)[*+?{]|(?:[*+}].*){4}")  # what makes matching a pattern take for ever


@dataclass(frozen=True)
class Change:
    """What an adapter adds to a module's weight: (out, r) times (r, in).

    module: by transformers' name. embedding: the same of a table of vectors, which lies the other way round: a is
    (r, vocab), b is (embd, r). magnitude: of DoRA, (out,). bias: added to the module's bias, (out,).
    """

    module: str
    a: Tensor
    b: Tensor
    embedding: bool
    magnitude: Tensor | None
    bias: Tensor | None


class Adapter:
    """A PEFT folder, opened. scale: times what it adds. name: the folder's. changes: in the file's order. whole:
    tensors that take the place of the base's, by transformers' names. base: the last part of the name of what it says
    that it was trained on; "" where it does not.

    Raises ModelNotFound, InvalidModelFile, Unsupported for everything that would not be merged as PEFT does it.
    """

    def __init__(self, folder: Path, scale: float) -> None:
        self.folder, self.scale = folder, scale
        self.name = model_name(folder)
        config = read_object(file_in(folder, ADAPTER), MAX_CONFIG) if os.path.isdir(folder) else None
        if config is None:
            raise ModelNotFound(f"{folder}: no {ADAPTER}; an adapter is a folder that PEFT saved")
        self._config = config
        self._where = f"{folder / ADAPTER}"
        self._check()
        self._ranks, self._alphas = self._patterns("rank_pattern"), self._patterns("alpha_pattern")
        base = config.get("base_model_name_or_path")
        self.base = re.split(r"[/\\]", base.rstrip("/\\"))[-1] if isinstance(base, str) else ""
        weights = file_in(folder, WEIGHTS)
        if not weights.exists():
            raise self._no_weights()
        self._file = SafetensorsFile.open(weights)
        try:
            self.changes, self.whole = self._read()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        """Raises for a configuration that says more than is understood."""
        config = self._config
        kind = config.get("peft_type")
        if kind != "LORA":
            raise Unsupported(
                f"{self._where}: peft_type is {shown(kind)}; adapters of the type LORA are merged (LoRA, DoRA)"
            )
        for key, value in config.items():
            if key not in _ANY and value not in (None, False, [], {}):
                raise Unsupported(
                    f"{self._where}: {shown(key)} is {shown(value)}, which is not merged; leave the adapter out"
                )
        if config.get("bias", "none") not in _BIASES:
            raise Unsupported(f"{self._where}: bias is {shown(config['bias'])}; {', '.join(_BIASES)} are known")
        init = config.get("init_lora_weights", True)
        if str(init).lower() not in _INITS:
            raise Unsupported(
                f"{self._where}: init_lora_weights is {shown(init)}: the base's weights were changed before training; "
                "save the adapter for the plain base (path_initial_model_for_weight_conversion), or the merged model"
            )
        if not is_int(config.get("r")) or config["r"] < 1:
            raise InvalidModelFile(f"{self._where}: r is {shown(config.get('r'))}, not a rank")
        if not is_real(config.get("lora_alpha", 8)):
            raise InvalidModelFile(f"{self._where}: lora_alpha is {shown(config['lora_alpha'])}, not a number")
        for key in ("use_dora", "use_rslora", "lora_bias", "ensure_weight_tying"):
            if not isinstance(config.get(key) or False, bool):
                raise InvalidModelFile(f"{self._where}: {key} is {shown(config[key])}, not true or false")

    def _patterns(self, key: str) -> list[tuple[re.Pattern[str], float]]:
        table, where = self._config.get(key) or {}, f"{self._where}: {key}"
        if not isinstance(table, dict) or len(table) > _PATTERNS:
            raise InvalidModelFile(f"{where} is {shown(table)}, not a table of at most {_PATTERNS} patterns")
        for value in table.values():
            if not is_real(value):
                raise InvalidModelFile(f"{where} has {shown(value)}, where a number is expected")
        return [(_compiled(where, pattern), value) for pattern, value in table.items()]

    def _no_weights(self) -> Exception:
        pickles = sorted(path for path in self.folder.iterdir() if path.name.endswith(PICKLES))
        return pickle(pickles[0]) if pickles else ModelNotFound(f"{self.folder}: no {WEIGHTS}; fetch the adapter again")

    def _read(self) -> tuple[list[Change], dict[str, Tensor]]:
        modules: dict[str, dict[str, Tensor]] = {}
        whole: dict[str, Tensor] = {}
        for name in self._file.tensors:
            tensor = SafetensorsTensor(self._file, name)
            if tensor.stored not in WIDTH:
                raise Unsupported(f"{self._file.path}: tensor {name!r} is {tensor.stored}, no weights")
            bare = name.removeprefix(_PREFIX)
            match = _LORA.fullmatch(bare)
            if match:
                modules.setdefault(match[1], {})[match[2]] = tensor
            elif "lora_" in bare or "token_adapter" in bare:
                raise Unsupported(f"{self._file.path}: tensor {name!r} is nothing that LoRA or DoRA have")
            else:
                plain = _WRAPPERS.sub("", bare)
                if plain in whole:
                    raise InvalidModelFile(f"{self._file.path}: {plain!r} is there twice; save the adapter again")
                whole[plain] = tensor
        if not modules and not whole:
            raise InvalidModelFile(f"{self._file.path}: has no tensors; fetch the adapter again")
        return [self._change(module, parts) for module, parts in modules.items()], whole

    def _change(self, module: str, parts: dict[str, Tensor]) -> Change:
        where, dora = f"{self._file.path}: module {module!r}", bool(self._config.get("use_dora"))
        embedding = "lora_embedding_A" in parts
        names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        lacking = [name for name in (*names, *(["lora_magnitude_vector"] if dora else ())) if name not in parts]
        if lacking:
            raise InvalidModelFile(f"{where} has no {' and no '.join(lacking)}; fetch or save the adapter again")
        a, b = parts.pop(names[0]), parts.pop(names[1])
        magnitude, bias = parts.pop("lora_magnitude_vector", None), parts.pop("lora_B.bias", None)
        if parts or (magnitude is not None) != dora or (bias is not None) != bool(self._config.get("lora_bias")):
            raise InvalidModelFile(f"{where} has other tensors than {ADAPTER} says; they are not of the same adapter")
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
            raise InvalidModelFile(f"{where}: {a.shape} and {b.shape} cannot be multiplied (lora_A, lora_B)")
        return Change(_WRAPPERS.sub("", module), a, b, embedding, magnitude, bias)

    def scaling(self, key: str, rank: int) -> float:
        """What a product is multiplied with; key: the module, or the parameter. Raises InvalidModelFile."""
        said = _first(self._ranks, key, self._config["r"])
        if rank != said:
            raise InvalidModelFile(
                f"{self.folder}: the matrices of {key!r} have the rank {rank}, {ADAPTER} says {said}; they are not of "
                "the same adapter"
            )
        alpha = _first(self._alphas, key, self._config.get("lora_alpha", 8))
        found = self.scale * float(alpha) / (math.sqrt(rank) if self._config.get("use_rslora") else rank)
        if abs(found) > _STRONGEST:
            raise self.error(f"a product would be multiplied with {found:g}; lora_alpha, or the scale, is wrong")
        return found

    @property
    def fingerprint(self) -> str:
        """32 hex digits: of the configuration, the weights and the scale."""
        return fingerprint_of(self._config, self._file.fingerprint, self.scale)

    def close(self) -> None:
        self._file.close()

    def error(self, what: str) -> InvalidModelFile:
        return InvalidModelFile(f"{self.folder}: {what}")


def _first(patterns: list[tuple[re.Pattern[str], float]], key: str, default: float) -> float:
    return next((number for pattern, number in patterns if pattern.match(key)), default)


def _compiled(where: str, pattern: str) -> re.Pattern[str]:
    """The pattern as PEFT means it: of the end of a module's name."""
    try:
        if len(pattern) > 200 or _SLOW.search(pattern):
            raise InvalidModelFile(
                f"{where}: the pattern {shown(pattern)} may take for ever; write it without nested * and +"
            )
        return re.compile(rf"(?:.*\.)?(?:{pattern})$")
    except (re.error, OverflowError, RecursionError):
        raise InvalidModelFile(f"{where}: {shown(pattern)} is no regular expression") from None
