"""A model as a GGUF file, written in one streaming pass.

    tensors of the source ── relations ──▶ rows in GGUF's order, some MB at a time ── quantizers ──▶ file

Nothing is read before its turn, and what was read may leave memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidParameter
from edgellm.formats.ggml_types import GGMLType
from edgellm.formats.gguf_writer import write_gguf
from edgellm.formats.joined import Joined
from edgellm.formats.tensor import Blocked, Tensor, blocked, check_finite, chunks
from edgellm.formats.writing import counted

from ..quant.imatrix import ImportanceMatrix
from ..quant.pool import Quantizers
from ..quant.recipes import Choice
from .source import GGUFTensor

Advance = Callable[[int], None]  # bytes that were written since the last call

_INTEGERS = (GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64)


def write(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    choices: list[Choice],
    matrix: ImportanceMatrix | None,
    advance: Advance,
) -> None:
    """Write the file. Raises InvalidModelFile (weights that are not finite), InvalidParameter (an importance matrix of
    another model, or without what is needed), CannotWrite, BackendFailed."""
    with Quantizers() as quantizers:

        def pieces(choice: Choice) -> Iterator[NDArray[np.uint8]]:
            tensor = tensors[choice.name]
            if blocked(tensor) and tensor.type is choice.type:
                return _copied(choice.name, tensor)
            return _quantized(quantizers, choice, tensor, importance[choice.name])

        importance = _importance(choices, matrix)
        write_gguf(path, metadata, [(c.name, c.shape, c.type, counted(partial(pieces, c), advance)) for c in choices])


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
        rows = Joined([(tensor, expert * height, (expert + 1) * height)], shape=choice.shape[-2:])
        yield from quantizers.run(choice.name, choice.type, map(rows.rows, chunks(rows)), weights)


def _copied(name: str, tensor: Blocked) -> Iterator[NDArray[np.uint8]]:
    """The stored bytes; weights are looked at all the same."""
    for part in chunks(tensor):
        if tensor.type not in _INTEGERS:
            check_finite(name, tensor.rows(part))
        yield tensor.raw(part)
    if isinstance(tensor, GGUFTensor):
        tensor.release()
