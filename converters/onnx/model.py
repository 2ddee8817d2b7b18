"""model_graph: the ONNX graph of any family."""

from __future__ import annotations

from edgellm.formats.onnx_graph import Graph

from ..arch.hyper import Hyper
from .decoder import decoder_graph
from .encoder import encoder_graph
from .matrix import Weights


def model_graph(hyper: Hyper, weights: Weights, n_ctx: int | None = None) -> Graph:
    """The graph of a decoder or an encoder; n_ctx and errors as in `decoder_graph`."""
    return decoder_graph(hyper, weights, n_ctx=n_ctx) if hyper.causal else encoder_graph(hyper, weights)
