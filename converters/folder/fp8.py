"""scaled_tensors: 8-bit floating-point weights and the scales beside them, seen as one tensor each.

    name                F8_E4M3 (..., rows, columns)
    name_scale_inv, or  one scale for all of it, or
    name_scale          (..., rows / block rows, columns / block columns), rounded up: one for each block

A weight is its eight bits times its scale, under both names: `scale_inv` is the inverse of what the weights were
multiplied with before they were rounded. (DeepSeek-V3 technical report, section 3.3, https://arxiv.org/abs/2412.19437,
and the "fp8" method of transformers.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidModelFile, Unsupported
from edgellm.formats.tensor import Tensor, n_rows

_SCALES = ("_scale_inv", "_scale")
_ACTIVATIONS = (".input_scale", "activation_scale", ".k_scale", ".v_scale")
_BLOCK = (128, 128)


def scaled_tensors(
    folder: Path, config: Mapping[str, Any], stored: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a checkpoint with weight scales applied, and the names of the activation scales left out.

    Raises Unsupported when config.json names another method of quantization, InvalidModelFile for scales that are
    missing or do not fit.
    """
    quantization = _quantization(folder, config)
    if quantization is None and not any(tensor.stored.startswith("F8_") for tensor in stored.values()):
        return dict(stored), ()
    dropped = tuple(name for name in stored if quantization is not None and name.endswith(_ACTIVATIONS))
    tensors = {name: tensor for name, tensor in stored.items() if name not in dropped}
    for name, tensor in stored.items():
        if not tensor.stored.startswith("F8_") or name.endswith(_SCALES):
            continue
        scales = [name + ending for ending in _SCALES if name + ending in tensors]
        where = f"{folder}: tensor {name!r} ({tensor.stored} {tensor.shape})"
        if len(scales) == 1:
            tensors[name] = ScaledTensor(where, tensor, tensors.pop(scales[0]), _block(folder, quantization))
        elif scales or quantization is not None:
            raise InvalidModelFile(f"{where} has {len(scales)} scales, one is needed; fetch the checkpoint again")
    return tensors, dropped


class ScaledTensor:
    """A weight whose rows come multiplied with their scales. block: (rows, columns), None for whole matrices."""

    def __init__(self, where: str, weight: Tensor, scale: Tensor, block: tuple[int, int] | None) -> None:
        self.shape, self.stored = weight.shape, weight.stored
        self._weight, self._scale = weight, scale
        self._one = scale.shape == (1,)
        if scale.stored not in ("F32", "F16", "BF16"):
            raise Unsupported(f"{where}: its scale is {scale.stored}; F32, F16 and BF16 are read")
        if self._one:
            return
        *leading, self._height, width = self.shape if len(self.shape) > 1 else (1, *self.shape)
        self._block = block or (self._height, width)
        grid = (*leading, *(-(-size // step) for size, step in zip((self._height, width), self._block, strict=True)))
        if scale.shape != grid:
            raise InvalidModelFile(
                f"{where}: blocks of {self._block} need a scale of shape {grid}, it has {scale.shape}; "
                "quantization_config.weight_block_size or the scale is wrong: fetch the checkpoint again"
            )

    def rows(self, which: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """See Tensor."""
        values = self._weight.rows(which)
        scale = self._scale.rows(slice(None))  # (n_rows of the scale, columns of the scale)
        if self._one:
            values *= scale[0, 0]
            return values
        index = np.arange(n_rows(self))[which] if isinstance(which, slice) else which
        matrix, row = np.divmod(index, self._height)
        scale = scale[matrix * self._scale.shape[-2] + row // self._block[0]]  # (n, columns of the scale)
        step = self._block[1]
        whole = values.shape[1] // step
        blocks = values[:, : whole * step].reshape(len(values), whole, step)
        blocks *= scale[:, :whole, None]
        values[:, whole * step :] *= scale[:, whole:]
        return values


def _quantization(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The quantization_config of an fp8 checkpoint, None for plain weights."""
    text = config.get("text_config")
    places = [config, text] if isinstance(text, dict) else [config]
    found = [place[key] for place in places for key in ("quantization_config", "compression_config") if place.get(key)]
    for entry in found:
        method = entry.get("quant_method") if isinstance(entry, dict) else None
        if method != "fp8":
            raise Unsupported(
                f"{folder / 'config.json'}: the weights are quantized with {str(method)[:100]!r}; plain weights and "
                "fp8 are read: take the original checkpoint, or a GGUF file of it"
            )
    return found[0] if found else None


def _block(folder: Path, quantization: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """Rows and columns of a block; None where the configuration says that there are none."""
    size = _BLOCK if quantization is None else quantization.get("weight_block_size", _BLOCK)
    if size is None:
        return None
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise InvalidModelFile(
            f"{folder / 'config.json'}: weight_block_size {str(size)[:100]} is not two positive numbers"
        )
    return size[0], size[1]
