"""ToFolder: a conversion whose result is a Hugging Face folder: weights turned into floats, names and order as
transformers has them.

config.json  generation_config.json  tokenizer.json  tokenizer_config.json  chat_template.jinja
model.safetensors, or model-00001-of-00003.safetensors ... and model.safetensors.index.json
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.architectures import to_hf
from edgellm.errors import InvalidModelFile
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.safetensors import write_safetensors
from edgellm.formats.tensor import Tensor, chunks
from edgellm.formats.writing import Data, whole_file, writing

from .. import verify
from ..gguf.target import runnable
from ..job import Progress, counter, record_of
from ..model import Model
from ..numbers import is_exact, kept_type, shifts_exactly
from ..params import KEEP, SafetensorsParams
from ..plan import Plan, Planned
from ..quant.ggml import dequantize, quantize
from ..quant.pool import Quantizers
from ..quant.recipes import quantizable
from ..tokens import Vocabulary, read_huggingface
from .source import INDEX, SINGLE, HuggingFace

SHARD_BYTES = 5 * 10**9  # of a file, unless one tensor alone is larger
_TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Folder:
    """What a Hugging Face folder will hold. files: its small ones by name; tensors: in order, all stored as dtype.

    exact: the tensors whose numbers stay the same; record: whose model it is, for the weight files' metadata.
    """

    dtype: str
    files: dict[str, bytes]
    tensors: dict[str, Tensor]
    exact: frozenset[str]
    record: dict[str, str]

    @property
    def shards(self) -> list[list[str]]:
        """The names of the tensors of each weight file."""
        width = GGMLType[self.dtype].block_bytes
        found: list[list[str]] = [[]]
        size = 0
        for name, tensor in self.tensors.items():
            nbytes = width * math.prod(tensor.shape)
            if found[-1] and size + nbytes > SHARD_BYTES:
                found.append([])
                size = 0
            found[-1].append(name)
            size += nbytes
        return found


class ToFolder:
    """A conversion whose result is a Hugging Face folder."""

    def __init__(self, model: Model, params: SafetensorsParams) -> None:
        self._model = model
        self._made = made = folder_of(model, params.quant)
        tensors = tuple(
            Planned(
                name,
                tensor.shape,
                tensor.stored,
                made.dtype,
                GGMLType[made.dtype].nbytes(tensor.shape),
                name in made.exact,
            )
            for name, tensor in made.tensors.items()
        )
        self.plan = Plan(
            source=str(model.path),
            source_format=model.format,
            source_fingerprint=model.fingerprint,
            architecture=model.description.architecture.model_type,
            format="safetensors",
            recipe=made.dtype.lower(),
            tensors=tensors,
            left_out=model.description.left_out,
            notes=model.vocabulary.notes,
            source_bytes=model.weight_bytes,
            file_bytes=sum(tensor.nbytes for tensor in tensors) + sum(map(len, made.files.values())),
        )

    def write(self, path: Path, _space: Path, report: Progress) -> None:
        """Write the folder."""
        with writing(path):
            path.mkdir()
        record = {**record_of(self._model), "target": self.plan.recipe}
        _write(path, self._made, record, counter("converting", self.plan.tensor_bytes, report))

    def verify(self, path: Path, space: Path, report: Progress) -> verify.Verification:
        """Raises InvalidModelFile, ModelLoadError."""
        _check_tokenizer(path, self._model.vocabulary)
        with closing(HuggingFace(path, self._model.vocabulary.pre)) as written:
            advance = counter("verifying", self.plan.tensor_bytes, report)
            compared = verify.compare(self._made.tensors, written.tensors, self.plan.tensors, advance)
            done = verify.Verification(**asdict(compared), ran="its tokenizer says the same")
            if done.lossless:
                return done
            result = runnable(written, space, report)
            return verify.run(result, runnable(self._model, space, report), compared, report)


def folder_of(model: Model, quant: str) -> Folder:
    """The folder that a model becomes; quant: f32, f16, bf16, or keep: the type that float weights have, f32 for
    quantized ones, since nothing less holds the numbers they stand for.

    Raises UnsupportedArchitecture, Unsupported, InvalidModelFile.
    """
    found, weights = model.description, model.weights
    dtype = kept_type(model.tensors) if quant == KEEP else quant.upper()
    tensors: dict[str, Tensor] = {}
    exact = set()
    for relation in found.relations:
        made = to_hf(relation, weights)
        tensors |= {part.name: tensor for part, tensor in made}
        before = [weights[part.name] for part in relation.gguf]
        shifted = bool(relation.shift) and not shifts_exactly(before, made[0][1], -relation.shift)
        widened = not all(quantizable(part.name, part.shape) for part in relation.gguf)  # F32, whatever it was before
        for part, tensor in made:
            fits = is_exact(tensor.stored, dtype) or (widened and _fits(tensor, dtype))
            if fits and not shifted:
                exact.add(part.name)
    config = {**model.config, "torch_dtype": _TORCH[dtype]}
    files = model.files | {"config.json": json.dumps(config, indent=2).encode()}
    return Folder(dtype, files, tensors, frozenset(exact), model.origin.record)


def _write(folder: Path, made: Folder, record: Mapping[str, Any], advance: Callable[[int], None]) -> None:
    """Write all files into a folder that is there; record: kept in the weight files' metadata.

    Raises InvalidModelFile (weights that are not finite, or do not fit f16), CannotWrite.
    """
    for name, text in made.files.items():
        path = folder / name
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        with whole_file(path) as file:
            file.write(text)
    shards = made.shards
    names = [SINGLE]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(GGMLType[made.dtype].nbytes(tensor.shape) for tensor in made.tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        with whole_file(folder / INDEX) as file:
            file.write(json.dumps(index, indent=2).encode())
    metadata = {
        "format": "pt",
        **made.record,
        **{f"edgellm.convert.{key}": str(value) for key, value in record.items()},
    }
    with Quantizers() as quantizers:
        for name, shard in zip(names, shards, strict=True):
            write_safetensors(folder / name, _entries(made, shard, quantizers, advance), metadata)


def _check_tokenizer(folder: Path, expected: Vocabulary) -> None:
    """Compare the tokenizer files, read again, with the vocabulary they were made of. Raises InvalidModelFile."""
    back = read_huggingface(folder, len(expected.tokens), pre=expected.pre)
    if back.tokens != expected.tokens:
        differing = sum(a != b for a, b in zip(back.tokens, expected.tokens, strict=True))
        raise InvalidModelFile(
            f"{folder}: {differing} tokens of tokenizer.json differ from those of the GGUF file; please report this"
        )


def _entries(
    made: Folder, names: Sequence[str], quantizers: Quantizers, advance: Callable[[int], None]
) -> list[tuple[str, str, tuple[int, ...], Data]]:
    kind = GGMLType[made.dtype]

    def data(name: str, tensor: Tensor) -> Callable[[], Iterator[NDArray[np.uint8]]]:
        def stream() -> Iterator[NDArray[np.uint8]]:
            for piece in quantizers.run(name, kind, map(tensor.rows, chunks(tensor))):
                yield piece
                advance(piece.nbytes)

        return stream

    return [(name, made.dtype, made.tensors[name].shape, data(name, made.tensors[name])) for name in names]


def _fits(tensor: Tensor, dtype: str) -> bool:
    """Whether all numbers exist in the type."""
    kind = GGMLType[dtype]
    try:
        for part in chunks(tensor):
            values = tensor.rows(part)
            if not np.array_equal(dequantize(kind, quantize(kind, values), values.shape[-1]), values):
                return False
    except InvalidModelFile:  # beyond f16: writing it will say so
        return False
    return True
