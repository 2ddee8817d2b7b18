"""ONNXFolder: an ONNX model, whoever exported it, whose tensors are read when they are asked for.

    folder/                                                    folder/
      config.json          tokenizer.json ...                    genai_config.json    tokenizer.json ...
      onnx/model_q4.onnx   onnx/model_q4.onnx_data               model.onnx           model.onnx.data

Graphs by optimum and by onnxruntime-genai's builder are seen as the Hugging Face checkpoint that they were made from;
our own say under "edgellm.tensors" of their metadata which GGUF tensor is where, and are seen as the GGUF file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from edgellm.architectures import Architecture, Hyper, from_config
from edgellm.architectures.relation import Relation
from edgellm.errors import InvalidModelFile, ModelNotFound, Unsupported
from edgellm.formats import onnx_folder
from edgellm.formats.joined import Joined, height
from edgellm.formats.onnx import ONNXFile
from edgellm.formats.onnx_folder import ModelFolder
from edgellm.formats.strict_json import parse_object
from edgellm.formats.tensor import Tensor

from ..folder.configured import ConfiguredFolder, fingerprint_of
from ..model import ROTATED, LeftOut
from .blocks import BlockNames, Blocks
from .genai_config import config_of
from .scan import Scan
from .tensors import Floats

OURS = "edgellm.tensors"
_COMPUTED = "a table of the rotary embedding, or read by nothing"
_CARRIER = re.compile(r"INT([48])/(\d{1,4})(\+zp)?(\+min)?")
_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


class ONNXFolder(ConfiguredFolder):
    """An opened ONNX model with the files beside it; path: its folder, or the graph itself.

    config and generation are config.json and generation_config.json ({} without one). names: whose names the tensors
    have: those of the Hugging Face checkpoint, or GGUF's (with their rows in GGUF's order). left_out: initializers that
    carry no weights. notes: what else is to be known. file: the reader of the graph.

    Raises ModelNotFound, InvalidModelFile, and Unsupported for a graph whose weights are not all understood.
    """

    format = "onnx"
    runs = "onnx"

    def __init__(self, path: Path, pre: str | None = None) -> None:
        self._pre = pre
        found = onnx_folder.find(path)
        self.path, self.folder = path, found.root
        self.notes = (found.choice,) if found.choice else ()
        self.file = ONNXFile.open(found.model)
        self.embedded, self.weight_files = self.file.metadata, [self.file.path, *self.file.data_paths]
        try:
            self._config, self.generation = self._configuration(found), found.generation
            architecture, hyper = from_config(self.config)
            if OURS in self.file.metadata:
                self.names, self.tensors = "gguf", _ours(self.file, architecture, hyper)
            else:
                weights = Scan(self.file)
                self.names, self.tensors = "huggingface", _as_huggingface(weights, architecture, hyper)
                self.left_out = tuple(LeftOut(name, _COMPUTED) for name in weights.unused)
        except BaseException:
            self.close()
            raise

    def _configuration(self, found: ModelFolder) -> Mapping[str, Any]:
        if found.config:
            return found.config
        if not found.genai:
            raise ModelNotFound(f"{self.folder}: no config.json; put that of the original model there")
        self.notes += ("no config.json: the numbers are those of genai_config.json and of the graph",)
        return config_of(found.genai, self.file, self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """Of both configurations and the fingerprint of the graph."""
        return fingerprint_of(self.config, self.generation, self.file.fingerprint)

    def close(self) -> None:
        self.file.close()


def _as_huggingface(found: Scan, architecture: Architecture, hyper: Hyper) -> dict[str, Tensor]:
    """The weights as the family's checkpoints hold them: fused or apart, norms without the 1 that they add to."""
    expected = {part.name: relation for relation in architecture.relations(hyper, ()) for part in relation.hf}
    made: dict[str, Tensor] = {}
    for name, weight in found.weights.items():
        relation = expected.get(name)
        if relation is not None and relation.shift and name in found.factors:
            made[name] = Joined([(weight, 0, height(weight.shape))], shape=weight.shape, shift=-relation.shift)
        else:
            made |= _apart(name, weight, expected) if relation is None else {name: weight}
    for name in expected:
        parts = [made.get(other) for other in _members(name)]
        if name not in made and parts and all(parts):
            made[name] = Joined([(part, 0, part.shape[0]) for part in parts if part is not None])
            for other in _members(name):
                del made[other]
    return made


def _members(name: str) -> list[str]:
    """What a fused weight is made of, by name; none for other weights."""
    for fused, parts in _FUSED.items():
        if f".{fused}." in name:
            return [name.replace(fused, part) for part in parts]
    return []


def _apart(name: str, weight: Tensor, expected: Mapping[str, Relation]) -> dict[str, Tensor]:
    """The parts of a weight that the graph fused, where the family keeps them apart; else the weight itself."""
    members = _members(name)
    matrices = [member.removesuffix(".bias").removesuffix(".weight") + ".weight" for member in members]
    if not members or any(matrix not in expected for matrix in matrices):
        return {name: weight}
    sizes = [next(p.shape[0] for p in expected[matrix].hf if p.name == matrix) for matrix in matrices]
    if sum(sizes) != weight.shape[0]:
        raise InvalidModelFile(
            f"{name} has {weight.shape[0]} rows, the configuration says {' + '.join(map(str, sizes))}; they are not of "
            "the same model"
        )
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return {m: Joined([(weight, at, at + size)]) for m, at, size in zip(members, starts, sizes, strict=True)}


def _ours(file: ONNXFile, architecture: Architecture, hyper: Hyper) -> dict[str, Tensor]:
    """The GGUF tensors of a graph that edgellm wrote.

    The metadata is {name: {"carrier": "INT4/32+min", "shape": [...], "parts": [[base, start, stop], ...]}}: rows of
    matrices, one after the other. A matrix is the initializer base, or base.q (or base.hi and base.lo),
    base.scale, base.zp and base.corr. The rows are in GGUF's order, but for those of q and k, which are in Hugging
    Face's.
    """
    path = file.path
    listed = parse_object(file.metadata[OURS].encode(), f"{path}: metadata {OURS}")
    relations = {
        part.name: (part, relation) for relation in architecture.relations(hyper, listed) for part in relation.gguf
    }
    made: dict[str, Tensor] = {}
    for name, entry in listed.items():
        if name not in relations:
            raise Unsupported(f"{path}: metadata {OURS} lists {name[:200]!r}, which this model does not have")
        part, relation = relations[name]
        parts = _parts(file, name, entry)
        widths = {weight.shape[1:] for weight, _, _ in parts}
        if sum(stop - start for _, start, stop in parts) != height(part.shape) or widths != {part.shape[1:][-1:]}:
            found = ", ".join(f"{start} to {stop} of {weight.shape}" for weight, start, stop in parts[:8])
            raise InvalidModelFile(f"{path}: {name!r} has rows {found}; the configuration says {part.shape}")
        made[name] = Joined(parts, relation.order if ROTATED.match(name) else None, part.shape)
    return made


def _parts(file: ONNXFile, name: str, entry: Any) -> list[tuple[Tensor, int, int]]:
    """The matrices that an entry of our metadata names, and which of their rows are meant."""
    wrong = InvalidModelFile(f"{file.path}: metadata {OURS}: nothing of use about {name[:200]!r}; export it again")
    carrier, parts = (entry.get(key) if isinstance(entry, dict) else None for key in ("carrier", "parts"))
    if not isinstance(carrier, str) or not isinstance(parts, list) or not parts:
        raise wrong
    found = []
    for part in parts:
        if not isinstance(part, list) or [type(each) for each in part] != [str, int, int]:
            raise wrong
        base, start, stop = part
        weight = _matrix(file, base, carrier)
        if not 0 <= start < stop <= weight.shape[0]:
            raise InvalidModelFile(f"{file.path}: {name!r} would have rows {start} to {stop} of {weight.shape}")
        found.append((weight, start, stop))
    return found


def _matrix(file: ONNXFile, base: str, carrier: str) -> Tensor:
    """A matrix or a vector of our own."""
    quantized = _CARRIER.fullmatch(carrier)
    if not quantized:
        return Floats(file, base)
    bits, block = int(quantized[1]), int(quantized[2])
    halves = f"{base}.hi" in file
    zero = f"{base}.zp" if f"{base}.zp" in file else f"{base}.zeros"  # of a matrix that is only looked up
    names = BlockNames(
        f"{base}.hi" if halves else f"{base}.q",
        f"{base}.scale",
        zero if quantized[3] else None,
        f"{base}.corr" if quantized[4] else None,
        f"{base}.lo" if halves else None,
    )
    codes = file.info(names.q).shape
    if len(codes) != 3:
        raise file.error(InvalidModelFile, names.q, "not the shape of blocks; export the model again")
    return Blocks(file, names, (codes[0], codes[1] * block), bits, block)
