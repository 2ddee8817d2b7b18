"""ToFolder: a conversion whose result is a Hugging Face folder: weights turned into floats, names and order as
transformers has them.

config.json  generation_config.json  tokenizer.json  tokenizer_config.json  chat_template.jinja
model.safetensors, or model-00001-of-00003.safetensors ... and model.safetensors.index.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.architectures import Part, Relation, to_hf
from edgellm.errors import InvalidModelFile
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.safetensors import write_safetensors
from edgellm.formats.tensor import Tensor, chunks
from edgellm.formats.writing import counted, write_files

from .. import verify
from ..gguf.target import runnable
from ..job import Progress, counter, record_of
from ..model import Model
from ..numbers import is_exact, kept_type, shifts_exactly
from ..params import KEEP, SafetensorsParams
from ..plan import Plan, Planned, of_source
from ..quant.ggml import dequantize, quantize
from ..quant.pool import Quantizers
from ..quant.recipes import quantizable
from ..tokens import Vocabulary, read_huggingface
from .source import INDEX, SINGLE, HuggingFace

SHARD_BYTES = 5 * 10**9  # of a file, unless one tensor alone is larger
_TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class ToFolder:
    """A conversion whose result is a Hugging Face folder; quant=keep: in the type that float weights have, f32 for
    quantized ones, since nothing less holds the numbers they stand for.

    Raises UnsupportedArchitecture, Unsupported, InvalidModelFile.
    """

    def __init__(self, model: Model, params: SafetensorsParams) -> None:
        self._model = model
        self._dtype = dtype = kept_type(model.tensors) if params.quant == KEEP else params.quant.upper()
        self._kind = GGMLType[dtype]
        self._tensors: dict[str, Tensor] = {}
        exact: set[str] = set()
        for relation in model.description.relations:
            made, shifted = self._made(relation)
            self._tensors |= {part.name: tensor for part, tensor in made}
            widened = not all(quantizable(part.name, part.shape) for part in relation.gguf)  # F32, whatever it was
            for part, tensor in made:
                fits = is_exact(tensor.stored, dtype) or (widened and _fits(tensor, self._kind))
                if fits and not shifted:
                    exact.add(part.name)
        config = {key: value for key, value in model.config.items() if key != "quantization_config"}
        config["torch_dtype"] = _TORCH[dtype]
        self._files = model.files | {"config.json": json.dumps(config, indent=2).encode()}
        tensors = tuple(
            Planned(name, tensor.shape, tensor.stored, dtype, self._kind.nbytes(tensor.shape), name in exact)
            for name, tensor in self._tensors.items()
        )
        self.plan = Plan(
            **of_source(model),
            architecture=model.description.architecture.model_type,
            format="safetensors",
            recipe=dtype.lower(),
            tensors=tensors,
            left_out=model.description.left_out,
            notes=(*model.vocabulary.notes, *model.description.notes),
            file_bytes=sum(tensor.nbytes for tensor in tensors) + sum(map(len, self._files.values())),
        )

    def _made(self, relation: Relation) -> tuple[list[tuple[Part, Tensor]], bool]:
        """The folder's tensors, and whether adding and taking away 1 changed some numbers."""
        if self._model.names == "huggingface":
            return [(part, self._model.tensors[part.name]) for part in relation.hf], False
        made, before = to_hf(relation, self._model.weights), [self._model.weights[part.name] for part in relation.gguf]
        return made, bool(relation.shift) and not shifts_exactly(before, made[0][1], -relation.shift)

    def _shards(self) -> list[list[str]]:
        """The names of the tensors of each weight file."""
        found: list[list[str]] = [[]]
        size = 0
        for one in self.plan.tensors:
            if found[-1] and size + one.nbytes > SHARD_BYTES:
                found.append([])
                size = 0
            found[-1].append(one.name)
            size += one.nbytes
        return found

    def write(self, path: Path, _space: Path, report: Progress) -> None:
        """Write the folder. Raises InvalidModelFile (weights that are not finite, or do not fit f16), CannotWrite."""
        write_files(path, self._files)
        shards, names = self._shards(), [SINGLE]
        if len(shards) > 1:
            names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
            weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
            index = {"metadata": {"total_size": self.plan.tensor_bytes}, "weight_map": weight_map}
            write_files(path, {INDEX: json.dumps(index, indent=2).encode()})
        record = record_of(self._model, target=self.plan.recipe)
        metadata = {"format": "pt", **self._model.origin.record, **record}
        advance = counter("converting", self.plan.tensor_bytes, report)
        with Quantizers() as quantizers:

            def pieces(name: str, tensor: Tensor) -> Iterator[NDArray[np.uint8]]:
                return quantizers.run(name, self._kind, map(tensor.rows, chunks(tensor)))

            for file, shard in zip(names, shards, strict=True):
                listed = [(name, self._tensors[name]) for name in shard]
                entries = [(n, self._dtype, t.shape, counted(partial(pieces, n, t), advance)) for n, t in listed]
                write_safetensors(path / file, entries, metadata)

    def verify(self, path: Path, space: Path, report: Progress) -> verify.Verification:
        _check_tokenizer(path, self._model.vocabulary)
        with closing(HuggingFace(path, self._model.vocabulary.pre)) as written:
            advance = counter("verifying", self.plan.tensor_bytes, report)
            compared = verify.compare(self._tensors, written.tensors, self.plan.tensors, advance)
            done = verify.Verification(**asdict(compared), ran="its tokenizer says the same")
            if done.lossless:
                return done
            result = runnable(written, space, report)
            return verify.run(result, runnable(self._model, space, report), compared, report)


def _check_tokenizer(folder: Path, expected: Vocabulary) -> None:
    """Compare the tokenizer files, read again, with the vocabulary they were made of. Raises InvalidModelFile."""
    back = read_huggingface(folder, len(expected.tokens), pre=expected.pre)
    if back.tokens != expected.tokens:
        differing = sum(a != b for a, b in zip(back.tokens, expected.tokens, strict=True))
        raise InvalidModelFile(
            f"{folder}: {differing} tokens of tokenizer.json differ from those of the GGUF file; please report this"
        )


def _fits(tensor: Tensor, kind: GGMLType) -> bool:
    """Whether all numbers exist in the type."""
    try:
        for part in chunks(tensor):
            values = tensor.rows(part)
            if not np.array_equal(dequantize(kind, quantize(kind, values), values.shape[-1]), values):
                return False
    except InvalidModelFile:  # beyond f16: writing it will say so
        return False
    return True
