"""A checkpoint as a GGUF file: what it will hold (Draft), and writing it in one streaming pass.

    tensors of the checkpoint ── relations ──▶ rows in GGUF's order, some MB at a time ── quantizers ──▶ file

Nothing is read before its turn, and what was read may leave memory at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.architectures import to_gguf
from edgellm.errors import InvalidModelFile, InvalidParameter, Unsupported
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_writer import write_gguf
from edgellm.formats.tensor import Blocked, Tensor, blocked, check_finite, chunks, columns, n_rows

from ..description import describe
from ..folder.source import HuggingFace
from ..gguf.source import GGUF, GGUFTensor
from ..onnx.source import ONNXFolder
from ..origin import origin_of
from ..plan import LeftOut, shifts_exactly
from ..quant.imatrix import ImportanceMatrix
from ..quant.pool import Quantizers
from ..quant.recipes import QUANTIZATION_VERSION, Choice
from ..tokens import read_huggingface, to_metadata

Advance = Callable[[int], None]  # bytes that were written since the last call

_INTEGERS = (GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64)
# what a conversion says anew
_RENEWED = re.compile(
    r"general\.(file_type|quantization_version|alignment)$|split\.|quantize\.imatrix\.|edgellm\.convert\."
)
_SCALARS = {
    "u8": np.uint8, "i8": np.int8, "u16": np.uint16, "i16": np.int16, "u32": np.uint32, "i32": np.int32,
    "u64": np.uint64, "i64": np.int64, "f32": np.float32, "f64": np.float64,
}  # fmt: skip


@dataclass(frozen=True)
class Draft:
    """What a GGUF file will hold, in order, before types are chosen.

    metadata: the key-values, but those that depend on the types. computed: tensors that the source does not have.
    rounded: tensors whose numbers change a little even in F32 (a norm to which 1 is added).
    """

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    computed: frozenset[str] = frozenset()
    rounded: frozenset[str] = frozenset()


class Computed:
    """A Tensor over an array."""

    stored = "F32"

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.shape, self._values = values.shape, values.reshape(-1, values.shape[-1])

    def rows(self, which: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """See Tensor."""
        return self._values[which]


def from_folder(checkpoint: HuggingFace | ONNXFolder, pre: str | None) -> Draft:
    """The GGUF file that a Hugging Face or ONNX folder becomes; pre: as in `read_huggingface`.

    Raises Unsupported, InvalidModelFile: for whatever would be lost, is missing, or contradicts the configuration.
    """
    found = describe(checkpoint)
    architecture, hyper = found.architecture, found.hyper
    stored: Mapping[str, Tensor] = checkpoint.tensors
    tensors: dict[str, Tensor] = {name: Computed(values) for name, values in architecture.extra(hyper)}
    computed, rounded = frozenset(tensors), set()
    for relation in found.relations:
        if checkpoint.names == "gguf":
            tensors |= {part.name: stored[part.name] for part in relation.gguf}
            continue
        made = to_gguf(relation, stored)
        tensors |= {part.name: tensor for part, tensor in made}
        before = [stored[part.name] for part in relation.hf]
        if relation.shift and not shifts_exactly(before, made[0][1], relation.shift):
            rounded |= {part.name for part, _ in made}
    vocabulary = read_huggingface(checkpoint.folder, hyper.n_vocab, pre=pre)
    general = {
        "general.architecture": architecture.gguf,
        "general.type": "model",
        "general.size_label": size_label(sum(n_rows(t) * columns(t) for t in tensors.values())),
        **origin_of(checkpoint).metadata,
    }
    return Draft(
        {**general, **architecture.metadata(hyper), **to_metadata(vocabulary)},
        tensors,
        found.left_out,
        (*vocabulary.notes, *found.notes),
        computed,
        frozenset(rounded),
    )


def from_gguf(checkpoint: GGUF) -> Draft:
    """The GGUF file that another one becomes: the same tensors and key-values.

    Raises InvalidModelFile, Unsupported for a file that is no model.
    """
    file = checkpoint.file
    kind = file.get("general.type", str, "model")
    if kind != "model":
        raise Unsupported(f"{file.path}: holds no model (general.type is {kind!r}); only models are converted")
    if not file.get("general.architecture", str, ""):
        raise InvalidModelFile(f"{file.path}: no general.architecture in the header; this GGUF holds no model")
    if not checkpoint.tensors:
        raise InvalidModelFile(f"{file.path}: has no tensors; fetch the model, not its vocabulary alone")
    metadata = {key: _typed(file, key) for key in file.metadata if not _RENEWED.match(key)}
    return Draft(metadata, dict(checkpoint.tensors))


def type_metadata(
    kind: int, record: Mapping[str, Any], matrix: ImportanceMatrix | None, matrix_file: str
) -> dict[str, Any]:
    """The key-values that depend on the choice of types. kind: `general.file_type`; record: what `edgellm.convert.`
    keys say."""
    pairs: dict[str, Any] = {"general.file_type": kind, "general.quantization_version": QUANTIZATION_VERSION}
    if matrix is not None:
        pairs["quantize.imatrix.file"] = matrix_file
        if matrix.datasets:
            pairs["quantize.imatrix.dataset"] = matrix.datasets[0]
        pairs["quantize.imatrix.entries_count"] = np.int32(len(matrix.entries))
        pairs["quantize.imatrix.chunks_count"] = np.int32(matrix.chunk_count)
    return pairs | {f"edgellm.convert.{key}": value for key, value in record.items()}


def write(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    choices: Iterable[Choice],
    matrix: ImportanceMatrix | None,
    advance: Advance,
) -> None:
    """Write the file. Raises InvalidModelFile (weights that are not finite), InvalidParameter (an importance matrix of
    another model, or without what is needed), CannotWrite, BackendFailed."""
    with Quantizers() as quantizers:

        def data(choice: Choice) -> Callable[[], Iterator[NDArray[np.uint8]]]:
            def stream() -> Iterator[NDArray[np.uint8]]:
                tensor = tensors[choice.name]
                if blocked(tensor) and tensor.type is choice.type:
                    pieces = _copied(choice.name, tensor)
                else:
                    pieces = _quantized(quantizers, choice, tensor, importance[choice.name])
                for piece in pieces:
                    yield piece
                    advance(piece.nbytes)

            return stream

        listed = list(choices)
        importance = _importance(listed, matrix)
        write_gguf(path, metadata, [(c.name, c.shape, c.type, data(c)) for c in listed])


def _importance(choices: list[Choice], matrix: ImportanceMatrix | None) -> dict[str, NDArray[np.float32] | None]:
    """The importance of each tensor that is quantized."""
    found = {
        c.name: matrix.of(c.name, c.shape) if matrix is not None and c.type.block_size > 1 else None for c in choices
    }
    if matrix is None:
        return found
    if all(values is None for values in found.values()):
        raise InvalidParameter("the importance matrix has no entry for any tensor of this model; it is another model's")
    lacking = [c.name for c in choices if c.needs_importance and found[c.name] is None]
    if lacking:
        raise InvalidParameter(
            f"the importance matrix has no entry for {lacking[0]} and {len(lacking) - 1} more tensors, whose type "
            "needs one; collect it with more text, or choose q2_k"
        )
    return found


def _quantized(
    quantizers: Quantizers, choice: Choice, tensor: Tensor, importance: NDArray[np.float32] | None
) -> Iterator[NDArray[np.uint8]]:
    if importance is None or importance.ndim == 1:
        yield from quantizers.run(choice.name, choice.type, map(tensor.rows, chunks(tensor)), importance)
        return
    height = choice.shape[-2]
    for expert, weights in enumerate(importance):
        rows = (tensor.rows(part) for part in _between(tensor, expert * height, (expert + 1) * height))
        yield from quantizers.run(choice.name, choice.type, rows, weights)


def _between(tensor: Tensor, start: int, stop: int) -> Iterator[slice]:
    """Slices like those of `chunks`, of a part of the rows."""
    step = max(1, next(chunks(tensor)).stop)
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def _copied(name: str, tensor: Blocked) -> Iterator[NDArray[np.uint8]]:
    """The stored bytes; weights are looked at all the same."""
    for part in chunks(tensor):
        if tensor.type not in _INTEGERS:
            check_finite(name, tensor.rows(part))
        yield tensor.raw(part)
    if isinstance(tensor, GGUFTensor):
        tensor.release()


def _typed(file: GGUFFile, key: str) -> Any:
    """A value that `write_gguf` stores in the type that it has."""
    value, kind = file.metadata[key], file.kind(key)
    return _SCALARS[kind](value) if kind in _SCALARS else value


def size_label(n_params: int) -> str:
    """ "135M": two digits at least, as the naming convention of GGUF files has it."""
    unit, scale = next(((u, s) for u, s in (("T", 1e12), ("B", 1e9), ("M", 1e6)) if n_params > s), ("K", 1e3))
    digits = len(str(round(n_params / scale)).lstrip("0"))
    return f"{n_params / scale:.{max(2 - digits, 0)}f}{unit}"
