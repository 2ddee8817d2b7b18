"""GGMLType: the storage types a GGUF tensor may have, with the size of their blocks.

Ids, block sizes (elements) and block bytes are those of ggml's `ggml_type`:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Ids missing from the list were removed from the format.
"""

from __future__ import annotations

import math
from enum import IntEnum


class GGMLType(IntEnum):
    """A storage type: `block_size` elements of a row are stored together in `block_bytes` bytes.

    A row holds whole blocks. The table says the id, the block size and the block bytes; GGMLType(2) is Q4_0.
    """

    block_size: int
    block_bytes: int

    def __new__(cls, number: int, block_size: int = 0, block_bytes: int = 0) -> GGMLType:
        kind = int.__new__(cls, number)
        kind._value_, kind.block_size, kind.block_bytes = number, block_size, block_bytes
        return kind

    F32 = 0, 1, 4
    F16 = 1, 1, 2
    Q4_0 = 2, 32, 18
    Q4_1 = 3, 32, 20
    Q5_0 = 6, 32, 22
    Q5_1 = 7, 32, 24
    Q8_0 = 8, 32, 34
    Q8_1 = 9, 32, 36
    Q2_K = 10, 256, 84
    Q3_K = 11, 256, 110
    Q4_K = 12, 256, 144
    Q5_K = 13, 256, 176
    Q6_K = 14, 256, 210
    Q8_K = 15, 256, 292
    IQ2_XXS = 16, 256, 66
    IQ2_XS = 17, 256, 74
    IQ3_XXS = 18, 256, 98
    IQ1_S = 19, 256, 50
    IQ4_NL = 20, 32, 18
    IQ3_S = 21, 256, 110
    IQ2_S = 22, 256, 82
    IQ4_XS = 23, 256, 136
    I8 = 24, 1, 1
    I16 = 25, 1, 2
    I32 = 26, 1, 4
    I64 = 27, 1, 8
    F64 = 28, 1, 8
    IQ1_M = 29, 256, 56
    BF16 = 30, 1, 2
    TQ1_0 = 34, 256, 54
    TQ2_0 = 35, 256, 66
    MXFP4 = 39, 32, 17
    NVFP4 = 40, 64, 36
    Q1_0 = 41, 128, 18
    Q2_0 = 42, 64, 18

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor with this shape; its last dimension must be a multiple of `block_size`."""
        return math.prod(shape[:-1]) * (shape[-1] // self.block_size) * self.block_bytes
