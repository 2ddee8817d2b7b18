"""model_graph: the ONNX graph of any family."""

from __future__ import annotations

from edgellm.architectures.hyper import Hyper
from edgellm.formats.onnx_graph import Graph

from .decoder import KVScales, decoder_graph
from .encoder import encoder_graph
from .weights import Weights


def model_graph(hyper: Hyper, weights: Weights, n_ctx: int | None = None, kv_scales: KVScales | None = None) -> Graph:
    """The graph of a decoder or an encoder; n_ctx, kv_scales and errors as in `decoder_graph`."""
    if hyper.causal:
        return decoder_graph(hyper, weights, n_ctx=n_ctx, kv_scales=kv_scales)
    return encoder_graph(hyper, weights)
