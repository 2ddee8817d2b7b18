"""model_graph: the ONNX graph of any family."""

from __future__ import annotations

from edgellm.architectures.hyper import Hyper
from edgellm.formats.onnx_graph import Graph

from .decoder import Decoder, KVScales
from .encoder import Encoder
from .weights import Weights


def model_graph(hyper: Hyper, weights: Weights, n_ctx: int | None = None, kv_scales: KVScales | None = None) -> Graph:
    """The graph of a decoder or an encoder; n_ctx, kv_scales and errors as in `Decoder`."""
    if hyper.causal:
        return Decoder(hyper, weights, n_ctx, kv_scales).build()
    return Encoder(hyper, weights).build()
