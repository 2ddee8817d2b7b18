"""HuggingFace: a folder of safetensors as a model, whose tensors are read when they are asked for.

    folder/                               folder/
      config.json                           config.json
      generation_config.json (optional)     model.safetensors.index.json    {"weight_map": {name: file}}
      model.safetensors                     model-00001-of-00002.safetensors ...

No name in a file leads out of the folder, whose links are followed, and nothing is believed: names, sizes, offsets and
the index are checked when it is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidModelFile, ModelNotFound, Unsupported
from edgellm.formats.confined import file_in, model_name
from edgellm.formats.safetensors import SafetensorsFile
from edgellm.formats.strict_json import read_object
from edgellm.formats.tensor import Tensor, n_rows

from ..adapter.merge import merge
from ..model import LeftOut
from ..numbers import WIDTH, decode
from .configured import ConfiguredFolder, fingerprint_of
from .fp8 import scaled_tensors

if TYPE_CHECKING:
    from ..adapter.peft import Adapter

MAX_CONFIG = 16 << 20  # bytes
MAX_INDEX = 64 << 20
MAX_SHARDS = 512
ADAPTER = "adapter_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class SafetensorsTensor:
    """A tensor of a safetensors file. A scalar has the shape (1,)."""

    def __init__(self, file: SafetensorsFile, name: str) -> None:
        info = file.tensors[name]
        self.shape, self.stored = info.shape or (1,), info.dtype
        self._file, self._name = file, name
        if not info.nbytes:
            raise InvalidModelFile(f"{file.path}: tensor {name!r} of shape {info.shape} is empty; save the model again")

    def rows(self, which: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """See Tensor. Raises Unsupported for integers and other types that are no weights."""
        if self.stored not in WIDTH:
            raise Unsupported(
                f"{self._file.path}: tensor {self._name!r} is {self.stored}; weights of {', '.join(WIDTH)} are read"
            )
        values = decode(self.stored, self._file.data(self._name).reshape(n_rows(self), -1)[which])
        self._file.release(self._name)
        return values


class HuggingFace(ConfiguredFolder):
    """A folder of config.json and safetensors.

    generation is generation_config.json ({} without one). shards are the weight files by name. dropped are the tensors
    that scale activations of fp8 models: they have no place in the weights, and are not in tensors; neither are scales
    of weights, which `rows` applies. adapters: merged into tensors, in turn; they are closed with this. pre: as in
    `read_huggingface`.
    """

    format = "huggingface"
    runs = None
    names = "huggingface"

    def __init__(self, folder: Path, pre: str | None = None, adapters: Sequence[Adapter] = ()) -> None:
        self._pre, self.adapters = pre, tuple(adapters)
        self.adapted = tuple(one.name + ("" if one.scale == 1 else f"={one.scale:g}") for one in self.adapters)
        self.path = self.folder = self.transformers = folder
        config = read_object(file_in(folder, "config.json"), MAX_CONFIG)
        if config is None and (folder / ADAPTER).is_file():
            raise Unsupported(
                f"{folder}: only an adapter; convert the model that it is for, with --adapter {folder.name}"
            )
        if config is None:
            raise ModelNotFound(
                f"{folder}: no config.json; give the folder of a Hugging Face checkpoint, or a .gguf file"
            )
        self._config = config
        self.generation = read_object(file_in(folder, "generation_config.json"), MAX_CONFIG) or {}
        self.shards: dict[str, SafetensorsFile] = {}
        try:
            stored = self._open_shards()
            self.tensors, self.dropped = scaled_tensors(folder, config, stored)
            why = "a scale for 8-bit activations, which are not used"
            self.left_out = tuple(LeftOut(name, why) for name in self.dropped)
            self._merge()
            self.embedded = next(iter(self.shards.values())).metadata
            self.weight_files = [file.path for file in self.shards.values()]
        except BaseException:
            self.close()
            raise

    def _merge(self) -> None:
        """Put the adapters into the tensors."""
        if not self.adapters:
            if (self.folder / ADAPTER).is_file():
                self.notes = (
                    f"an adapter lies in the folder, too, and is left alone; --adapter {self.folder} merges it",
                )
            return
        made = merge(self.adapters, *self._family(), self.tensors)
        self.tensors, self.notes = made.tensors, (*made.notes, *filter(None, map(self._other_base, self.adapters)))
        if made.untied:
            self._config = {**self._config, **_untied(self._config)}

    def _other_base(self, adapter: Adapter) -> str:
        """What is to be said of an adapter that was trained on a model of another name."""
        said = self._config.get("_name_or_path")
        names = {self.folder.resolve().name, model_name(self.folder), str(said).rpartition("/")[2] if said else ""}
        if not adapter.base or adapter.base.lower() in {name.lower() for name in names}:
            return ""
        return f"adapter {adapter.name}: says that it was trained on {adapter.base}; this is {model_name(self.folder)}"

    def _open_shards(self) -> dict[str, Tensor]:
        weight_map = self._weight_map()
        if weight_map is None:
            file = self.shards[SINGLE] = SafetensorsFile.open(file_in(self.folder, SINGLE))
            return {name: SafetensorsTensor(file, name) for name in file.tensors}
        expected: dict[str, set[str]] = {}
        for name, shard in weight_map.items():
            expected.setdefault(shard, set()).add(name)
        if len(expected) > MAX_SHARDS:
            raise InvalidModelFile(f"{self.folder / INDEX}: {len(expected)} files, at most {MAX_SHARDS} are read")
        for shard, names in sorted(expected.items()):
            try:
                file = self.shards[shard] = SafetensorsFile.open(file_in(self.folder, shard))
            except ModelNotFound:
                raise ModelNotFound(
                    f"{self.folder / shard}: this shard is missing; fetch all {len(expected)} that {INDEX} names"
                ) from None
            for name in sorted(names.symmetric_difference(file.tensors)):
                what = "is not in this shard, where" if name in names else "is in this shard, but not where"
                raise InvalidModelFile(f"{file.path}: tensor {name[:200]!r} {what} {INDEX} says; fetch both again")
        return {name: SafetensorsTensor(self.shards[shard], name) for name, shard in weight_map.items()}

    def _weight_map(self) -> dict[str, str] | None:
        """Tensor to file, as the index says; None for a single file."""
        index = read_object(file_in(self.folder, INDEX), MAX_INDEX)
        single = (self.folder / SINGLE).exists()
        if index is None:
            if single:
                return None
            raise self._no_weights()
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InvalidModelFile(f"{self.folder / INDEX}: no weight_map; fetch or write the file again")
        for name, shard in weight_map.items():
            if not isinstance(shard, str) or not shard.endswith(".safetensors"):
                raise InvalidModelFile(
                    f"{self.folder / INDEX}: {name[:100]!r} is in {str(shard)[:100]!r}, not in a .safetensors file"
                )
        if single and SINGLE not in weight_map.values():
            raise InvalidModelFile(f"{self.folder}: holds {SINGLE} and the index of another set; remove one of them")
        return weight_map

    def _no_weights(self) -> Exception:
        """Why there is neither a single file nor an index."""
        names = sorted(path.name for path in self.folder.iterdir())
        others = [name for name in names if name.endswith(".safetensors")]
        pickles = [name for name in names if name.endswith(PICKLES)]
        if any(name.startswith("adapter_model") for name in names):
            return Unsupported(f"{self.folder}: only an adapter; convert the model that it is for, with --adapter")
        if others:
            return Unsupported(
                f"{self.folder}: {others[0]!r} is not named {SINGLE} or in {INDEX}; original layouts (consolidated) "
                "and variants are not read: take the files that transformers loads, or save the model with it"
            )
        if pickles:
            return pickle(self.folder / pickles[0])
        return ModelNotFound(f"{self.folder}: neither {SINGLE} nor {INDEX}; fetch the weights")

    @cached_property
    def fingerprint(self) -> str:
        """Of both configurations and the fingerprints of each file and adapter."""
        files = {name: file.fingerprint for name, file in self.shards.items()}
        return fingerprint_of(self.config, self.generation, files, *(adapter.fingerprint for adapter in self.adapters))

    def close(self) -> None:
        for file in self.shards.values():
            file.close()
        for adapter in self.adapters:
            adapter.close()


def _untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """What changes of a configuration whose output is no longer the embedding."""
    made: dict[str, Any] = {"tie_word_embeddings": False}
    if isinstance(text := config.get("text_config"), dict):
        made["text_config"] = {**text, "tie_word_embeddings": False}
    return made


def pickle(path: Path) -> Unsupported:
    return Unsupported(
        f"{path}: a pickle, which can run any code when it is opened; take the model's safetensors files, or load it "
        "in transformers and save it with save_pretrained"
    )
