"""Scales of a KV cache in 8 bits, from the keys and values that a model computes while it reads a text.

A number x of channel c is kept as round(x / s[c]), between -128 and 127. Each channel of each head has a scale of its
own, and all tokens have the same: s[c] is the largest size that was seen, and a margin, over 127. Keys are kept
rotated: what one has in the channels i and i + dim / 2 turns with the position, and keeps its length
(https://arxiv.org/abs/2104.09864). So the two share a scale, that of the longest pair: it holds at every position, not
only where the text was.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm import LoadParams
from edgellm.architectures import Hyper
from edgellm.backends.base import Step
from edgellm.backends.onnx import open_onnx
from edgellm.errors import InvalidModelFile, InvalidParameter, Unsupported

from .graph.decoder import KVScales

N_CTX, MOST, FEWEST = 512, 16_384, 64  # tokens: of a context, of the text that are read, that it must have
MARGIN = 1.25  # what other texts may have more than the one that was read; costs a third of a bit
SMALLEST = 1e-6  # of a scale, as a share of the layer's largest


def unknown(hyper: Hyper) -> KVScales:
    """Scales that take the place of those that are to be measured. Raises Unsupported for a model without a cache."""
    if not hyper.causal:
        raise Unsupported(f"{hyper.model_type}: keeps no keys and values; leave kv (--kv-type) away")
    return np.ones((hyper.n_layer, 2, hyper.n_head_kv, hyper.head_dim), np.float32)


def measure(folder: Path, text: str, hyper: Hyper, report: Callable[[int, int], None]) -> KVScales:
    """Run an ONNX folder whose KV cache is float32 over a text, at most MOST tokens of it.

    `report` gets the tokens done and their number. Raises InvalidParameter for a text that is too short,
    InvalidModelFile for a model that computes NaN, and what loading and running raise.
    """
    largest = np.zeros((hyper.n_layer, 2, hyper.n_head_kv, hyper.head_dim), np.float32)
    with closing(open_onnx(folder, LoadParams(gpu_layers=0))) as backend:
        tokens = backend.tokenizer.encode(text)[:MOST]
        if len(tokens) < FEWEST:
            raise InvalidParameter(
                f"the text to measure keys and values with has {len(tokens)} tokens; give one of {FEWEST} or more"
            )
        begin = backend.tokenizer.encode("", bos=True)
        room = min(N_CTX, backend.n_ctx) - len(begin)
        for start in range(0, len(tokens), room):
            context = begin + tokens[start : start + room]
            with closing(backend.new_sequence(len(context))) as sequence:
                for at in range(0, len(context), backend.micro_batch):
                    backend.forward([Step(sequence, context[at : at + backend.micro_batch], "none")])
                state = backend.pool.views(sequence)
                for i in range(hyper.n_layer):
                    keys, values = (view[:, : len(context)] for view in state[2 * i : 2 * i + 2])
                    rope = hyper.rotation(i)
                    seen = _sizes(keys, rope.dim if rope else 0), _sizes(values, 0)
                    np.maximum(largest[i], seen, out=largest[i])
            report(min(start + room, len(tokens)), len(tokens))
    if not np.isfinite(largest).all():
        raise InvalidModelFile(f"{folder}: computes keys or values that are no numbers; its weights are damaged")
    least = np.maximum(SMALLEST * largest.max(axis=(2, 3), keepdims=True), np.finfo(np.float32).tiny * 2**24)
    scales: KVScales = np.maximum(largest, least) * np.float32(MARGIN / 127)
    return scales


def _sizes(state: NDArray[np.generic], rotated: int) -> NDArray[np.float32]:
    """The largest size in each channel of (heads, tokens, size), of which the first `rotated` turn: (heads, size)."""
    found: NDArray[np.float32] = np.abs(state.astype(np.float32))
    half = rotated // 2
    pairs = np.hypot(found[..., :half], found[..., half:rotated])
    found[..., :half] = found[..., half:rotated] = pairs
    largest: NDArray[np.float32] = found.max(axis=1)
    return largest
